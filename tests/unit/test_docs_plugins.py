"""The pages for plugin authors: every hook has its heading, every check its row, and every example passes the kit."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import public_surface
import pytest
from docs_cases import DOCS, PAGES, blocks, page_name, table_of

import recdistill_core
import recdistill_lightning
import recdistill_prune
from recdistill_core import hookspecs
from recdistill_core.registry import installed
from recdistill_core.testing import CHECKS, Check

PLUGINS = DOCS / "plugins"
HOOKS = [*hookspecs.HOOKS.values(), hookspecs.COMMAND_HOOK]
#: Python files that pages show whole: (page, path, text); those with a hook are plugins.
FILES = [(page, block.file, block.text) for page in PAGES for block in blocks(page) if block.file.endswith(".py")]
FLAT = [(page, file, text) for page, file, text in FILES if not file.startswith("src/")]
#: Wrong on purpose; its page runs the kit on it.
BROKEN = "recdistill_adversarial.py"
EXAMPLES = [(page, file, text) for page, file, text in FLAT if "hookimpl" in text]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_heading_with_its_signature(hook: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    parts = (PLUGINS / "hooks.md").read_text().split(f"\n## `{hook}{signature}`\n")
    assert len(parts) == 2, f"docs/plugins/hooks.md needs the heading ## `{hook}{signature}`, once"


def test_no_heading_of_the_hooks_page_is_for_a_hook_that_is_gone() -> None:
    named = re.findall(r"^## `(\w+)\(", (PLUGINS / "hooks.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(HOOKS)


@pytest.mark.parametrize("kind", [*hookspecs.HOOKS, "command"])
def test_every_kind_has_a_page_with_an_example(kind: str) -> None:
    page = PLUGINS / f"{kind}.md"
    hook = hookspecs.HOOKS.get(kind, hookspecs.COMMAND_HOOK)
    assert any(where == page and f"def {hook}()" in text for where, _, text in EXAMPLES)
    section = (PLUGINS / "hooks.md").read_text().split(f"\n## `{hook}(")[1].partition("\n## ")[0]
    assert f"({kind}.md)" in section
    assert f"(hooks.md#{hook}---list" in page.read_text()


@pytest.mark.parametrize("kind", hookspecs.HOOKS)
def test_the_page_of_a_kind_lists_its_checks(kind: str) -> None:
    compare(PLUGINS / f"{kind}.md", "Checks", [check for check in CHECKS if kind in check.kinds])


def test_the_page_of_the_kit_lists_the_checks_for_all_kinds() -> None:
    compare(PLUGINS / "conformance.md", "Checks for every kind", [check for check in CHECKS if not check.kinds])


def compare(page: Path, heading: str, checks: list[Check]) -> None:
    """A check's summary is the first line of its docstring; a page has it with Markdown's code marks."""
    summaries = {check.name: check.summary.replace("``", "`") for check in checks}
    rows = [f"| `{name}` | {text.replace('|', chr(92) + '|')} |" for name, text in summaries.items()]
    table = "\n".join(["| check | what it proves |", "|---|---|", *rows])
    assert table_of(page, heading) == {name: text.strip("` ") for name, text in summaries.items()}, (
        f"under '## {heading}' of {page_name(page)} belongs:\n{table}"
    )


def test_expected_failures_are_shown_with_their_reasons() -> None:
    listed = table_of(PLUGINS / "conformance.md", "Expected failures")
    shipped = {
        f"{entry.kind} {entry.component.name}: {check}": reason
        for entry in installed().found
        if entry.plugin.distribution == "recdistill"
        for check, reason in entry.component.expected_failures.items()
    }
    assert listed == shipped


def test_the_reference_has_every_public_name() -> None:
    """What the frozen surface lists and what the reference documents are the same modules."""
    text = (DOCS / "reference.md").read_text()
    documented = re.findall(r"^\.\. automodule:: (\S+)$", text, flags=re.MULTILINE)
    assert sorted(documented) == sorted(set(public_surface.MODULES) - {"recdistill_core"})
    lazy = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", text, flags=re.MULTILINE)
    assert sorted(lazy) == sorted([*recdistill_lightning.__all__, *recdistill_prune.__all__])
    assert set(re.findall(r"`rd\.(\w+)`", text)) == set(recdistill_core.__all__)


#: Runs the kit on modules in the current folder, given by name; prints a line for each failure.
KIT = """
import sys
from importlib.metadata import EntryPoint
from recdistill_core.registry import discover
from recdistill_core.testing import checks_for, run_check

sys.path.insert(0, "")
registry = discover([EntryPoint(name, name, "recdistill") for name in sys.argv[1:]])
for record in registry.plugins:
    if record.status != "ok":
        print("FAILED", record.label, record.reason)
for entry in registry.found:
    for check in checks_for(entry):
        outcome = run_check(entry, check)
        if outcome.status == "failed":
            print("FAILED", entry.component.name, check.name, outcome.detail)
"""


@pytest.mark.slow
def test_the_examples_of_all_pages_pass_the_conformance_kit(tmp_path: Path) -> None:
    for _, file, text in FLAT:
        assert not (tmp_path / file).exists(), f"two pages have a {file}"
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    modules = [file.removesuffix(".py").removesuffix("/__init__") for _, file, _ in EXAMPLES if file != BROKEN]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KIT, *modules],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("FAILED")] == []


def test_every_example_names_the_version_it_was_written_for() -> None:
    without = [file for _, file, text in EXAMPLES if "Component(" in text and "api_version=1" not in text]
    assert without == []
