"""A fresh virtual environment with the wheel of this repository, for tests that install what a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, timeout: float = 300) -> str:
    """Standard output of a command that must succeed, without the variables that point at this environment."""
    outside = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME") and not key.startswith(("PYTEST_", "RECDISTILL_"))
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**outside, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(out: Path) -> Path:
    """The wheel of this repository, built into ``out``."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (wheel,) = out.glob("*.whl")
    return wheel


class CleanEnvironment:
    """A virtual environment in ``home`` into which pip has installed ``projects`` (wheels or folders).

    Their dependencies are taken from this environment: a path file adds its folder, and not what ITS path files add,
    so an editable install of this repository stays out of sight.
    """

    def __init__(self, home: Path, projects: Sequence[Path]) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
        self.python = home / "bin" / "python"
        self.recdistill = home / "bin" / "recdistill"
        site = run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
        self.site = Path(site)
        (self.site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--quiet"]
        run(sys.executable, "-m", "pip", "--python", self.python, "install", *options, *projects, cwd=home)
