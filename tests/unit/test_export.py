"""The exporter ``torch_export``: every student, any number of rows, read without recdistill, damage refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_cases import SCHEMA, make_batch
from numpy.typing import NDArray
from torch import Tensor, nn

from recdistill_core import BuildContext, Student
from recdistill_core.config import make
from recdistill_core.errors import ConfigError, IntegrityError, UsageError
from recdistill_core.files import whole_or_absent
from recdistill_core.interfaces import Exporter, ServingModule
from recdistill_core.registry import installed
from recdistill_core.serving import largest_difference, with_named_inputs

STUDENTS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [8], "recent": 3},
    "mlp-without-history": {"name": "mlp", "hidden": [8], "recent": 0},
    "mlp-dropout": {"name": "mlp", "hidden": [8], "recent": 3, "dropout": 0.5},
    "dcn": {"name": "dcn", "hidden": [8], "recent": 3},
    "dcn-without-history": {"name": "dcn", "hidden": [8], "recent": 0, "rank": 2, "tower": 0},
}
WITHOUT_RECDISTILL = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("recdistill"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import numpy as np, torch
inputs = {name: torch.tensor(array) for name, array in np.load(sys.argv[2]).items()}
logits = torch.export.load(sys.argv[1]).module()(**inputs)
np.savez(sys.argv[3], **{task: logit.detach().numpy() for task, logit in logits.items()})
"""


def serving(spec: dict[str, Any]) -> tuple[Student, ServingModule]:
    torch.manual_seed(0)
    student: Student = make(installed(), "student", spec, BuildContext(SCHEMA, SCHEMA.tasks))
    return student, student.serving_module(student.tower())


def exporter(**settings: Any) -> Exporter:
    made: Exporter = make(installed(), "exporter", {"name": "torch_export", **settings})
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, ServingModule, Path]:
    student, module = serving(STUDENTS["dcn"])
    path = tmp_path_factory.mktemp("export") / "model.pt2"
    exporter().export(module, student.inputs(make_batch(5)), path)
    return student, module, path


def hostile(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows with ids below and beyond every vocabulary."""
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    for tensor in changed.values():
        if tensor.dtype == torch.int64 and len(tensor):
            tensor[0] = -(2**40)
            tensor[-1] = 2**40
    return changed


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_gives_its_own_logits_for_any_number_of_rows(name: str, tmp_path: Path) -> None:
    student, module = serving(STUDENTS[name])
    made = exporter()
    weights = {key: value.clone() for key, value in module.state_dict().items()}
    made.export(module, student.inputs(make_batch(4)), tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert not module.training
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in weights.items())
    loaded = made.load(tmp_path / "model.pt2")
    for rows in (1, 2, 7, 50):
        inputs = student.inputs(make_batch(rows, seed=rows))
        assert largest_difference(module, loaded, inputs) <= made.tolerance
        assert largest_difference(module, loaded, hostile(inputs)) <= made.tolerance
    nothing = {key: value[:0].numpy() for key, value in student.inputs(make_batch(2)).items()}
    assert {task: logit.shape for task, logit in loaded(nothing).items()} == {"click": (0,), "like": (0,)}


def test_ids_outside_the_vocabulary_read_the_row_that_stands_for_the_unknown(
    exported: tuple[Student, ServingModule, Path],
) -> None:
    student, _, path = exported
    loaded = exporter().load(path)
    inputs = {name: tensor.numpy().copy() for name, tensor in student.inputs(make_batch(6)).items()}
    answers = []
    for unknown in (0, -1, 20, 2**40):
        inputs["categorical"][:, 0] = unknown
        answers.append(loaded(inputs)["click"])
    assert all(np.array_equal(answers[0], answer) for answer in answers[1:])


def test_the_file_is_read_without_recdistill_and_holds_no_row_and_no_path(
    exported: tuple[Student, ServingModule, Path], tmp_path: Path
) -> None:
    student, module, path = exported
    moved = tmp_path / "elsewhere" / "served.pt2"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    inputs = student.inputs(make_batch(9))
    np.savez(tmp_path / "in.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})
    words = [sys.executable, "-W", "ignore", "-c", WITHOUT_RECDISTILL]
    done = subprocess.run([*words, moved, tmp_path / "in.npz", tmp_path / "out.npz"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = module(**inputs)
    found = np.load(tmp_path / "out.npz")
    assert sorted(found) == sorted(wanted)
    for task, logit in wanted.items():
        np.testing.assert_allclose(found[task], logit.numpy(), atol=1e-5)
    with zipfile.ZipFile(path) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, data in whole.items() if str(Path(__file__).parents[2]).encode() in data]
    sample = next(data for name, data in whole.items() if "sample_inputs" in name)
    assert len(sample) < 2000  # an empty record; the rows alone would be larger
    assert torch.export.load(path).example_inputs is None


def test_wrong_inputs_are_named(exported: tuple[Student, ServingModule, Path]) -> None:
    student, _, path = exported
    loaded = exporter().load(path)
    inputs = {name: tensor.numpy() for name, tensor in student.inputs(make_batch(3)).items()}
    with pytest.raises(UsageError) as error:
        loaded({name: array for name, array in inputs.items() if name != "numeric"})
    assert str(error.value) == (
        "the exported model takes categorical, numeric, history_item, history_action, history_seen, "
        "got categorical, history_item, history_action, history_seen\n"
        f"  where: {path}\n"
        "  to do: give the tensors of Student.inputs, by name"
    )


def test_a_damaged_file_is_refused(exported: tuple[Student, ServingModule, Path], tmp_path: Path) -> None:
    whole = exported[2].read_bytes()
    for name, data in {"half.pt2": whole[: len(whole) // 2], "empty.pt2": b""}.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="the exported model cannot be read: ") as error:
            exporter().load(path)
        assert f"where: {path}" in str(error.value)
        assert "to do: export the student again" in str(error.value)
    with pytest.raises(IntegrityError, match="cannot be read"):
        exporter().load(tmp_path / "absent.pt2")


def test_a_tolerance_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="tolerance must be > 0, got 0"):
        exporter(tolerance=0.0)
    assert exporter(tolerance=0.25).tolerance == 0.25


class Branches(nn.Module):
    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        logit = inputs["numeric"].sum(1)
        return {"click": logit if float(logit.sum()) > 0 else -logit}


def test_a_module_that_cannot_be_traced_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="data-dependent"):
        exporter().export(Branches(), {"numeric": torch.ones(3, 2)}, tmp_path / "model.pt2")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


class Sums(nn.Module):
    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"click": inputs["numeric"].sum(1)}


@pytest.mark.parametrize(
    ("answer", "difference"),
    [
        ([3.0, 3.0], 0.0),
        ([3.0, 2.5], 0.5),
        ([3.25, 2.5], 0.5),
        ([3.0, np.nan], np.inf),
        ([np.inf, 3.0], np.inf),
    ],
)
def test_the_largest_difference_is_over_all_rows(answer: list[float], difference: float) -> None:
    def loaded(inputs: Any) -> dict[str, NDArray[np.float32]]:
        return {"click": np.array(answer, dtype=np.float32)}

    assert largest_difference(Sums(), loaded, {"numeric": torch.ones(2, 3)}) == difference  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"click": np.zeros(2)}, "{'click': 'float64 [2]'}"),
        ({"click": np.zeros((2, 1), np.float32)}, "{'click': 'float32 [2, 1]'}"),
        ({"like": np.zeros(2, np.float32)}, "{'like': 'float32 [2]'}"),
        ({}, "{}"),
    ],
)
def test_answers_of_another_shape_type_or_task_are_refused(answer: dict[str, Any], shown: str) -> None:
    with pytest.raises(IntegrityError) as error:
        largest_difference(Sums(), lambda inputs: answer, {"numeric": torch.ones(2, 3)})  # type: ignore[arg-type]
    assert str(error.value) == (
        f"what was exported gives {shown}, the module gives {{'click': 'float32 [2]'}}\n"
        "  to do: return one float32 array of N logits per task"
    )


def test_a_module_with_named_inputs_says_their_names() -> None:
    import inspect

    named = with_named_inputs(Sums(), ["numeric", "other"])  # type: ignore[arg-type]
    assert list(inspect.signature(named.forward).parameters) == ["numeric", "other"]
    assert torch.equal(named(numeric=torch.ones(2, 3))["click"], torch.full((2,), 3.0))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_written_is_there_whole_or_not_at_all(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "model"

    def write(place: Path, text: str) -> None:
        (place.parent / "by-product").write_text("x")
        if kind == "folder":
            place.mkdir()
            place = place / "weights"
        place.write_text(text)

    def interrupted() -> None:
        with whole_or_absent(home) as place:
            write(place, "half")
            assert not home.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with whole_or_absent(home) as place:
        write(place, "whole")
    assert list(tmp_path.iterdir()) == [home]
    assert (home if kind == "file" else home / "weights").read_text() == "whole"
    (tmp_path / ".model.part").mkdir()  # of a process that was killed
    (tmp_path / ".model.part/model").write_text("half")
    if kind == "file":
        with whole_or_absent(home) as place:
            assert not place.exists()
            place.write_text("newer")
        assert home.read_text() == "newer"
