"""House rules that a glance at the tree can check."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    ROOT / "recdistill_core",
    *sorted(
        path for kind in ("teachers", "students", "losses", "plugins") for path in ROOT.glob(f"{kind}/recdistill_*")
    ),
]
MOST_LINES = 400
#: A path on somebody's machine, or a package index that only some machines reach.
MACHINE = re.compile(r"(?<![\w.:/~$}])/(?:work|home|root|Users|tmp/w)/[\w.]|(?:https?|file)://\S+/simple\b")
BINARY = {".png", ".parquet", ".arrow", ".gz", ".safetensors", ".pdf", ".jpg"}


def tracked() -> list[Path]:
    """Files that git has or would add, without binary ones."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in BINARY]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_package_is_typed(package: Path) -> None:
    assert (package / "py.typed").is_file(), (
        f"add an empty {package.name}/py.typed, so that users' mypy reads its types"
    )


def test_files_stay_small() -> None:
    sizes = {path: len(path.read_text().splitlines()) for package in PACKAGES for path in package.rglob("*.py")}
    assert {str(path.relative_to(ROOT)): size for path, size in sizes.items() if size > MOST_LINES} == {}


def test_no_file_names_a_machine() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{number}": line.strip()
        for path in tracked()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE.search(line)
    }
    assert found == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path: /wor" + "k/x", True),
        ("'/hom" + "e/me/x'", True),
        ("--index-url https://example.org/py" + "pi/simple", True),
        ("work" + "/x, ./wor" + "k/x and ../wor" + "k/x", False),
        ("https://example.org/home/page", False),
        ("runs/home/x", False),
    ],
)
def test_the_pattern_finds_machine_paths(line: str, found: bool) -> None:
    assert bool(MACHINE.search(line)) == found
