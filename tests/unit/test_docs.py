"""The documentation is true: its code runs, headings are the hooks, keys are the settings, links lead somewhere."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from docs_cases import (
    DATASET,
    DATASET_COMMAND,
    DOCS,
    PAGES,
    ROOT,
    blocks,
    has,
    needs_shell,
    page_name,
    prose,
    run_page_in_a_fork,
    table_of,
)
from omegaconf import OmegaConf

from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.registry import installed
from recdistill_core.shell import plugins_app
from recdistill_hf.config import ARCHITECTURES, HFConfig
from recdistill_hf.options import OPTIONS
from recdistill_lightning import TrainerConfig
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_pipeline.runconfig import (
    CandidatesConfig,
    CaptureConfig,
    DatasetConfig,
    EmbeddingsConfig,
    EvaluationConfig,
    LabelsConfig,
    PretrainedConfig,
    RunConfig,
    SplitConfig,
    StatesConfig,
    TeacherTrainingConfig,
)
from recdistill_table.schema_file import _Plain as TableKeys

WITH_LINKS = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
#: Heading of docs/configuration.md -> the dataclass whose keys its table lists.
SECTIONS = {
    "The run": RunConfig,
    "dataset": DatasetConfig,
    "split": SplitConfig,
    "teacher_training": TeacherTrainingConfig,
    "capture": CaptureConfig,
    "labels": LabelsConfig,
    "candidates": CandidatesConfig,
    "states": StatesConfig,
    "embeddings": EmbeddingsConfig,
    "pretrained": PretrainedConfig,
    "evaluation": EvaluationConfig,
    "trainer": TrainerConfig,
}
#: A call of the command, with the words that may be a verb; options before the verb are left out.
OPTION = r"[ \t]+--(?:strict-plugins|version|help|(?:no|only)-plugin(?:[ \t]+|=)\S+)"
WORDS = re.compile(rf"(?:^|[\s`/])recdistill((?:{OPTION})*)((?:[ \t]+[\w.-]+){{1,2}})", flags=re.MULTILINE)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated dataset that pages speak of."""
    out = tmp_path_factory.mktemp("docs") / "dataset"
    write_dataset(make(installed(), "importer", DATASET, BuildContext()).open(), out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if has(page, "python") and not needs_shell(page)], ids=page_name
)
def test_the_python_of_a_page_runs(page: Path, dataset: Path, tmp_path: Path) -> None:
    if DATASET_COMMAND in page.read_text():
        shutil.copytree(dataset, tmp_path / "dataset")
    elif page.stem == "configuration":
        (tmp_path / "dataset").mkdir()  # named by the example, never read
    if (ROOT / "examples").is_dir():
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    run_page_in_a_fork(page, tmp_path)


def test_the_dataset_command_is_the_dataset() -> None:
    settings = " ".join(f"{key}={value}" for key, value in DATASET.items() if key != "name")
    assert f"recdistill data import {DATASET['name']} {settings} --out dataset" == DATASET_COMMAND


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_yaml_blocks_are_yaml(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert OmegaConf.create(block.text), f"{page_name(page)}, line {block.line}"


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


def test_the_page_of_the_hf_teacher_lists_every_setting_option_and_architecture() -> None:
    page = DOCS / "hf-teacher.md"
    listed = table_of(page, "Settings")
    assert list(listed) == [entry.name for entry in fields(HFConfig)]
    plain = json.loads(json.dumps(asdict(HFConfig())))
    for name, shown in listed.items():
        assert OmegaConf.to_container(OmegaConf.create(f"v: {shown}")) == {"v": plain[name]}, name
    text = page.read_text()
    assert re.findall(r"`(\w+)`", text.partition("## Architectures")[2].partition(".")[0]) == list(ARCHITECTURES)
    options = text.partition("`options` takes what the architecture has of")[2].partition(".")[0]
    assert re.findall(r"`(\w+)`", options) == sorted(OPTIONS)


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


@functools.cache
def verbs() -> Mapping[str, set[str]]:
    """Verb -> its sub-commands, empty where it has none."""
    found: dict[str, set[str]] = {"doctor": set(), "plugins": _names(plugins_app)}
    for command, _ in installed().commands:
        head, _, verb = command.name.partition(" ")
        if verb:
            found.setdefault(head, set()).add(verb)
        else:
            found.setdefault(head, set()).update(_names(command.load()) if command.group else ())
    return found


def _names(app: typer.Typer) -> set[str]:
    return {entry.name or getattr(entry.callback, "__name__", "") for entry in app.registered_commands}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_verbs_of_pages_exist(page: Path) -> None:
    """In shell blocks, and in running text between code marks."""
    shell = [(block.text, block.line) for block in blocks(page) if block.language in ("bash", "sh")]
    text = prose(page)
    for code, line in [*shell, *((span, 0) for span in re.findall(r"`(recdistill [^`]+)`", text))]:
        for match in WORDS.finditer(code):
            verb, *rest = match.group(2).split()
            where = f"{page_name(page)}, {f'line {line}' if line else match.group(0)!r}"
            if verb.startswith("-"):
                continue
            assert verb in verbs(), f"{where}: recdistill has no verb {verb!r}"
            if verbs()[verb]:
                assert rest, f"{where}: {verb} needs one of {sorted(verbs()[verb])}"
                assert rest[0] in verbs()[verb], f"{where}: {verb} has no {rest[0]!r}"


@pytest.mark.parametrize("page", WITH_LINKS, ids=page_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page_name(page)} links to {target}"
        if anchor and place.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", place.read_text(), flags=re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page_name(page)} links to {target}"


@pytest.mark.parametrize("index", [page for page in PAGES if page.name == "README.md"], ids=page_name)
def test_every_page_is_in_the_index_of_its_folder(index: Path) -> None:
    """Decisions are listed by the built documentation, and by any file browser."""
    if index.parent in (ROOT, DOCS / "decisions"):
        return
    text = index.read_text()
    pages = [f"({page.name})" for page in index.parent.glob("*.md") if page != index]
    folders = [f"({page.parent.name}/README.md)" for page in index.parent.glob("*/README.md")]
    assert [link for link in [*pages, *folders] if link not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_name_of_a_file_can_be_read(page: Path) -> None:
    """What follows a fence is not shown: the words before it, or its first line, say under which name to save it."""
    files = [block for block in blocks(page) if block.file]
    unnamed = [block for block in files if block.file not in block.before + block.text.partition("\n")[0]]
    assert [f"line {block.line}: {block.file}" for block in unnamed] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_no_page_has_a_placeholder_left(page: Path) -> None:
    assert not [line for line in page.read_text().splitlines() if re.fullmatch(r"[A-Z_]{3,}|@@.*", line.strip())]
