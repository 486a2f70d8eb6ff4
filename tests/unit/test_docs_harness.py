"""The harness that runs the documentation: what it does with each block, and that it notices what is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from docs_cases import blocks, run_page, run_page_in_a_fork, table_of


def page_of(folder: Path, *fenced: tuple[str, str]) -> Path:
    """A page with a fenced block for each ``(info, text)``; the first one's text is line 2."""
    page = folder / "page.md"
    page.write_text("\n".join(f"```{info}\n{text}\n```" for info, text in fenced) + "\n")
    return page


def run(page: Path) -> None:
    run_page(page, page.parent, os.environ, sys.executable)


@pytest.mark.parametrize("how", [run, lambda page: run_page_in_a_fork(page, page.parent)], ids=["process", "fork"])
def test_files_are_written_blocks_share_a_namespace_and_a_fault_names_its_line(how: object, tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        ("json file=deep/a.json", "{}"),
        ("python", "import json"),
        ("yaml", "a: 1"),
        ("python", "json.loads(1)"),
    )
    assert json.loads(blocks(page)[0].text) == {}
    with pytest.raises(AssertionError, match=r'page\.md", line 11') as caught:
        how(page)  # type: ignore[operator]  # one of two functions
    assert "TypeError" in str(caught.value)
    assert (tmp_path / "deep" / "a.json").exists()


def test_commands_go_on_where_the_ones_before_left_off(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    run(page_of(tmp_path, ("sh run", "cd inner"), ("text file=b.txt", "b"), ("sh run", "test -e b.txt\ntouch c.txt")))
    assert sorted(path.name for path in (tmp_path / "inner").iterdir()) == ["b.txt", "c.txt"]


def test_commands_without_the_mark_are_not_run(tmp_path: Path) -> None:
    run(page_of(tmp_path, ("sh", "touch made.txt")))
    assert not (tmp_path / "made.txt").exists()


@pytest.mark.parametrize(("info", "code"), [("sh run", "false"), ("sh run", "false\ntrue"), ("sh run fails", "true")])
def test_a_command_that_ends_otherwise_is_found(tmp_path: Path, info: str, code: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md, line 2: the commands ended with"):
        run(page_of(tmp_path, (info, code)))


def test_a_command_that_must_fail_may(tmp_path: Path) -> None:
    run(page_of(tmp_path, ("sh run fails", "echo no\nfalse"), ("text output", "no")))


OUTPUT = ("sh run", "echo 'one   2 x'; echo two; echo 'three 3.25 s'")


@pytest.mark.parametrize("text", ["one 2 x\ntwo", "...\ntwo\nthree ... s", "one...\nthree...", "two"])
def test_output_is_compared_with_gaps(tmp_path: Path, text: str) -> None:
    run(page_of(tmp_path, OUTPUT, ("text output", text)))


@pytest.mark.parametrize("text", ["two\none 2 x", "one", "four", "three ... m"])
def test_output_that_was_not_printed_is_found(tmp_path: Path, text: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md, line 5: not printed, or not in this order"):
        run(page_of(tmp_path, OUTPUT, ("text output", text)))


def test_tables_are_read_without_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# P\n\n## T\n\n| key | what |\n|---|---|\n| `a` | one |\n| `b: c` | two \\| three |\n\n## U\n| `d` | x |\n"
    )
    assert table_of(page, "T") == {"a": "one", "b: c": "two | three"}
    with pytest.raises(AssertionError, match="needs the heading ## V"):
        table_of(page, "V")
