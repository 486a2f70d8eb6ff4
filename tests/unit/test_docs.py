"""The documentation is true: its code runs, headings are the hooks, keys are the settings, links lead somewhere."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from omegaconf import OmegaConf

from recdistill_core import hookspecs
from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.registry import installed
from recdistill_lightning import TrainerConfig
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_pipeline.runconfig import (
    CaptureConfig,
    DatasetConfig,
    EvaluationConfig,
    RunConfig,
    SplitConfig,
    TeacherTrainingConfig,
)
from recdistill_table.schema_file import _Plain as TableKeys

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
WITH_LINKS = [
    *PAGES,
    *sorted((DOCS / "decisions").glob("*.md")),
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
#: What pages mean by "the dataset": the importer and settings in the command that they show for it.
DATASET = {"name": "simulator", "users": 50, "items": 60, "impressions": 600, "history_length": 10}
DATASET_COMMAND = "recdistill data import simulator users=50 items=60 impressions=600 history_length=10 --out dataset"
#: Heading of docs/configuration.md -> the dataclass whose keys its table lists.
SECTIONS = {
    "The run": RunConfig,
    "dataset": DatasetConfig,
    "split": SplitConfig,
    "teacher_training": TeacherTrainingConfig,
    "capture": CaptureConfig,
    "evaluation": EvaluationConfig,
    "trainer": TrainerConfig,
}
BUILT_IN = {"plugins", "doctor"}
WORDS = re.compile(r"(?:^|[\s`/])recdistill((?:[ \t]+[\w.-]+){1,2})")


@dataclass(frozen=True)
class Block:
    """A fenced block: what follows the fence, its text, and the line on which the text starts."""

    info: str
    text: str
    line: int

    @property
    def language(self) -> str:
        return self.info.split(" ")[0]

    @property
    def file(self) -> str:
        return next((word.removeprefix("file=") for word in self.info.split(" ") if word.startswith("file=")), "")


def blocks(page: Path) -> list[Block]:
    found, info, first, lines = [], None, 0, page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if info is None:
            info, first = line.strip("`").strip(), number + 1
        else:
            found.append(Block(info, "\n".join(lines[first - 1 : number - 1]) + "\n", first))
            info = None
    assert info is None, f"{page.name}: the fence of line {first - 1} is not closed"
    return found


def script(page: Path) -> str:
    """One program: blocks with ``file=`` are written, Python blocks run in one namespace, faults name page and line."""
    steps: list[tuple[str, str, str, int]] = []
    for block in blocks(page):
        if block.file:
            steps.append(("write", block.file, block.text, block.line))
        elif block.language == "python":
            steps.append(("run", str(page), block.text, block.line))
    return (
        "import importlib, pathlib, sys\n"
        "sys.path.insert(0, '')\n"
        "space = {'__name__': '__main__'}\n"
        f"for kind, name, text, line in {steps!r}:\n"
        "    if kind == 'write':\n"
        "        pathlib.Path(name).write_text(text)\n"
        "        importlib.invalidate_caches()\n"
        "    else:\n"
        "        exec(compile('\\n' * (line - 1) + text, name, 'exec'), space)\n"
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated dataset that pages speak of."""
    out = tmp_path_factory.mktemp("docs") / "dataset"
    write_dataset(make(installed(), "importer", DATASET, BuildContext()).open(), out)
    return out


def with_python() -> list[Path]:
    return [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, dataset: Path, tmp_path: Path) -> None:
    if DATASET_COMMAND in page.read_text():
        shutil.copytree(dataset, tmp_path / "dataset")
    elif page.stem == "configuration":
        (tmp_path / "dataset").mkdir()  # named by the example, never read
    if (ROOT / "examples").is_dir():
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script(page)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_the_dataset_command_is_the_dataset() -> None:
    settings = " ".join(f"{key}={value}" for key, value in DATASET.items() if key != "name")
    assert f"recdistill data import {DATASET['name']} {settings} --out dataset" == DATASET_COMMAND


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_blocks_are_yaml(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert OmegaConf.create(block.text), f"{page.name}, line {block.line}"


@pytest.mark.parametrize("kind", [*hookspecs.HOOKS.values(), hookspecs.COMMAND_HOOK])
def test_every_hook_has_a_heading_with_its_signature_and_an_example(kind: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, kind))).replace("'", "")
    text = (DOCS / "plugins.md").read_text()
    parts = text.split(f"\n## `{kind}{signature}`\n")
    assert len(parts) == 2, f"docs/plugins.md needs the heading ## `{kind}{signature}`, once"
    section = parts[1].partition("\n## ")[0]
    assert f"def {kind}()" in section


def test_no_heading_of_the_plugins_page_is_for_a_hook_that_is_gone() -> None:
    named = re.findall(r"^## `(\w+)\(", (DOCS / "plugins.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted([*hookspecs.HOOKS.values(), hookspecs.COMMAND_HOOK])


def table_of(page: Path, heading: str) -> dict[str, str]:
    """First cell -> second cell of the first table under a heading; code marks removed."""
    section = page.read_text().split(f"\n## {heading}\n")[1].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {row[0].strip("` "): row[1].strip("` ") for row in cells}


def default_of(cls: type[Any], name: str) -> Any:
    entry = next(entry for entry in fields(cls) if entry.name == name)
    if entry.default is not MISSING:
        return entry.default
    return entry.default_factory() if entry.default_factory is not MISSING else MISSING


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_configuration_page_lists_every_key_with_its_default(heading: str) -> None:
    cls = SECTIONS[heading]
    listed = table_of(DOCS / "configuration.md", heading)
    assert list(listed) == [entry.name for entry in fields(cls)]
    for name, shown in listed.items():
        default = default_of(cls, name)
        if default is MISSING:
            assert shown == "required", name
        elif is_dataclass(default):
            assert shown == "below", name
        else:
            assert OmegaConf.to_container(OmegaConf.create(f"v: {shown}")) == {"v": default}, name


def test_student_training_differs_from_teacher_training_as_the_page_says() -> None:
    run = RunConfig("", DatasetConfig("x"), "")
    assert asdict(run.student_training) == {**asdict(run.teacher_training), "within": "shuffle"}
    assert (
        "`student_training` has the same keys and defaults, but for `within: shuffle`."
        in (DOCS / "configuration.md").read_text()
    )


def test_the_own_log_page_lists_every_field_of_the_schema_file() -> None:
    listed = table_of(DOCS / "your-own-log.md", "Every field of the schema file")
    apart = ("categorical", "numeric", "history_rates", "keep_rates")  # lists of records, filled by themselves
    assert sorted(listed) == sorted({*(entry.name for entry in fields(TableKeys)), *apart})


def verbs() -> Mapping[str, set[str]]:
    """Verb -> its sub-commands, empty where it has none."""
    found: dict[str, set[str]] = {}
    groups: list[tuple[str, Any]] = [("plugins", importlib.import_module("recdistill_core.cli").plugins_app)]
    for command, _ in installed().commands:
        if command.group:
            groups.append((command.name, command.load()))
        found[command.name] = set()
    for name, app in groups:
        assert isinstance(app, typer.Typer)
        found[name] = {entry.name or getattr(entry.callback, "__name__", "") for entry in app.registered_commands}
    return {**{name: set() for name in BUILT_IN}, **found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_verbs_of_shell_blocks_exist(page: Path) -> None:
    known = verbs()
    for block in blocks(page):
        if block.language not in ("bash", "sh"):
            continue
        for match in WORDS.finditer(block.text):
            verb, *rest = match.group(1).split()
            if verb in ("-e", "-c") or verb.startswith("-"):
                continue
            assert verb in known, f"{page.name}, line {block.line}: recdistill has no verb {verb!r}"
            if known[verb]:
                assert rest, f"{page.name}, line {block.line}: {verb} needs one of {sorted(known[verb])}"
                assert rest[0] in known[verb], f"{page.name}, line {block.line}: {verb} has no {rest[0]!r}"


@pytest.mark.parametrize("page", WITH_LINKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor and place.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", place.read_text(), flags=re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page.name} links to {target}"


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    assert [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index] == []


def test_the_harness_writes_files_and_names_lines(tmp_path: Path) -> None:
    """The harness itself: files are written, blocks share a namespace, and a fault names its page and line."""
    page = tmp_path / "page.md"
    page.write_text("```json file=a.json\n{}\n```\n\n```python\nimport json\n```\n\n```python\njson.loads(1)\n```\n")
    assert json.loads(blocks(page)[0].text) == {}
    done = subprocess.run([sys.executable, "-c", script(page)], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "a.json").exists()
    assert 'page.md", line 10' in done.stderr
    assert "TypeError" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_placeholder_left(page: Path) -> None:
    assert not [line for line in page.read_text().splitlines() if re.fullmatch(r"[A-Z_]{3,}", line.strip())]
