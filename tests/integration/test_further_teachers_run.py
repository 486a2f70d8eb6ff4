"""Runs that train several teachers, which teach the students together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_cases import FLIPPED, Verb, config, run_of
from safetensors.torch import load_file

from recdistill_core.config import load_yaml
from recdistill_core.errors import ConfigError, DataError, UsageError
from recdistill_core.labels import CaptureMode, LabelChoice, LabelPolicy
from recdistill_core.registry import installed
from recdistill_lightning import align_labels
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.teacher_of_run import TeacherOfRun
from recdistill_select.jobs import _labels

QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1], "labels": {"policy": "all_of"}}
LEARNT = {"name": "multi_teacher", "weights": [1.0, 1.0], "learned": True}


def manifest(out: Path, step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "seed-1" / step / "manifest.json").read_text())
    return found


def two(feed_path: Path, **changes: Any) -> dict[str, Any]:
    """A run whose second teacher is the first one's like, but for its width."""
    plain = config(feed_path, **QUICK)
    return {**plain, "further_teachers": [{**plain["teacher"], "width": 8}], "strategy": LEARNT, **changes}


@pytest.fixture(scope="module")
def finished(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two teachers; read-only."""
    home = tmp_path_factory.mktemp("two")
    run_of(home / "run", two(feed_path, shared=str(home / "shared"))).all()
    return home / "run"


def test_both_teachers_label_every_row_and_the_students_learn_weights_of_their_say(finished: Path) -> None:
    versions = [manifest(finished, step)["labels"]["version"] for step in ("teacher", "teacher-2")]
    assert len(set(versions)) == 2
    told = manifest(finished, "mlp-distilled")["labels"]
    assert (told["versions"], told["policy"]) == (versions, "all_of")
    assert told["by_version"]["click"] == dict.fromkeys(versions, 1.0)
    learnt = load_file(finished / "seed-1/mlp-distilled/model.safetensors")["objectives.click.strategy.weights"]
    assert learnt.shape == (2,)
    assert (learnt != 0).any()  # they begin at 0
    results = json.loads((finished / "metrics.json").read_text())
    assert results["further_teachers"] == ["hstu"]
    assert "The run trained 2 teachers that teach together" in (finished / "summary.md").read_text()


def test_the_first_teacher_is_the_one_of_a_run_without_further_ones(
    finished: Path, feed_path: Path, tmp_path: Path
) -> None:
    run_of(tmp_path / "one", config(feed_path, **{**QUICK, "labels": {}})).teachers()
    alone = manifest(tmp_path / "one", "teacher")
    assert manifest(finished, "teacher")["fingerprint"] == alone["fingerprint"]
    assert not (tmp_path / "one/seed-1/teacher-2").exists()


def test_any_other_strategy_learns_the_mean_of_their_logits(
    finished: Path, feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    shared, said = finished.parent / "shared", list[str]()
    plain = two(feed_path, shared=str(shared), strategy={"name": "rec_distill"})
    run_of(tmp_path / "mean", plain, said.append).all()
    assert sum("teacher" in line and "is there already" in line for line in said) == 2
    told = manifest(tmp_path / "mean", "mlp-distilled")["labels"]
    assert (told["versions"], told["policy"]) == (manifest(finished, "mlp-distilled")["labels"]["versions"], "all_of")
    (home,) = (shared / "labels").iterdir()
    store, rows = ParquetLogitStore(home), (0, 500)
    choice = LabelChoice(tuple(told["versions"]), LabelPolicy.ALL_OF)
    mixed = align_labels(feed, store, choice, rows, 0.0).signal.logits["click"]
    each = [store.read(version, feed.column("example_id")[:500]).logits["click"] for version in told["versions"]]
    assert not torch.equal(*each)
    torch.testing.assert_close(mixed[:500], torch.stack(each).mean(0))


def test_teachers_of_equal_settings_are_two_models(feed_path: Path, tmp_path: Path) -> None:
    plain = two(feed_path)
    run_of(tmp_path / "out", {**plain, "further_teachers": [plain["teacher"]]}).teachers()
    first, second = (load_file(tmp_path / f"out/seed-1/{name}/model.safetensors") for name in ("teacher", "teacher-2"))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_no_label_reaches_the_logits_that_either_teacher_leaves_of_its_row(
    finished: Path, feed: ParquetSource, twin: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    run_of(tmp_path / "twin", two(Path(twin.path))).teachers()
    ids = feed.column("example_id")[FLIPPED:2000]
    stores = [next((finished.parent / "shared/labels").iterdir()), tmp_path / "twin/labels"]
    for step in ("teacher", "teacher-2"):
        runs = (finished, tmp_path / "twin")
        here, there = (
            ParquetLogitStore(store).read(manifest(run, step)["labels"]["version"], ids).logits["click"]
            for run, store in zip(runs, stores, strict=True)
        )
        assert here[0] == there[0]
        assert not torch.equal(here, there)  # later rows know the label


def test_a_run_that_lost_its_second_teacher_makes_the_same_one_again(feed_path: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "out", two(feed_path)).teachers()
    before = manifest(tmp_path / "out", "teacher-2")
    (tmp_path / "out/seed-1/teacher-2/manifest.json").unlink()
    with pytest.raises(UsageError, match="seed 1 has no teacher yet"):
        run_of(tmp_path / "out", two(feed_path)).students()
    run_of(tmp_path / "out", two(feed_path)).teachers()
    after = manifest(tmp_path / "out", "teacher-2")
    assert after["fingerprint"] == before["fingerprint"]
    assert after["labels"] == before["labels"]
    assert after["files"]["model.safetensors"] == before["files"]["model.safetensors"]


def test_out_of_fold_each_teacher_has_copies_of_its_own(feed_path: Path, tmp_path: Path) -> None:
    capture = {"mode": "out_of_fold", "folds": 2}
    four = {**LEARNT, "weights": [1.0] * 4}
    run_of(tmp_path / "out", two(feed_path, capture=capture, strategy=four)).all()
    told = manifest(tmp_path / "out", "mlp-distilled")["labels"]
    assert len(told["versions"]) == 4
    assert sum(told["by_version"]["click"].values()) == pytest.approx(2.0)  # a copy of each labels every row
    assert manifest(tmp_path / "out", "teacher-2-fold-1")["kind"] == "fold"


def test_backfill_scores_with_the_teacher_that_is_named(finished: Path, feed: ParquetSource) -> None:
    later = np.arange(feed.num_rows - 50, feed.num_rows)
    for step, width in (("teacher", 16), ("teacher-2", 8)):
        teacher = TeacherOfRun.of(finished, 1, step)
        plan = teacher.plan()
        facts = teacher.facts(plan, feed)
        assert facts["teacher"]["width"] == width
        known = next(
            entry
            for entry in teacher.store(plan).versions()
            if entry.version == manifest(finished, step)["labels"]["version"]
        )
        assert facts["seed"] == known.facts["seed"]
        weights = load_file(finished / f"seed-1/{step}/model.safetensors")
        module = teacher.teacher(plan, feed)
        assert isinstance(module, torch.nn.Module)
        for name, part in module.state_dict().items():
            assert torch.equal(part, weights[f"teacher.{name}"])
        assert not teacher.reached(feed, later).any()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": {}}, "further_teachers teach together with the run's own: they need labels.policy 'all_of'"),
        ({"labels": {"policy": "all_of", "versions": ["theirs"]}}, "'own' among them"),
        ({"candidates": {"per_row": 2}}, "candidates are scored by one teacher"),
        ({"further_teachers": [{"name": "hstu", "widht": 8}]}, "further_teachers[0].widht"),
        ({"seeds": [1, 1_000_001]}, "with further_teachers seeds must be below 1,000,000"),
    ],
)
def test_what_cannot_teach_together_is_refused(
    changes: dict[str, Any], told: str, feed_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(tmp_path / "out", two(feed_path, **changes))
    assert told in str(caught.value)


def test_weights_that_do_not_fit_are_told_before_a_teacher_is_trained(feed_path: Path, tmp_path: Path) -> None:
    three = {**LEARNT, "weights": [1.0, 1.0, 1.0]}
    with pytest.raises(DataError, match="has 3 weights, and the labels are of 2 teachers"):
        run_of(tmp_path / "out", two(feed_path, strategy=three)).all()
    assert not list(tmp_path.glob("out/seed-1/*"))


def test_a_run_of_one_teacher_has_the_settings_that_it_had_before_there_could_be_several(feed_path: Path) -> None:
    assert "further_teachers" not in make_plan(config(feed_path), installed()).resolved()
    assert make_plan(two(feed_path), installed()).resolved()["further_teachers"][0]["width"] == 8


def test_labels_of_others_are_mixed_with_those_of_all_own_teachers(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    ids = torch.from_numpy(feed.column("example_id")[:3000].copy())
    facts = {"dataset": feed.snapshot_id}
    with ParquetLogitStore(tmp_path / "labels").writer(
        "theirs", tasks=["click"], mode=CaptureMode.EXTERNAL, view="theirs", facts=facts
    ) as writer:
        writer.append(ids, {"click": torch.full(ids.shape, 7.0)}, step=-1, scored_at=1)
        writer.commit()
    changes: dict[str, Any] = {
        "store": {"path": str(tmp_path / "labels")},
        "labels": {"versions": ["theirs", "own"], "policy": "all_of"},
        "strategy": {**LEARNT, "weights": [1.0, 1.0, 1.0], "lr": 0.1},
    }
    run = run_of(tmp_path / "out", two(feed_path, **changes))
    run.teachers()
    run.students()
    own = [manifest(tmp_path / "out", step)["labels"]["version"] for step in ("teacher", "teacher-2")]
    assert manifest(tmp_path / "out", "mlp-distilled")["labels"]["versions"] == ["theirs", *own]
    learnt = load_file(tmp_path / "out/seed-1/mlp-distilled/model.safetensors")["objectives.click.strategy.weights"]
    theirs, *mine = learnt.softmax(0).tolist()
    assert theirs < min(mine)  # it says 7 of everything


def test_examples_are_judged_by_the_labels_of_all_teachers(finished: Path, feed: ParquetSource) -> None:
    run = run_of(finished, load_yaml(finished / "config.yaml"))
    _, version = _labels(run, feed, (0, 500), "click", 1)
    assert version.split(", ") == manifest(finished, "mlp-distilled")["labels"]["versions"]


def test_the_second_teacher_fills_gaps_and_is_saved_under_its_own_name(
    feed: ParquetSource, feed_path: Path, recdistill: Verb, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_of(run, two(feed_path)).teachers()
    made = {}
    for step, width in (("teacher", 16), ("teacher-2", 8)):
        code, out, err = recdistill("labels", "backfill", run, "--step", step, "--since", "80%", "--json")
        assert code == 0, err
        told = json.loads(out)
        store = ParquetLogitStore(run / "labels")
        (entry,) = [entry for entry in store.versions() if entry.version == told["version"]]
        assert told["added"] == entry.count == 600  # the test rows from there on
        assert entry.facts["teacher"]["width"] == width
        made[step] = store.read(entry.version, feed.column("example_id")[-600:]).logits["click"]
    assert not torch.equal(made["teacher"], made["teacher-2"])
    code, out, err = recdistill("teacher", "save", run, "--step", "teacher-2", "--out", tmp_path / "saved", "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == "seed-1/teacher-2"
    assert '"width": 8' in (tmp_path / "saved/config.json").read_text()
    for step in ("mlp-raw", "teacher-3"):
        code, _, err = recdistill("teacher", "save", run, "--step", step, "--out", tmp_path / step)
        assert code != 0
        assert f"the run has no finished teacher seed-1/{step}" in err
