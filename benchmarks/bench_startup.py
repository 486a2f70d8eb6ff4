"""Start-up of the command, as a multiple of starting Python; and whether torch was imported.

python benchmarks/bench_startup.py [--json]
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from typing import Any

from reporting import arguments, seconds, show

SHELL = "from recdistill_core.cli import main; main()"
#: What is started -> arguments of the interpreter.
STARTED = {
    "python -c pass": ["-c", "pass"],
    "recdistill --help": ["-c", SHELL, "--help"],
    "recdistill plugins list": ["-c", SHELL, "plugins", "list"],
    "recdistill plugins list --json": ["-c", SHELL, "plugins", "list", "--json"],
    "recdistill plugins show dcn": ["-c", SHELL, "plugins", "show", "dcn"],
    "recdistill plugins new --help": ["-c", SHELL, "plugins", "new", "--help"],
    "recdistill run --help": ["-c", SHELL, "run", "--help"],
    "import torch": ["-c", "import torch"],
    "import lightning": ["-c", "import lightning"],
}


def start(words: list[str], *options: str) -> str:
    """Run an interpreter to its end and return what it wrote to stderr."""
    done = subprocess.run([sys.executable, *options, *words], capture_output=True, text=True, check=True)
    return done.stderr


def measure() -> list[dict[str, Any]]:
    rows, bare = [], 0.0
    for name, words in STARTED.items():
        spent = seconds(partial(start, words), at_least=3.0)
        bare = bare or spent
        imported = re.search(r"\| +torch$", start(words, "-X", "importtime"), re.MULTILINE) is not None
        row = {"started": name, "seconds": spent, "times bare Python": spent / bare}
        rows.append({**row, "imports torch": "yes" if imported else "no"})
    return rows


if __name__ == "__main__":
    show({"Start-up, best of several": measure()}, arguments(__doc__ or "").json)
