"""A whole run: what it leaves behind, the same bits again, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf
from pipeline_cases import config, run_of
from torchmetrics.functional.classification import binary_auroc

from recdistill_core.batch import Scores
from recdistill_core.component import Component
from recdistill_core.errors import ConfigError, DataError, IntegrityError, UsageError
from recdistill_core.interfaces import HistoryWindow
from recdistill_core.registry import installed
from recdistill_mlp.model import MLP
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline import checkpoint, fit
from recdistill_pipeline.models import build_student, build_teacher
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.run import Run

MODELS = ("teacher", "dcn-raw", "dcn-distilled", "mlp-raw", "mlp-distilled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that imported its dataset itself; read-only."""
    out = tmp_path_factory.mktemp("run") / "one"
    run_of(out, config()).all()
    return out


def weights(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("seed-*/*/*.safetensors"))}


def labels(out: Path) -> dict[str, list[bytes]]:
    store = ParquetLogitStore(out / "labels")
    found = {}
    for version in store.versions():
        signal = store.read(version.version, np.arange(3000))
        found[version.version] = [signal.logits["click"].numpy().tobytes(), signal.valid["click"].numpy().tobytes()]
    return found


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def order_of_labels(out: Path) -> float:
    """AUC of the labels over the rows that they teach, mean over seeds."""
    source, store = ParquetSource(out / "dataset"), ParquetLogitStore(out / "labels")
    outcome = torch.tensor(source.column("label_click")[:2250]).long()
    signals = [store.read(version.version, source.column("example_id")[:2250]) for version in store.versions()]
    return float(np.mean([binary_auroc(signal.logits["click"], outcome) for signal in signals]))


def assert_equal_runs(one: Path, two: Path) -> None:
    assert weights(one) == weights(two)
    assert labels(one) == labels(two)
    assert metrics(one) == metrics(two)


def test_metrics_json_has_the_promised_structure(finished: Path) -> None:
    found = metrics(finished)
    assert found["seeds"] == 2
    for side in ("raw", "teacher", "distilled"):
        for name in ("auc", "gauc", "ne", "calibration", "ece"):
            assert isinstance(found[side][name], float), (side, name)
        assert len(found[side]["auc_seeds"]) == 2
        low, high = found[side]["auc_interval"]
        assert low <= found[side]["auc"] <= high
    assert list(found["eta"]) == ["auc", "gauc", "ne"]
    for entry in found["eta"].values():
        assert {"value", "low", "high"} <= set(entry)
        assert entry["value"] is None or isinstance(entry["value"], float)
        assert (entry["low"] is None) == (entry["high"] is None)
        assert entry["note"] if entry["low"] is None else entry["low"] <= entry["value"] <= entry["high"]
    assert set(found["cost"]) == {"teacher", "student", "ratio"}
    for model in ("teacher", "student"):
        cost = found["cost"][model]
        assert cost["parameters"] == cost["embedding_parameters"] + cost["dense_parameters"] > 0
        assert cost["flops_per_impression"] > 0
    assert list(found["students"]) == ["dcn", "mlp"]
    assert found["students"]["dcn"]["eta"] == found["eta"]
    assert (found["capture"], found["task"], found["name"]) == ("prequential", "click", "tiny")
    assert found["data"] == {
        "teacher_rows": 2250,
        "student_rows": 2250,
        "test_rows": 750,
        "test_users": found["data"]["test_users"],
        "coverage": {"dcn": 1.0, "mlp": 1.0},
        "label_auc": {"dcn": pytest.approx(order_of_labels(finished)), "mlp": pytest.approx(order_of_labels(finished))},
    }
    row = f"| dcn | 100.0% | {found['data']['label_auc']['dcn']:.4f} |"
    assert row in (finished / "summary.md").read_text()


def test_a_run_leaves_manifest_config_report_and_plots(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert set(manifest["steps"]) == {f"seed-{seed}/{model}" for seed in (1, 2) for model in MODELS}
    assert manifest["dataset"] == ParquetSource(finished / "dataset").snapshot_id
    assert manifest["labels"] == ParquetLogitStore(finished / "labels").snapshot_id()
    assert manifest["seeds"] == [1, 2]
    assert {"torch", "lightning", "recdistill", "python"} <= set(manifest["versions"])
    teacher = manifest["steps"]["seed-1/teacher"]
    assert teacher["labels"]["mode"] == "prequential"
    assert teacher["labels"]["count"] == 2250
    seen = ParquetSource(finished / "dataset").column("history_end")[:2250]
    length = teacher["history"]["length"]
    assert teacher["history"]["rows_cut"] == int((seen > length).sum())
    assert (teacher["history"]["rows"], teacher["history"]["longest"]) == (2250, int(seen.max()))
    assert manifest["steps"]["seed-1/dcn-distilled"]["labels"]["version"] == teacher["labels"]["version"]
    assert manifest["steps"]["seed-1/dcn-raw"]["labels"] is None
    assert set(teacher["files"]) >= {"model.safetensors", "trained_on.npy"}
    text = (finished / "summary.md").read_text()
    for part in ("# tiny", "| teacher |", "| dcn, distilled |", "| mlp, AUC |", "2,250 rows", "![eta](plots/eta.png)"):
        assert part in text
    assert "Leaky" not in text
    for name in ("eta.png", "calibration.png"):
        plot = (finished / "plots" / name).read_bytes()
        assert plot.startswith(b"\x89PNG")
        assert len(plot) > 8000
    served = safetensors.torch.load_file(finished / "seed-1/dcn-distilled/serving.safetensors")
    assert not [name for name in served if "auxiliary" in name]
    assert not list(finished.rglob(".*.part"))


def test_histories_that_are_cut_are_counted_and_reported(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = ParquetSource(finished / "dataset")
    seen = source.column("history_end")[10:500]
    with caplog.at_level("INFO", logger="recdistill_pipeline.fit"):
        facts = fit.history_facts(source, HistoryWindow(6, 2, 3), (10, 500))
    cut = int((seen > 6).sum())
    assert 0 < cut < 490
    assert facts == {
        "length": 6,
        "stride": 2,
        "oldest": 3,
        "rows": 490,
        "rows_cut": cut,
        "longest": int(seen.max()),
    }
    assert caplog.messages == [
        f"teacher: {cut} of 490 rows have more than 6 events before them and see the oldest 3 and the newest of these"
    ]
    assert fit.history_facts(source, None, (10, 500)) == {}

    def unknown(name: str) -> None:
        raise DataError(f"the dataset has no column {name!r}")

    monkeypatch.setattr(source, "column", unknown)
    assert fit.history_facts(source, HistoryWindow(6, 2), (10, 500)) == {}


def test_the_same_configuration_gives_the_same_bits(finished: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "two", config()).all()
    assert_equal_runs(finished, tmp_path / "two")


def test_a_finished_run_does_nothing_twice(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("a finished step was done again")

    before, results = weights(finished), metrics(finished)
    for name in ("fit_teacher", "fit_student", "import_dataset"):
        monkeypatch.setattr(f"recdistill_pipeline.run.{name}", never)
    assert json.loads(json.dumps(run_of(finished, config()).all())) == results
    assert weights(finished) == before


@pytest.mark.parametrize("moment", ["after the teachers", "after the labels", "in a student"])
def test_an_interrupted_run_goes_on_where_it_was(
    moment: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = {"after the teachers": 3, "after the labels": 1, "in a student": 5}[moment]
    calls = []
    save = checkpoint.save_weights

    def dies(tensors: Mapping[str, Any], path: Path) -> None:
        calls.append(path)
        if len(calls) == fails:
            raise KeyboardInterrupt
        save(tensors, path)

    out = tmp_path / "out"
    monkeypatch.setattr(fit, "save_weights", dies)
    with pytest.raises(KeyboardInterrupt):
        run_of(out, config()).all()
    done = {path: path.stat().st_mtime_ns for path in out.glob("seed-*/*/model.safetensors")}
    assert len(done) == {"after the teachers": 2, "after the labels": 0, "in a student": 3}[moment]
    assert all((path.parent / "manifest.json").exists() for path in done)
    assert not (out / "metrics.json").exists()
    monkeypatch.setattr(fit, "save_weights", save)
    run_of(out, config()).all()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert_equal_runs(finished, out)


def test_a_directory_of_another_run_or_of_something_else_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a run of another configuration") as error:
        run_of(finished, config(seeds=[1]))
    assert "another configuration: seeds: [1, 2] -> [1]\n" in str(error.value)
    assert "give another --out" in str(error.value)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        run_of(tmp_path, config())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_directory_in_which_nothing_has_come_of_it_takes_a_corrected_configuration(
    feed_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no task 'clik'"):
        run_of(tmp_path, config(feed_path, task="clik")).all()
    corrected = config(feed_path, seeds=[1], students=["mlp"])
    run_of(tmp_path, corrected).teachers()
    assert OmegaConf.load(tmp_path / "config.yaml").task == "click"
    changed = {**corrected, "teacher": {**corrected["teacher"], "width": 8, "heads": 1}}
    with pytest.raises(UsageError, match=r"teacher\.width: 16 -> 8; teacher\.heads: 2 -> 1\n"):
        run_of(tmp_path, changed)


def test_an_imported_dataset_is_not_taken_for_that_of_another_importer(tmp_path: Path) -> None:
    run_of(tmp_path, config(seeds=[1])).dataset()
    other = config(seeds=[1])
    other["dataset"] = {"importer": {**other["dataset"]["importer"], "seed": 9}}
    with pytest.raises(UsageError, match=r"dataset\.importer\.seed: 0 -> 9"):
        run_of(tmp_path, other)


def test_changed_weights_are_noticed(feed_path: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, config(feed_path, seeds=[1], students=["mlp"]))
    run.teachers()
    with pytest.raises(UsageError, match=r"2 of 3 models are not trained yet, the first one is seed-1/mlp-raw"):
        run.evaluate()
    run.students()
    path = tmp_path / "seed-1/mlp-raw/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="changed since it was written") as error:
        run.evaluate()
    assert error.value.exit_code == 5
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(IntegrityError, match="absent or was changed"):
        run.evaluate()
    assert not (tmp_path / "metrics.json").exists()


def test_leaky_labels_need_permission_and_mark_every_result(feed_path: Path, tmp_path: Path) -> None:
    plain = config(feed_path, seeds=[1], students=["mlp"])
    with pytest.raises(ConfigError, match=r"set capture\.allow_leaky=true") as error:
        run_of(tmp_path / "no", {**plain, "capture": {"mode": "leaky"}})
    assert error.value.exit_code == 2
    assert not (tmp_path / "no").exists()
    out = tmp_path / "leaky"
    results = run_of(out, {**plain, "capture": {"mode": "leaky", "allow_leaky": True}}).all()
    manifest = json.loads((out / "manifest.json").read_text())
    assert results["capture"] == metrics(out)["capture"] == manifest["capture"] == "leaky"
    assert "**Leaky labels.**" in (out / "summary.md").read_text()
    assert manifest["steps"]["seed-1/mlp-distilled"]["labels"]["mode"] == "leaky"
    assert [version.mode.value for version in ParquetLogitStore(out / "labels").versions()] == ["leaky"]
    honest = run_of(tmp_path / "honest", plain).all()
    assert results["data"]["label_auc"]["mlp"] > honest["data"]["label_auc"]["mlp"] + 0.02


class Drawing:
    """A configured loss that draws random numbers when it is built."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def build(self, context: Any) -> Any:
        torch.rand(7)
        return self.loss.build(context)


def test_raw_and_distilled_students_start_equal(feed: ParquetSource, feed_path: Path) -> None:
    plan = make_plan(config(feed_path), installed())
    plan = replace(plan, loss=Drawing(plan.loss))  # type: ignore[arg-type]  # stands in for a Resolved
    for label in ("dcn", "mlp"):
        raw, distilled, other = (
            build_student(plan, label, feed.schema, seed, distilled=kind).state_dict()
            for seed, kind in ((1, False), (1, True), (2, True))
        )
        assert set(raw) < set(distilled)
        assert all(torch.equal(raw[name], distilled[name]) for name in raw)
        assert any(not torch.equal(raw[name], other[name]) for name in raw)
        towers = [distilled[name] for name in distilled if name.startswith("auxiliary") and "weight" in name]
        mains = [distilled[name] for name in distilled if name.startswith("main") and "weight" in name]
        assert len(towers) == len(mains) > 0
        assert not torch.equal(towers[0], mains[0])


def test_the_store_may_be_shared_by_runs_of_one_configuration(feed_path: Path, tmp_path: Path) -> None:
    plain = config(feed_path, seeds=[1], students=["mlp"], store={"name": "parquet", "path": str(tmp_path / "store")})
    for name in ("one", "two"):
        run_of(tmp_path / name, plain).all()
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert len(ParquetLogitStore(tmp_path / "store").versions()) == 1


def test_students_of_another_strategy_share_the_teachers_labels_and_another_teacher_has_its_own(
    feed_path: Path, tmp_path: Path
) -> None:
    plain = config(feed_path, seeds=[1], students=["mlp"], store={"name": "parquet", "path": str(tmp_path / "store")})
    run_of(tmp_path / "one", plain).all()
    run_of(tmp_path / "two", {**plain, "strategy": {"name": "single", "alpha": 3.0}}).all()
    assert len(ParquetLogitStore(tmp_path / "store").versions()) == 1
    training = {**plain["teacher_training"], "lr": 0.006}
    run_of(tmp_path / "three", {**plain, "teacher_training": training}).teachers()
    assert len(ParquetLogitStore(tmp_path / "store").versions()) == 2


class Oracle:
    """Scores, and that is all."""

    def score(self, batch: Any) -> Any:
        return Scores({"click": batch.item_id.float() / 100})

    def fingerprint(self) -> str:
        return "oracle"


def test_a_teacher_of_somebody_else_that_only_scores_is_asked(feed_path: Path, tmp_path: Path) -> None:
    registry = installed()
    empty = make_dataclass("Empty", [], frozen=True)
    component = Component("oracle", empty, lambda config, context: Oracle(), "scores alone", api_version=1)
    entry = replace(registry.get("teacher", "hstu"), component=component)
    registry = replace(registry, found=(*registry.found, entry))
    plan = make_plan(config(feed_path, teacher={"name": "oracle"}, students=["mlp"], seeds=[1]), registry)
    with pytest.raises(UsageError, match="teacher 'oracle' scores but cannot be trained"):
        build_teacher(plan, ParquetSource(feed_path).schema, 1)
    results = Run(plan, tmp_path, registry).all()
    assert results["capture"] == "external"
    assert results["teacher"]["auc"] is not None
    manifest = json.loads((tmp_path / "seed-1/teacher/manifest.json").read_text())
    assert manifest["description"]["labelled"] == {"rows": 3000, "known": 0, "added": 3000, "unscored": 0}


def test_a_student_that_objects_is_heard_before_a_teacher_is_trained(
    feed_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def objects(self: MLP, batch: Any) -> Any:
        raise DataError("this student wants a position", where="mlp")

    monkeypatch.setattr(MLP, "inputs", objects)
    with pytest.raises(DataError, match="this student wants a position"):
        run_of(tmp_path, config(feed_path, students=["mlp"], seeds=[1])).all()
    assert not list(tmp_path.glob("seed-1/*"))
