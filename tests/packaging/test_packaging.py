"""What is on disk, in the wheel and among the entry points is the same, and the wheel works outside the repository."""

from __future__ import annotations

import json
import re
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from clean_cases import ROOT, CleanEnvironment, run

KINDS = ("teachers", "students", "losses", "plugins")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY_POINTS: dict[str, str] = PROJECT["project"]["entry-points"]["recdistill"]

pytestmark = pytest.mark.packaging


def folders() -> list[str]:
    """Package folders under the four source roots that hold a file."""
    return sorted(
        f"{kind}/{path.name}"
        for kind in KINDS
        for path in (ROOT / kind).iterdir()
        if path.is_dir() and path.name != "__pycache__" and any(entry.is_file() for entry in path.iterdir())
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


def test_folders_wheel_and_entry_points_agree() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(["recdistill_core", *folders()])
    assert sorted(ENTRY_POINTS.values()) == sorted(Path(folder).name for folder in folders())
    assert {name: f"recdistill_{name}" for name in ENTRY_POINTS} == ENTRY_POINTS


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_folders_and_not_packages(kind: str) -> None:
    assert not (ROOT / kind / "__init__.py").exists()
    assert [path.name for path in (ROOT / kind).glob("*.py")] == []


def test_wheel_holds_the_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == {"recdistill_core", *ENTRY_POINTS.values()}
    on_disk = {
        path.relative_to(folder.parent).as_posix()
        for folder in (ROOT / "recdistill_core", *(ROOT / name for name in folders()))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(names) == sorted(on_disk)


def test_wheel_holds_the_files_that_are_not_python(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    typed = {f"{package}/py.typed" for package in ("recdistill_core", *ENTRY_POINTS.values())}
    assert {"recdistill_pipeline/demo.yaml", *typed} - names == set()


def test_constraints_pin_every_direct_dependency() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"]]
    asked += [line for extra in ("test", "docs", "ray", "bench") for line in extras[extra]]
    names = {re.split(r"[<>=; \[]", line)[0].lower() for line in asked}
    pinned = {
        line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert names - pinned == set()


def test_sdist_holds_what_it_takes_to_test(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "CONTRIBUTING.md",
        "changelog.d/README.md",
        ".ci/run",
        ".github/workflows/ci.yml",
        ".pre-commit-config.yaml",
        "benchmarks/README.md",
        "docs/README.md",
        "examples/coat_to_csv.py",
        "examples/plugin-fm-student/.github/workflows/ci.yml",
        "examples/plugin-fm-student/src/recdistill_fm/student.py",
        "tests/packaging/test_packaging.py",
    }
    assert wanted - names == set()


def test_wheel_works_in_a_clean_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    clean = CleanEnvironment(tmp_path / "clean", [wheel])
    where = run(clean.python, "-c", "import recdistill_core; print(recdistill_core.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(clean.site)
    rows = json.loads(run(clean.recdistill, "plugins", "list", "--json", cwd=tmp_path))
    ours = [row for row in rows if row["distribution"] == "recdistill"]
    assert {row["name"]: row["reason"] for row in ours} == dict.fromkeys(ENTRY_POINTS, "")
    assert {row["status"] for row in ours} == {"ok"}
