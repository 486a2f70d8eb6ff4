"""Checks for exporters. They export a small student of the kit, with history, whatever the plugin's own models are."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.interfaces import Exporter, ServingModule
from recdistill_core.serving import Loaded, largest_difference
from recdistill_core.testing.cases import Case, check, exercise
from recdistill_core.testing.compare import differences
from recdistill_core.testing.feed import SampleStudent
from recdistill_core.testing.samples import sample_batch

#: Rows that are exported with, and rows that are scored: a tracer that fixes N is found out.
TRACED, SCORED = 5, (1, 2, 7, 64)
#: Values that are looked for, byte for byte, in what was written.
MARK = 1234.56787109375


@dataclass
class Served:
    """A student of the kit as it is served, its inputs, and an auxiliary tower that must not be served."""

    student: SampleStudent
    module: ServingModule
    auxiliary: nn.Module

    def inputs(self, case: Case, rows: int) -> dict[str, Tensor]:
        """``{name: [rows, ...]}``."""
        return self.student.inputs(sample_batch(case.schema, rows, seed=rows))


def served(case: Case) -> Served:
    """The student, after training: its auxiliary tower is still in memory, full of ``MARK``."""
    torch.manual_seed(5)
    student = SampleStudent(case.schema, case.schema.tasks)
    main, auxiliary = student.tower(), student.tower()
    with torch.no_grad():
        for parameter in auxiliary.parameters():
            parameter.fill_(MARK)
    return Served(student, student.serving_module(main), auxiliary)


def exported(case: Case, made: Exporter, what: Served, folder: str = "out") -> Path:
    """Export into a folder of its own; the place of what was written."""
    home = case.folder / folder
    home.mkdir()
    path = home / f"model{made.suffix}"
    made.export(what.module, what.inputs(case, TRACED), path)
    return path


def require_parity(case: Case, made: Exporter, what: Served, loaded: Loaded, inputs: Any, when: str) -> None:
    """Fail unless loaded and eager logits agree within the exporter's tolerance."""
    try:
        gap = largest_difference(what.module, loaded, inputs)
    except Exception as error:  # whatever its format's runtime raises
        case.fail(f"fails {when}: {type(error).__name__}: {' '.join(str(error).split())}")
    case.require(
        gap <= made.tolerance, f"differs from the module by {gap:.3g} {when}; it promises {made.tolerance:.3g}"
    )


@exercise("exporter")
def run_exporter(case: Case, made: Exporter) -> Mapping[str, Any]:
    """Export, load, score."""
    what = served(case)
    inputs = {name: tensor.numpy() for name, tensor in what.inputs(case, 7).items()}
    return {"logits": made.load(exported(case, made, what))(inputs), "tolerance": made.tolerance}


@check("exporter")
def loaded_logits_are_the_modules_own(case: Case) -> None:
    """What is loaded gives the module's logits within ``tolerance``, for any number of rows."""
    made, what = case.build(), served(case)
    case.require(
        0 <= made.tolerance < 1, f"promises a tolerance of {made.tolerance}; a logit that far off is another one"
    )
    loaded = made.load(exported(case, made, what))
    for rows in SCORED:
        require_parity(case, made, what, loaded, what.inputs(case, rows), f"for {rows} rows")


@check("exporter")
def unknown_ids_are_mapped_as_by_the_module(case: Case) -> None:
    """Ids outside the vocabulary, negative ones included, give what they give in the module."""
    made, what = case.build(), served(case)
    loaded = made.load(exported(case, made, what))
    for unknown in (-1, -(2**40), 10_000, 2**40):
        inputs = {name: tensor.clone() for name, tensor in what.inputs(case, 6).items()}
        for tensor in inputs.values():
            if not tensor.is_floating_point():
                tensor[::2] = unknown
        require_parity(case, made, what, loaded, inputs, f"for rows with the id {unknown}, which no vocabulary has")


@check("exporter")
def it_loads_where_it_was_moved_to(case: Case) -> None:
    """The file or folder works after it was moved, with nothing left where it was."""
    made, what = case.build(), served(case)
    path = exported(case, made, what)
    home = case.folder / "elsewhere"
    shutil.move(path.parent, home)
    require_parity(case, made, what, made.load(home / path.name), what.inputs(case, 7), "after it was moved")


@check("exporter")
def it_writes_one_file_or_folder(case: Case) -> None:
    """``export`` writes at ``path`` alone: a file where there is a ``suffix``, a folder where there is none."""
    made = case.build()
    path = exported(case, made, served(case))
    found = sorted(entry.name for entry in path.parent.iterdir())
    case.require(found == [path.name], f"writes {found} where {path.name!r} alone was asked for")
    kind = "a folder" if path.is_dir() else "a file"
    case.require(path.is_dir() == (made.suffix == ""), f"writes {kind} and has the suffix {made.suffix!r}")


@check("exporter")
def auxiliary_towers_are_absent(case: Case) -> None:
    """Nothing of the towers that exist for training is in what is written."""
    made, what = case.build(), served(case)
    path = exported(case, made, what)
    mark = torch.full((4,), MARK).numpy().tobytes()
    places = [name for name, data in contents(path) if mark in data]
    case.require(not places, f"writes the weights of an auxiliary tower into {', '.join(places)}")


@check("exporter")
def no_row_of_the_log_is_written(case: Case) -> None:
    """The rows given to ``export`` are not in what is written."""
    made, what = case.build(), served(case)
    inputs = what.inputs(case, TRACED)
    inputs["numeric"] = torch.full_like(inputs["numeric"], MARK)
    path = case.folder / f"model{made.suffix}"
    made.export(what.module, inputs, path)
    mark = inputs["numeric"].numpy().tobytes()
    places = [name for name, data in contents(path) if mark in data]
    case.require(not places, f"writes rows of the log, which were given to trace with, into {', '.join(places)}")


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file under ``path`` with its bytes; archives are looked into."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield from ((f"{file.name}/{name}", archive.read(name)) for name in archive.namelist())
        elif file.is_file():
            yield file.name, file.read_bytes()


@check("exporter")
def the_module_is_left_as_it_was(case: Case) -> None:
    """``export`` changes no weight, no mode and no gradient setting of the module."""
    made, what = case.build(), served(case)

    def look() -> dict[str, Any]:
        named = dict(what.module.named_parameters())
        state = {name: value.clone() for name, value in what.module.state_dict().items()}
        modes = {f"{name}.training": part.training for name, part in what.module.named_modules()}
        return state | modes | {f"{name}.requires_grad": entry.requires_grad for name, entry in named.items()}

    before = look()
    exported(case, made, what)
    changed = differences(before, look())
    case.require(not changed, f"changes the module that it exports: {', '.join(changed[:5])}")


class Broken(ServingModule):
    """A module whose forward fails."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Fails."""
        raise RuntimeError("the kit's module that cannot be exported")


@check("exporter")
def a_failed_export_leaves_nothing_behind(case: Case) -> None:
    """A module that cannot be exported is an error, and no file is left."""
    made, what = case.build(), served(case)
    home = case.folder / "out"
    home.mkdir()
    broken = Broken(what.student, what.student.tower())
    try:
        made.export(broken, what.inputs(case, TRACED), home / f"model{made.suffix}")
    except Exception:
        left = sorted(entry.name for entry in home.iterdir())
        case.require(not left, f"leaves {', '.join(left)} behind when an export fails")
    else:
        case.fail("says nothing when the module that it exports raises")
