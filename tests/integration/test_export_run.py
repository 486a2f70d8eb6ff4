"""Exports of a run: what is written, done once, compared with the student, and refused where it differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from pipeline_cases import config

from recdistill_core import BuildContext, Component
from recdistill_core.cli import main
from recdistill_core.config import load_yaml
from recdistill_core.errors import IntegrityError, PluginError, RecdistillError, UsageError
from recdistill_core.registry import Registry, installed
from recdistill_export.torch_export import TorchExport
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.run import Run

SMALL: Mapping[str, Any] = {"seeds": [1], "students": ["mlp", "dcn"], "teacher_training": {"batch_size": 512}}
STEP = "seed-1/dcn-distilled/export/torch_export"


def run_with(out: Path, plain: Mapping[str, Any], registry: Registry | None = None) -> Run:
    registry = registry or installed()
    return Run(make_plan(plain, registry), out, registry)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, feed_path: Path) -> Path:
    """A finished run with exports; read-only."""
    out = tmp_path_factory.mktemp("export") / "run"
    run_with(out, config(feed_path, **SMALL, exporters=["torch_export"])).all()
    return out


@pytest.fixture
def run(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(exported, tmp_path / "run")
    return tmp_path / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def times(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.glob("seed-*/**/model.*"))}


def test_every_distilled_student_is_exported_and_scores_as_evaluated(exported: Path, feed: ParquetSource) -> None:
    found = sorted(str(path.relative_to(exported)) for path in exported.rglob("*.pt2"))
    assert found == [f"seed-1/{label}-distilled/export/torch_export/model.pt2" for label in ("dcn", "mlp")]
    facts = read(exported / STEP / "manifest.json")
    assert facts["exporter"] == {"name": "torch_export", "tolerance": 1e-5}
    assert (facts["student"], facts["seed"], facts["path"], facts["rows"]) == ("dcn", 1, "model.pt2", 512)
    assert list(facts["files"]) == ["model.pt2"]
    assert 0 <= facts["largest_difference"] <= facts["tolerance"] == 1e-5
    assert read(exported / "manifest.json")["exports"][STEP] == facts
    assert read(exported / "manifest.json")["plugins"]["exporter 'torch_export'"].startswith("recdistill ")
    entry = {"tolerance": 1e-5, "largest_difference": facts["largest_difference"]}
    assert read(exported / "metrics.json")["exports"]["dcn"] == {"torch_export": entry}
    row = f"| dcn | torch_export | {facts['largest_difference']:.1e} | 1.0e-05 |"
    assert "\n## Exports\n\n| distilled student | exporter |" in (exported / "summary.md").read_text()
    assert row in (exported / "summary.md").read_text()
    plan = make_plan(load_yaml(exported / "config.yaml"), installed())
    for label in ("dcn", "mlp"):
        scored = pq.read_table(exported / f"predictions/seed-1-{label}-distilled.parquet")
        rows = np.flatnonzero(np.isin(feed.column("example_id"), scored["example_id"].to_numpy()))
        assert len(rows) == len(scored) > 500
        student = plan.students[label].build(BuildContext(feed.schema, ("click",)))
        inputs = student.inputs(feed.batch(rows, student.history))
        program = torch.export.load(exported / f"seed-1/{label}-distilled/export/torch_export/model.pt2").module()
        with torch.no_grad():
            logit = program(**inputs)["click"].numpy()
        np.testing.assert_allclose(logit, scored["logit"].to_numpy(), atol=2e-5)


def test_without_exporters_nothing_is_exported_and_the_report_has_no_table(run: Path, feed_path: Path) -> None:
    shutil.rmtree(run / "seed-1/mlp-distilled/export")
    results = run_with(run, config(feed_path, **SMALL)).evaluate()
    assert results["exports"] == read(run / "manifest.json")["exports"] == {}
    assert "Exports" not in (run / "summary.md").read_text()
    assert not (run / "seed-1/mlp-distilled/export").exists()


def test_a_finished_export_is_not_done_again(run: Path, feed_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("an export was done again")

    before, results = times(run), read(run / "metrics.json")
    monkeypatch.setattr(TorchExport, "export", never)
    again = run_with(run, config(feed_path, **SMALL, exporters=["torch_export"])).all()
    assert json.loads(json.dumps(again)) == results
    assert times(run) == before


def test_a_finished_run_takes_other_exporters_and_trains_nothing_again(run: Path, feed_path: Path) -> None:
    before = times(run)
    other = [{"name": "torch_export", "tolerance": 0.5}, "torch_export"]
    results = run_with(run, config(feed_path, **SMALL, exporters=other)).all()
    tolerances = {name: entry["tolerance"] for name, entry in results["exports"]["dcn"].items()}
    assert tolerances == {"torch_export": 0.5, "torch_export-2": 1e-5}
    assert OmegaConf.load(run / "config.yaml").exporters[0].tolerance == 0.5
    after = times(run)
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {f"seed-1/{label}-distilled/export/torch_export/model.pt2" for label in ("dcn", "mlp")}
    with pytest.raises(UsageError, match=r"another configuration: seeds\[0\]: 1 -> 2\n"):
        run_with(run, config(feed_path, **{**SMALL, "seeds": [2]}, exporters=[]))


def test_an_interrupted_export_leaves_nothing_and_is_done_again(
    run: Path, feed_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, calls = TorchExport.export, []

    def dies(self: TorchExport, module: Any, inputs: Any, path: Path) -> None:
        export(self, module, inputs, path)
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    before = times(run)
    unexport(run)
    plain = config(feed_path, **SMALL, exporters=["torch_export"])
    with monkeypatch.context() as patch:
        patch.setattr(TorchExport, "export", dies)
        with pytest.raises(KeyboardInterrupt):
            run_with(run, plain).all()
    assert not (run / "metrics.json").exists()
    assert [path.parts[-4] for path in run.rglob("*.pt2")] == ["mlp-distilled"]
    assert not list(run.rglob("*.part"))
    run_with(run, plain).all()
    assert list(times(run)) == list(before)


def unexport(run: Path) -> None:
    """Put a run back to where it stood before its first export."""
    for path in list(run.rglob("export")):
        shutil.rmtree(path)
    (run / "metrics.json").unlink()


def test_a_changed_export_is_noticed(run: Path, feed_path: Path) -> None:
    path = run / STEP / "model.pt2"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="a file of the run is absent or was changed") as error:
        run_with(run, config(feed_path, **SMALL, exporters=["torch_export"])).all()
    assert f"to do: delete {run / STEP} and run again" in str(error.value)


class Faulty:
    """Writes a folder; ``fault`` is called in ``export`` with nothing, or on the logits that are read back."""

    suffix = ""
    tolerance = 1e-3

    def __init__(self, fault: Callable[[dict[str, Any]], Any], early: bool) -> None:
        self.fault, self.early = fault, early

    def export(self, module: Any, inputs: Any, path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("half")
        self.module = module
        if self.early:
            self.fault({})

    def load(self, path: Path) -> Any:
        def run(inputs: Mapping[str, Any]) -> Any:
            logits = self.module(**{name: torch.tensor(array) for name, array in inputs.items()})
            return self.fault({task: logit.detach().numpy() for task, logit in logits.items()})

        return run


def raises(error: BaseException) -> Callable[[Any], Any]:
    def act(logits: Any) -> Any:
        raise error

    return act


WHO = "exporter 'faulty' and distilled student 'mlp', seed 1"
OWN_FIX = "report it to the exporter's author, or leave it out of 'exporters' and run again: nothing is trained twice"
TAIL = f"\n  where: plugin 'export' (recdistill 0.1.0)\n  to do: {OWN_FIX}"
#: what goes wrong -> (the fault, in export itself?, the error, its text)
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], bool, type[RecdistillError], str]] = {
    "off": (
        lambda logits: {task: logit + np.float32(0.25) for task, logit in logits.items()},
        False,
        IntegrityError,
        f"{WHO}: an exported logit differs from the student's by 0.25, and 0.001 is promised{TAIL}",
    ),
    "not a number": (
        lambda logits: {task: logit * np.float32("nan") for task, logit in logits.items()},
        False,
        IntegrityError,
        f"{WHO}: an exported logit differs from the student's by inf, and 0.001 is promised{TAIL}",
    ),
    "another task": (
        lambda logits: {"like": logits["click"]},
        False,
        IntegrityError,
        "what was exported gives {'like': 'float32 [1]'}, the module gives {'click': 'float32 [1]'}\n"
        f"  where: {WHO}\n  to do: return one float32 array of N logits per task",
    ),
    "raises": (
        raises(ZeroDivisionError("by zero")),
        True,
        PluginError,
        f"{WHO}: the export failed: ZeroDivisionError: by zero{TAIL}",
    ),
    "exits": (raises(SystemExit(3)), True, PluginError, f"{WHO}: the export failed: SystemExit: 3{TAIL}"),
    "refuses": (
        raises(UsageError("only linear students", fix="take one")),
        True,
        UsageError,
        "only linear students\n  to do: take one",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_export_that_differs_or_fails_is_refused_and_leaves_nothing(fault: str, run: Path, feed_path: Path) -> None:
    act, early, kind, text = FAULTS[fault]
    empty = make_dataclass("Empty", [], frozen=True)
    component = Component("faulty", empty, lambda config, context: Faulty(act, early), "wrong", api_version=1)
    registry = installed()
    entry = replace(registry.get("exporter", "torch_export"), component=component)
    registry = replace(registry, found=(*registry.found, entry))
    unexport(run)
    before = times(run)
    with pytest.raises(kind) as error:
        run_with(run, config(feed_path, **SMALL, exporters=["faulty"]), registry).all()
    assert str(error.value) == text
    assert times(run) == before
    assert not list(run.rglob("export"))
    assert not list(run.rglob("*.part"))
    assert not (run / "metrics.json").exists()
    if fault == "off":  # once is enough
        assert run_with(run, config(feed_path, **SMALL)).all()["exports"] == {}, "what the message says to do"


def test_the_verb_exports_a_finished_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["export", str(run), "torch_export", "tolerance=0.5", "--json"])
    assert not done.value.code
    found = json.loads(capsys.readouterr().out)
    assert sorted(found) == [f"seed-1/{label}-distilled/export/torch_export" for label in ("dcn", "mlp")]
    assert read(run / "manifest.json")["exports"] == found
    assert read(run / "metrics.json")["exports"]["dcn"]["torch_export"]["tolerance"] == 0.5
    assert "| dcn | torch_export |" in (run / "summary.md").read_text()
    with pytest.raises(SystemExit) as done:
        main(["export", str(run), "torch_export", "tolerance=0.5"])
    assert str(run / STEP / "model.pt2") in capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit) as done:
        main(["export", str(run), "torch_exprt"])
    assert done.value.code == 4
    assert "no exporter is named 'torch_exprt' (did you mean 'torch_export'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("no run", "this is no run directory"),
        ("no metrics", "the run is not evaluated yet"),
        ("no value", "setting 'tolerance' is not KEY=VALUE"),
    ],
)
def test_the_verb_refuses(what: str, text: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if what == "no metrics":
        (run / "metrics.json").unlink()
    place = run / "seed-1" if what == "no run" else run
    words = ["export", str(place), "torch_export", *(["tolerance"] if what == "no value" else []), "--json"]
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2
    assert json.loads(capsys.readouterr().out)["error"].startswith(text)
