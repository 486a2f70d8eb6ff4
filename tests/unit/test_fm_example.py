"""The sample third-party repository is what ``plugins new student fm`` makes, and its own model."""

from __future__ import annotations

import ast
from pathlib import Path

from recdistill_authoring.scaffold import Scaffold

HOME = Path(__file__).parents[2] / "examples" / "plugin-fm-student"
#: What its author has changed.
CHANGED = {"README.md", "src/recdistill_fm/__init__.py", "src/recdistill_fm/student.py", "tests/test_student.py"}
HOOKS = "src/recdistill_fm/__init__.py"


def committed() -> dict[str, str]:
    """The files of the repository, without what its own .gitignore names."""
    ignored = [pattern.strip("*/") for pattern in (HOME / ".gitignore").read_text().splitlines()]
    paths = [path.relative_to(HOME) for path in HOME.rglob("*") if path.is_file()]
    kept = [path for path in paths if not any(part.endswith(name) for part in path.parts for name in ignored)]
    return {path.as_posix(): (HOME / path).read_text() for path in kept}


def test_only_what_is_named_differs_from_the_scaffold() -> None:
    found, made = committed(), Scaffold("student", "fm").files()
    assert set(found) == set(made)
    assert {path for path, text in made.items() if found[path] != text} == CHANGED


def test_of_the_readme_only_the_section_on_use_differs() -> None:
    found, made = committed()["README.md"], Scaffold("student", "fm").files()["README.md"]
    mark = "## Install"
    assert found.partition(mark)[2] == made.partition(mark)[2]
    assert found.splitlines()[:3] == made.splitlines()[:3]


def test_of_the_hook_module_only_settings_summary_and_example_differ() -> None:
    def shape(text: str) -> list[str]:
        """The module's statements; of the configuration only its name, of the component only what is not its own."""
        module = ast.parse(text)
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                node.body = []
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "rd.Component":
                node.args = node.args[:3]
                node.keywords = [keyword for keyword in node.keywords if keyword.arg == "api_version"]
        return [ast.unparse(node) for node in module.body]

    assert shape(committed()[HOOKS]) == shape(Scaffold("student", "fm").files()[HOOKS])
