"""What people who had never seen the project ran into, and must not run into again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from core_cases import make_batch, points, write_plugin
from torch import Tensor, nn

from recdistill_core import BuildContext, HistoryWindow, Schema, Scores, Student, TrainableTeacher, installed, make
from recdistill_core.errors import PluginError, UsageError, WiringError
from recdistill_core.fingerprint import package_digest
from recdistill_core.objective import Objective
from recdistill_core.registry import discover
from recdistill_lightning import StudentModule, TeacherModule
from recdistill_pipeline.label import _Job
from recdistill_pipeline.rundir import RunDirectory
from recdistill_pipeline.scoring import cost

HINGE = "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('hinge')]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[name]


def test_a_run_does_not_go_on_with_models_of_other_code(tmp_path: Path) -> None:
    before, after = {"student 'x'": "rd-x 1.0, code 1"}, {"student 'x'": "rd-x 1.0, code 2"}
    RunDirectory(tmp_path / "run", {"a": 1}, before)
    RunDirectory(tmp_path / "run", {"a": 1}, after)  # nothing is trained yet
    step = tmp_path / "run" / "seed-1" / "x-raw"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    RunDirectory(tmp_path / "run", {"a": 1}, after)
    with pytest.raises(UsageError) as error:
        RunDirectory(tmp_path / "run", {"a": 1}, before)
    assert str(error.value) == (
        "a plugin is another one than the one that trained this run: student 'x': rd-x 1.0, code 2 -> "
        "rd-x 1.0, code 1\n"
        f"  where: {tmp_path / 'run'}\n"
        "  to do: give another --out to train with the code as it is now, or bring the earlier code back"
    )
    assert json.loads((tmp_path / "run" / "plugins.json").read_text()) == after


def test_the_digest_of_a_package_follows_its_code(folder: Path) -> None:
    package = folder / "fake_package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (package / "deep" / "model.py").write_text("y = 1\n")
    first = package_digest("fake_package.hooks")
    assert package_digest("fake_package") == first
    (package / "notes.txt").write_text("no code")
    assert package_digest("fake_package") == first
    (package / "deep" / "model.py").write_text("y = 2\n")
    assert package_digest("fake_package") != first
    (folder / "fake_single.py").write_text("x = 1\n")
    single = package_digest("fake_single")
    (folder / "fake_single.py").write_text("x = 2\n")
    assert package_digest("fake_single") != single


@pytest.mark.parametrize("name", ["rd-hinge:hinge", "rd_hinge:hinge", "RD.Hinge:hinge", "hinge"])
def test_a_distribution_is_compared_as_pip_does(folder: Path, name: str) -> None:
    write_plugin(folder, "hinge", HINGE)
    assert discover(points(folder)).get("loss", name).qualified == "rd-hinge:hinge"


def test_what_a_hook_module_prints_does_not_reach_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plugin(folder, "loud", "print('hello')\n" + HINGE)
    discover(points(folder))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_where_a_plugin_failed_can_be_seen(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from recdistill_core import shell

    write_plugin(folder, "broken", "def deep():\n    raise KeyError('hm')\n\n\ndeep()\n")
    registry = discover(points(folder))
    monkeypatch.setattr(shell, "installed", lambda: registry)
    shell.plugins_list(json=True, traceback=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["reason"] == "KeyError: 'hm'"
    assert "plugin 'broken' (rd-broken 1.0)" in captured.err
    assert "fake_broken.py" in captured.err
    assert "in deep" in captured.err
    shell.plugins_list(json=True, traceback=False)
    assert capsys.readouterr().err == ""


def test_a_version_of_the_contract_is_a_number(folder: Path) -> None:
    write_plugin(folder, "text", HINGE.replace("loss('hinge')", "loss('hinge', api_version='1')"))
    reason = discover(points(folder)).plugins[0].reason
    assert reason == "TypeError: component 'hinge': api_version must be a whole number, got '1'"


def test_a_script_hears_of_unmet_needs_too() -> None:
    bare = BuildContext(Schema(tasks=("click",), vocabularies={"item_id": 3}), ("click",))
    with pytest.raises(WiringError, match="debiaser 'ipw' needs propensity"):
        make(installed(), "debiaser", "ipw", bare)
    assert make(installed(), "debiaser", "ipw") is not None, "without a schema there is nothing to compare with"


class Narrow(Student):
    """Says another width than it has."""

    width = 5

    def inputs(self, batch: Any) -> dict[str, Tensor]:
        return {"numeric": batch.numeric}

    def encode(self, **inputs: Tensor) -> Tensor:
        return inputs["numeric"][:, :1].repeat(1, 4)

    def tower(self) -> nn.Module:
        return nn.Linear(self.width, 1)


class Wide(Narrow):
    """Towers that give no logits by task."""

    width = 4


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (Narrow, r"Narrow encodes 8 rows as \[8, 4\], its width is 5"),
        (Wide, "Wide gave logits of NoneType for task 'click' of 8 rows"),
    ],
)
def test_a_student_of_the_wrong_shape_is_named(student: type[Student], message: str) -> None:
    module = StudentModule(student(), {"click": Objective("click")})
    with pytest.raises(PluginError, match=message):
        module.training_step(make_batch(8), 0)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_the_window_of_the_newest_events_holds_them(count: int) -> None:
    window = HistoryWindow.newest(count)
    assert window.length - window.stride + 1 >= count
    assert window.length == 2 * count


def test_fused_attention_costs_flops() -> None:
    class Source:
        def batch(self, rows: Any, history: Any) -> Any:
            return torch.ones(len(rows), 2, 4, 8)

    def attend(x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    found = cost(nn.Identity(), attend, Source(), (0, 4), None)  # type: ignore[arg-type]  # all that cost asks of them
    assert found["flops_per_impression"] == 2 * 2 * (2 * 4 * 4 * 8)  # heads x (scores and values)


class Peeking(Narrow):
    """Reads the label of the row that it encodes."""

    width = 4

    def inputs(self, batch: Any) -> dict[str, Tensor]:
        return {"numeric": batch.numeric + batch.labels["click"][:, None]}


def test_a_model_is_not_shown_the_outcome_that_it_is_trained_on() -> None:
    module = StudentModule(Peeking(), {"click": Objective("click")})
    with pytest.raises(KeyError, match="click"):
        module.training_step(make_batch(8), 0)
    shown = make_batch(8).without_outcomes()
    assert (shown.labels, shown.observed, shown.teacher) == ({}, {}, None)
    assert torch.equal(shown.numeric, make_batch(8).numeric)


def test_a_leaking_teacher_fails_before_it_can_be_captured_or_asked() -> None:
    class Leaky(TrainableTeacher):
        """Adds the label to its logit."""

        def training_scores(self, batch: Any) -> Scores:
            return Scores({"click": batch.numeric[:, 0] + batch.labels["click"]})

    with pytest.raises(KeyError, match="click"):
        TeacherModule(Leaky(), tasks=["click"]).training_step(make_batch(8), 0)
    job = _Job(Leaky(), "v", ("click",), 10, 10.0, lambda done, total: None)
    with pytest.raises(KeyError, match="click"):
        job.run([make_batch(8)], 8)
