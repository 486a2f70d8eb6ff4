"""Runs whose students read the hidden states of their teacher: what is written, shared, refused and served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_cases import (
    TEACHER,
    Verb,
    answer,
    config,
    run_of,
    write_config,
)
from safetensors.torch import load_file

from recdistill_compare.job import compare_runs
from recdistill_compare.report import summary as comparison
from recdistill_compare.report import value_rows
from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import ConfigError, IntegrityError, PluginError, UsageError
from recdistill_core.registry import installed
from recdistill_lightning import (
    StateSource,
    read_states,
)
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.fit import fit_student
from recdistill_select.candidates import raw_student
from recdistill_select.jobs import _seen

QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1]}
WIDTH = {"states": {"width": 4}}
BESIDE: dict[str, Any] = {"candidates": {"per_row": 1}, "exporters": ["torch_export"]}


@pytest.fixture(scope="module")
def whole_run(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with states, exports and candidates; read-only."""
    out = tmp_path_factory.mktemp("states") / "run"
    run_of(out, config(feed_path, **QUICK, **WIDTH, **BESIDE)).all()
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = load_file(one), load_file(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_says_what_its_students_read(whole_run: Path, feed: ParquetSource) -> None:
    teacher, student = (read(whole_run / f"seed-1/{step}/manifest.json") for step in ("teacher", "mlp-distilled"))
    facts = {"width": 4, "bits": 4, "of": "state"}
    assert teacher["states"] == {**facts, "in_training": 2250, "after_training": 750}
    told = student["states"]
    assert told.pop("sha256") == teacher["files"]["states.parquet"]
    states = read_states(whole_run / "seed-1/teacher/states.parquet")
    view = StateSource(feed, 4, states)
    known = view.column("teacher_state_known")[:2250] > 0
    assert told == {**facts, "recent": 8, "delay_minutes": 0, "rows_with_one": known.mean()}
    assert 0.5 < known.mean() < 1
    assert states.facts == {
        "dataset": feed.snapshot_id,
        "of": "state",
        "seed": 1,
        "labels": teacher["labels"]["version"],
    }
    assert "states" not in read(whole_run / "seed-1/mlp-raw/manifest.json")
    assert "compressor.safetensors" in teacher["files"]
    assert read(whole_run / "metrics.json")["channel"] == "logits and hidden states"
    assert "> **Hidden states.** Beside the teacher's logits" in (whole_run / "summary.md").read_text()


def test_what_is_served_takes_the_states_as_numbers(whole_run: Path, feed: ParquetSource) -> None:
    export = read(whole_run / "seed-1/mlp-distilled/export/torch_export/manifest.json")
    assert export["largest_difference"] <= export["tolerance"]
    loaded = torch.export.load(whole_run / "seed-1/mlp-distilled/export/torch_export/model.pt2").module()
    view = StateSource(feed, 4, read_states(whole_run / "seed-1/teacher/states.parquet"))
    torch.manual_seed(1)
    student = make(installed(), "student", "mlp", BuildContext(view.schema, ("click",)))
    inputs = student.inputs(view.batch(np.arange(2900, 3000), student.history))
    assert inputs["numeric"].shape[1] == len(feed.schema.numeric) + 5
    blind = {**inputs, "numeric": inputs["numeric"].clone()}
    blind["numeric"][:, -5:] = 0
    assert not torch.equal(loaded(**inputs)["click"], loaded(**blind)["click"])


def test_the_same_seed_gives_the_same_bits_and_an_interrupted_run_goes_on(
    whole_run: Path, feed_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, out = config(feed_path, **QUICK, **WIDTH, **BESIDE), tmp_path / "run"

    def breaks(*given: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:  # the labels are committed by then
        patch.setattr("recdistill_pipeline.states.write_states", breaks)
        with pytest.raises(RuntimeError, match="broken"):
            run_of(out, plain).teachers()
    assert not (out / "seed-1/teacher").exists()
    run_of(out, plain).teachers()
    run_of(out, plain).students()
    run_of(out, plain).evaluate()
    assert (out / "metrics.json").read_bytes() == (whole_run / "metrics.json").read_bytes()
    for file in ("teacher/states.parquet", "teacher/compressor.safetensors", "mlp-distilled/serving.safetensors"):
        assert (out / "seed-1" / file).read_bytes() == (whole_run / "seed-1" / file).read_bytes(), file


def test_with_and_without_states_the_teacher_is_the_same(whole_run: Path, feed_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_of(out, config(feed_path, **QUICK)).all()
    assert same_weights(*(run / "seed-1/teacher/model.safetensors" for run in (out, whole_run)))
    labels = [read(run / "seed-1/teacher/manifest.json")["labels"] for run in (out, whole_run)]
    assert labels[0] == labels[1]
    results = read(out / "metrics.json")
    assert results["channel"] == "logits"
    assert "Hidden states" not in (out / "summary.md").read_text()
    compared = compare_runs([out, whole_run], resamples=100)
    assert [row["channel"] for row in compared["rows"]] == ["logits", "logits and hidden states"]
    cells = [row[0] for row in value_rows(compared, "auc")]
    assert not cells[0].endswith(")")
    assert cells[1].endswith("(logits and hidden states)")
    assert "states.width" in comparison(compared)


def test_runs_share_teachers_and_raw_students_that_do_not_depend_on_how_states_are_read(
    feed_path: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    reads = {"a": {"width": 4}, "b": {"width": 4, "recent": 2, "delay_minutes": 30}, "c": {"width": 4, "of": "token"}}
    for name, states in reads.items():
        plain = config(feed_path, **QUICK, states=states, shared=str(tmp_path / "shared"))
        run_of(tmp_path / name, plain, said.append).all()
    taken = [line.split(" is there already")[0] for line in said if "is there already" in line]
    assert taken == ["seed-1/teacher", "seed-1/mlp-raw", "seed-1/mlp-raw"]
    one, other = (tmp_path / name / "seed-1/teacher/states.parquet" for name in "ab")
    assert one.samefile(other)
    names = [row["name"] for row in compare_runs([tmp_path / name for name in reads], resamples=100)["rows"]]
    assert names == ["recent=8, delay_minutes=0, of=state", "recent=2, delay_minutes=30, of=state",
                     "recent=8, delay_minutes=0, of=token"]  # fmt: skip
    distilled = [tmp_path / name / "seed-1/mlp-distilled/model.safetensors" for name in reads]
    assert not same_weights(distilled[0], distilled[1])


@pytest.mark.slow
def test_a_sweep_over_ways_to_read_states_trains_one_teacher_and_one_raw_student(
    feed_path: Path, recdistill: Verb, tmp_path: Path
) -> None:
    plain = {"run": config(feed_path, **QUICK, **WIDTH), "grid": {"states.recent": [2, 4]}}
    file = write_config(tmp_path / "sweep.yaml", plain)
    out = tmp_path / "out"
    done = answer(recdistill("sweep", file, "--out", out, "--workers", 1, "--json"))
    assert [entry["status"] for entry in done["runs"].values()] == ["finished", "finished"]
    assert len(list((out / "shared/steps").iterdir())) == 2
    told = [read(path)["states"]["recent"] for path in sorted(out.glob("runs/*/seed-1/mlp-distilled/manifest.json"))]
    assert told == [2, 4]


def test_a_transformers_teacher_has_states_too(feed_path: Path, tmp_path: Path) -> None:
    teacher = {**TEACHER, "name": "hf", "kv_heads": 1}
    run_of(tmp_path, config(feed_path, **QUICK, teacher=teacher, states={"width": 2, "bits": 2, "of": "head"})).all()
    states = read_states(tmp_path / "seed-1/teacher/states.parquet")
    assert (len(states), states.width, states.packed.shape[1]) == (3000, 2, 1)
    assert len(np.unique(states.packed)) > 3


def test_a_raw_student_that_chooses_examples_sees_its_own_columns(whole_run: Path, feed: ParquetSource) -> None:
    run = run_of(whole_run, config(Path(feed.path), **QUICK, **WIDTH, **BESIDE))
    seen = _seen(run, feed, (100, 300), "", 1, lambda what, done, total: None)
    module = raw_student(run, StateSource(feed, 4), "", 1)
    assert seen.embedding.shape == (200, module.student.width)


def test_states_that_were_changed_are_refused(whole_run: Path, feed_path: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "run", config(feed_path, **QUICK, **WIDTH)
    run_of(out, plain).teachers()
    path = out / "seed-1/teacher/states.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(IntegrityError, match="a file of the run is absent or was changed since it was written"):
        run_of(out, plain).students()


def test_a_student_without_a_run_directory_is_not_blind_unnoticed(whole_run: Path, feed: ParquetSource) -> None:
    run = run_of(whole_run, config(Path(feed.path), **QUICK, **WIDTH, **BESIDE))
    source, split = run.dataset()
    teacher = read(whole_run / "seed-1/teacher/manifest.json")
    with pytest.raises(UsageError, match="the student is to read hidden states, and no run directory is given"):
        fit_student(run.plan, "mlp", source, split, run.store, teacher, 1, whole_run / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": {"width": -2}}, "width must be even and >= 0, got -2"),
        ({"states": {"width": 3}}, "width must be even and >= 0, got 3"),
        ({"states": {"width": 4, "bits": 9}}, r"bits must lie in \[2, 8\], got 9"),
        ({"states": {"recent": 0}}, "recent must be >= 1, got 0"),
        ({"states": {"delay_minutes": -1}}, "delay_minutes must be >= 0, got -1"),
        ({"states": {"of": ""}}, "of must name an activation of the teacher"),
        (
            {**WIDTH, "capture": {"mode": "out_of_fold"}},
            "hidden states are those of the run's own teacher before each update: they need capture.mode 'prequential'",
        ),
        ({**WIDTH, "capture": {"mode": "leaky", "allow_leaky": True}}, "hidden states are those of the run's own"),
        ({**WIDTH, "labels": {"versions": ["somebody"]}}, "hidden states are those of the run's own teacher"),
    ],
)
def test_settings_out_of_range_are_refused(
    changes: dict[str, Any], message: str, feed_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path / "out", config(feed_path, **QUICK, **changes))


def test_an_activation_that_the_runs_teacher_has_not_ends_the_run(feed_path: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="HSTUTeacher gives no hidden activation 'soul'"):
        run_of(tmp_path / "out", config(feed_path, **QUICK, states={"width": 4, "of": "soul"})).all()
