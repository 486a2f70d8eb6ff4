"""Every check of the kit is failed by a component that is wrong on purpose, with a message that names the fault."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from wrong import Wrong

from recdistill_core.testing import CHECKS, run_check
from recdistill_core.testing.cases import Check

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("wrong_*.py"))
WRONG: list[Wrong] = [entry for name in MODULES for entry in importlib.import_module(name).WRONG]


def find(name: str) -> Check:
    (found,) = [check for check in CHECKS if check.name == name]
    return found


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that wrong components say they are registered by."""
    folder = tmp_path_factory.mktemp("modules")
    for name in MODULES:
        for module, source in getattr(importlib.import_module(name), "MODULES", {}).items():
            (folder / f"{module}.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def test_every_check_is_failed_by_somebody() -> None:
    assert {check.name for check in CHECKS} == {wrong.check for wrong in WRONG}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong.check}-{wrong.entry.kind}")
def test_a_wrong_component_fails_its_check(wrong: Wrong) -> None:
    check = find(wrong.check)
    assert check.about(wrong.entry.kind)
    outcome = run_check(wrong.entry, check)
    assert outcome.status == "failed"
    assert wrong.fault in outcome.detail
