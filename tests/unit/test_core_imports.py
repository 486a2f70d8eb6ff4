"""The core is nouns and wiring: what it must not import, and what a hook module must not import either."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEVER_IN_CORE = {"lightning", "pytorch_lightning", "xformers", "transformers", "pyarrow", "torchmetrics", "duckdb"}
HEAVY = {"torch", "matplotlib", "pandas", "onnxruntime", "ray", *NEVER_IN_CORE}
HOOK_MODULES = sorted(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["recdistill"].values()
)

IMPORT_CORE = """
import importlib, json, pkgutil, sys
import recdistill_core
names = [m.name for m in pkgutil.walk_packages(recdistill_core.__path__, "recdistill_core.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted({n.partition(".")[0] for n in sys.modules})]))
"""
IMPORT_HOOKS = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    found[name] = sorted({n.partition(".")[0] for n in set(sys.modules) - before})
print(json.dumps(found))
"""


def run_python(code: str, *arguments: str) -> object:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_core_imports_no_framework() -> None:
    names, loaded = run_python(IMPORT_CORE)  # type: ignore[misc]  # the script prints two lists
    assert {"recdistill_core.cli", "recdistill_core.interfaces", "recdistill_core.registry"} <= set(names)
    assert NEVER_IN_CORE & set(loaded) == set()


def test_hook_modules_import_nothing_heavy() -> None:
    found = run_python(IMPORT_HOOKS, "recdistill_core", "recdistill_core.cli", *HOOK_MODULES)
    assert isinstance(found, dict)
    assert {name: heavy for name, loaded in found.items() if (heavy := sorted(HEAVY & set(loaded)))} == {}


@pytest.mark.parametrize("name", ["Batch", "Student", "Schema"])
def test_lazy_names_of_the_core_are_there(name: str) -> None:
    import recdistill_core

    assert name in recdistill_core.__all__
    assert getattr(recdistill_core, name).__name__ == name
