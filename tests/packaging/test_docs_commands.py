"""Pages whose commands run: in order, with their files, in a fresh environment with the wheel of this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from clean_cases import CleanEnvironment, build_wheel
from docs_cases import PAGES, needs_shell, page_name, run_page

pytestmark = [pytest.mark.packaging, pytest.mark.slow]
#: Commands that every environment has; a fresh one here has only their modules.
MODULES_AS_COMMANDS = ("pip", "pytest")


def test_the_tutorial_is_among_them() -> None:
    assert "docs/tutorial.md" in [page_name(page) for page in PAGES if needs_shell(page)]


@pytest.mark.parametrize("page", [page for page in PAGES if needs_shell(page)], ids=page_name)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    clean = CleanEnvironment(tmp_path / "clean", [build_wheel(tmp_path)])
    for name in MODULES_AS_COMMANDS:
        command = clean.python.parent / name
        command.write_text(f'#!/bin/sh\nexec "{clean.python}" -m {name} "$@"\n')
        command.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    run_page(page, folder, environment(clean), str(clean.python))


def environment(clean: CleanEnvironment) -> dict[str, str]:
    """As after ``activate``; pip fetches nothing, and builds with what this environment has."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RECDISTILL_"))}
    for name in ("PYTHONPATH", "PYTHONHOME"):
        outside.pop(name, None)
    return {
        **outside,
        "VIRTUAL_ENV": str(clean.python.parent.parent),
        "PATH": f"{clean.python.parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "MPLBACKEND": "Agg",
        "COLUMNS": "120",
    }
