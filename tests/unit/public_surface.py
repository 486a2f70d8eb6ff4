"""Prints every public name with its signature, a line each: ``python tests/unit/public_surface.py``.

``public_surface.txt`` holds what it printed when the surface was last changed on purpose.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

FROZEN = Path(__file__).with_suffix(".txt")
#: What plugin authors and writers of training scripts import; a name with an underscore in front is nobody's business.
MODULES = (
    "recdistill_core",
    "recdistill_core.artefact",
    "recdistill_core.batch",
    "recdistill_core.cli",
    "recdistill_core.component",
    "recdistill_core.config",
    "recdistill_core.deprecation",
    "recdistill_core.engine",
    "recdistill_core.errors",
    "recdistill_core.features",
    "recdistill_core.files",
    "recdistill_core.fingerprint",
    "recdistill_core.hookspecs",
    "recdistill_core.interfaces",
    "recdistill_core.label_choice",
    "recdistill_core.labels",
    "recdistill_core.modes",
    "recdistill_core.objective",
    "recdistill_core.ranks",
    "recdistill_core.rawlog",
    "recdistill_core.registry",
    "recdistill_core.sampler",
    "recdistill_core.schedule",
    "recdistill_core.schema",
    "recdistill_core.selection",
    "recdistill_core.serving",
    "recdistill_core.strategy",
    "recdistill_core.testing",
    "recdistill_core.weights",
    "recdistill_external",
    "recdistill_gpsd.ranking",
    "recdistill_lightning",
    "recdistill_parquet.dataset",
    "recdistill_parquet.dataset_writer",
    "recdistill_parquet.labels",
    "recdistill_pipeline.label",
    "recdistill_prune",
)


def surface() -> list[str]:
    """One line per public name, module by module."""
    return [line for name in MODULES for line in _module(importlib.import_module(name))]


def _module(module: ModuleType) -> Iterator[str]:
    names = getattr(module, "__all__", None) or _defined(Path(module.__file__ or ""))
    for name in sorted(name for name in names if not name.startswith("_")):
        value = getattr(module, name)
        home = getattr(value, "__module__", module.__name__)
        if home not in (module.__name__, None) and home in MODULES:
            yield f"{module.__name__}.{name} is {home}.{name}"
        else:
            yield from _describe(f"{module.__name__}.{name}", value)


def _defined(path: Path) -> list[str]:
    """Public names that a source file defines at its top level; imported ones are not its own."""
    found: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
    return [name for name in found if not name.startswith("_")]


def _describe(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"{name}({', '.join(base.__name__ for base in value.__bases__)})"
        yield from _members(name, value)
    elif inspect.isfunction(value):
        yield f"{name}{inspect.signature(value)}"
    elif isinstance(value, int | float | str):
        yield f"{name} = {value!r}"
    else:
        yield f"{name}: {type(value).__name__}"


def _members(name: str, cls: type[Any]) -> Iterator[str]:
    if issubclass(cls, Enum):
        yield from (f"{name}.{member.name} = {member.value!r}" for member in cls)
        return
    if is_dataclass(cls):
        yield from (f"{name}.{entry.name}: {entry.type}{_default(entry)}" for entry in fields(cls))
    elif "__init__" in vars(cls):
        yield f"{name}.__init__{inspect.signature(cls.__init__)}"
    own = {entry.name for entry in fields(cls)} if is_dataclass(cls) else set()
    for member, value in sorted(vars(cls).items()):
        if (member.startswith("_") and member != "__call__") or member in own:
            continue
        plain = inspect.unwrap(getattr(value, "__func__", value))
        if isinstance(value, property):
            yield f"{name}.{member} -> {inspect.signature(value.fget).return_annotation}"  # type: ignore[arg-type]
        elif callable(plain):
            kind = {classmethod: "classmethod ", staticmethod: "staticmethod "}.get(type(value), "")
            yield f"{kind}{name}.{member}{inspect.signature(plain)}"
        else:
            yield f"{name}.{member} = {value!r}"
    notes = inspect.get_annotations(cls)
    yield from (
        f"{name}.{note}: {kind}" for note, kind in notes.items() if note not in own | set(vars(cls)) and note[0] != "_"
    )


def _default(entry: Any) -> str:
    if entry.default is not MISSING:
        return f" = {entry.default!r}"
    return " = ..." if entry.default_factory is not MISSING else ""


if __name__ == "__main__":
    print("\n".join(surface()))
