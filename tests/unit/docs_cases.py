"""The pages, their fenced blocks, and the program that a page's blocks make."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
#: What pages mean by "the dataset": the importer and settings in the command that they show for it.
DATASET = {"name": "simulator", "users": 50, "items": 60, "impressions": 600, "history_length": 10}
DATASET_COMMAND = "recdistill data import simulator users=50 items=60 impressions=600 history_length=10 --out dataset"


def page_name(page: Path) -> str:
    """The page's path from the repository, for test ids and messages."""
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


@dataclass(frozen=True)
class Block:
    """A fenced block: what follows the fence, its text, the line on which it starts, and the page since the last block.

    The words after the language say what becomes of it. ``file=NAME`` saves it. ``sh run`` runs it in bash, and
    ``sh run fails`` too, which must fail. ``text output`` must be what the command above it printed: ``...`` stands for
    anything, as a line or inside one, and line numbers are not compared.
    """

    info: str
    text: str
    line: int
    before: str = ""

    @property
    def words(self) -> list[str]:
        return self.info.split()

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def file(self) -> str:
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), "")

    @property
    def action(self) -> str:
        """What a program of the page does with it, or an empty string."""
        if self.file:
            return "write"
        if self.language == "python":
            return "python"
        if self.info in ("sh run", "sh run fails", "text output"):
            return self.info
        return ""


def blocks(page: Path) -> list[Block]:
    found, info, first, last, lines = list[Block](), None, 0, 0, page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if info is None:
            info, first = line.strip("`").strip(), number + 1
        else:
            before = "\n".join(lines[last : first - 2])
            found.append(Block(info, "\n".join(lines[first - 1 : number - 1]) + "\n", first, before))
            info, last = None, number
    assert info is None, f"{page.name}: the fence of line {first - 1} is not closed"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def has(page: Path, *actions: str) -> bool:
    return any(block.action in actions for block in blocks(page))


def needs_shell(page: Path) -> bool:
    """Whether a page's commands run too, in an environment of their own."""
    return has(page, "sh run", "sh run fails")


def script(page: Path) -> str:
    """One program: files are written, Python blocks share a namespace, commands run; faults name page and line."""
    steps = [(block.action, block.file or str(page), block.text, block.line) for block in blocks(page) if block.action]
    return f"{RUNNER}\nrun_steps({steps!r}, {str(page)!r})\n"


def run_page(page: Path, folder: Path, environment: Mapping[str, str], python: str) -> None:
    """Run a page's program in ``folder``, with another interpreter."""
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script(page)],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def run_page_in_a_fork(page: Path, folder: Path) -> None:
    """Run a page's program in ``folder``, in a process that has imported what nearly every page imports."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["lightning", "recdistill_pipeline.run", "recdistill_lightning.modules"])
    log = folder / "page.log"
    process = forks.Process(target=_forked, args=(script(page), str(folder), str(log)))
    process.start()
    process.join(timeout=540)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, log.read_text()[-8000:] if log.exists() else "the program did not start"


def _forked(program: str, folder: str, log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).parent]
    warnings.simplefilter("ignore")
    exec(program, {})


#: Runs in the environment of the page, which has no tests; so it is a text that needs the standard library alone.
RUNNER = r'''
import importlib, os, pathlib, re, subprocess, sys

sys.path.insert(0, "")


def shell(text, where, fails):
    """Run commands where the ones before left off; what they printed."""
    folder = pathlib.Path(os.environ.get("TMPDIR", "/tmp"), f"page-{os.getpid()}")
    marked = f"trap 'pwd > {folder}' EXIT\n{text}"
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", marked], stdout=-1, stderr=subprocess.STDOUT, text=True)
    os.chdir(folder.read_text().strip())
    print(f"--- {where}\n{done.stdout}")
    if (done.returncode != 0) != fails:
        sys.exit(f"{where}: the commands ended with {done.returncode}\n{text}")
    return done.stdout


def check_output(text, printed, where):
    """Every line of ``text`` must be in what was printed, in this order."""
    have = iter(printed.splitlines())
    for line in text.splitlines():
        pieces = [re.escape(" ".join(piece.split())) for piece in line.split("...")]
        pattern = r"\s*.*\s*".join(pieces)
        if pattern.strip() and not any(re.fullmatch(pattern, " ".join(other.split())) for other in have):
            sys.exit(f"{where}: not printed, or not in this order: {line!r}\nprinted:\n{printed}")


def run_steps(steps, page):
    space, printed = {"__name__": "__main__"}, ""
    for action, name, text, line in steps:
        where = f"{page}, line {line}"
        if action == "write":
            pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(name).write_text(text)
            importlib.invalidate_caches()
        elif action == "python":
            exec(compile("\n" * (line - 1) + text, name, "exec"), space)
        elif action == "text output":
            check_output(text, printed, where)
        else:
            printed = shell(text, where, fails=action == "sh run fails")
'''


def table_of(page: Path, heading: str) -> dict[str, str]:
    """First cell -> second cell of the first table under a heading; code marks removed."""
    parts = page.read_text().split(f"\n## {heading}\n")
    assert len(parts) == 2, f"{page_name(page)} needs the heading ## {heading}, once"
    rows = [line for line in parts[1].partition("\n## ")[0].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]
    return {row[0].strip("` "): row[1].strip("` ").replace("\\|", "|") for row in cells}
