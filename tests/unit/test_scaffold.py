"""``recdistill plugins new``: what it makes for every kind, whatever the name, and what it refuses."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recdistill_authoring import new
from recdistill_authoring.new import refuse_taken
from recdistill_authoring.scaffold import KINDS, MOST_LETTERS, Scaffold
from recdistill_core import BuildContext, Component
from recdistill_core.cli import main
from recdistill_core.errors import UsageError
from recdistill_core.hookspecs import COMMAND_HOOK, HOOKS
from recdistill_core.registry import PluginRecord, Registered, Registry

PLACEHOLDERS = ("myplugin", "my-plugin", "MyPlugin", "mykind", "usage")
#: A letter; a digit first; signs of both sorts; capitals; the longest name, with the longest class prefix.
ODD = ("x", "2-towers", "a_b--c", "Wide4", "2-very_Long-name-24chars")

Shell = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def recdistill(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The command in this process: exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "250")

    def shell(*words: object) -> tuple[int | str | None, str, str]:
        code: int | str | None = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return shell


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_there_is_a_scaffold_for_every_kind() -> None:
    assert set(KINDS) == {*HOOKS, "command"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_has_all_its_files(kind: str) -> None:
    files = Scaffold(kind, "two-tower").files()
    wanted = {
        ".gitignore",
        ".github/workflows/ci.yml",
        "README.md",
        "pyproject.toml",
        "run.yaml",
        "src/recdistill_two_tower/__init__.py",
        f"src/recdistill_two_tower/{kind}.py",
        "src/recdistill_two_tower/py.typed",
        f"tests/test_{kind}.py",
        "train.py",
        *(["tests/test_conformance.py"] if kind != "command" else []),
        *(["sample.jsonl"] if kind == "importer" else []),
    }
    assert set(files) == wanted
    assert "LICENSE" in files["README.md"]
    assert not [path for path, text in files.items() if any(word in path + text for word in PLACEHOLDERS)]


@pytest.mark.parametrize("kind", KINDS)
def test_its_files_say_what_it_is(kind: str) -> None:
    files = Scaffold(kind, "two-tower").files()
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == "recdistill-two-tower"
    assert project["project"]["entry-points"]["recdistill"] == {"two-tower": "recdistill_two_tower"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/recdistill_two_tower"]
    hooks = files["src/recdistill_two_tower/__init__.py"]
    assert f"def {HOOKS.get(kind, COMMAND_HOOK)}() -> list[" in hooks
    if kind != "command":
        assert "api_version=1" in hooks
        assert '@conformance("recdistill-two-tower")\n' in files["tests/test_conformance.py"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", KINDS)
def test_every_name_gives_python_toml_and_yaml(kind: str, name: str) -> None:
    scaffold = Scaffold(kind, name)
    assert scaffold.package.isidentifier()
    assert scaffold.prefix.isidentifier()
    for path, text in scaffold.files().items():
        if path.endswith(".py"):
            ast.parse(text, path)
    tomllib.loads(scaffold.files()["pyproject.toml"])
    run = OmegaConf.to_container(OmegaConf.create(scaffold.files()["run.yaml"]))
    assert isinstance(run, dict)
    assert run["name"] == name


@pytest.mark.parametrize("name", ["on", "1e3", "null", "007"])
def test_a_name_that_yaml_would_read_otherwise_stays_a_name(name: str) -> None:
    assert OmegaConf.create(Scaffold("loss", name).files()["run.yaml"]).loss.name == name


@pytest.mark.parametrize("name", ["MyPlugin", "my-plugin", "mykind", "recdistill_myplugin"])
def test_a_name_that_is_a_placeholder_is_replaced_once(name: str) -> None:
    scaffold = Scaffold("student", name)
    files = scaffold.files()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["name"] == f"recdistill-{name}"
    assert project["entry-points"]["recdistill"] == {name: scaffold.package}
    assert f"class {scaffold.prefix}Student(rd.Student)" in files[f"src/{scaffold.package}/student.py"]


def test_the_command_makes_the_project_and_says_what_comes_next(recdistill: Shell, tmp_path: Path) -> None:
    code, out, err = recdistill("plugins", "new", "student", "fm", "--dir", tmp_path)
    home = tmp_path / "recdistill-fm"
    assert (code, err) == (0, "")
    assert out == (
        f"made the student fm in {home}\nnext:\n  cd {home}\n  pip install -e '.[test]'\n  pytest\n"
        "  recdistill run run.yaml --out runs/first\nthen make it yours: src/recdistill_fm/student.py does the work\n"
    )
    assert tree(home) == Scaffold("student", "fm").files()
    assert list(tmp_path.iterdir()) == [home]


def test_the_answer_is_one_document(recdistill: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = recdistill("plugins", "new", "loss", "huber", "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["kind"], answer["name"], answer["folder"]) == ("loss", "huber", "recdistill-huber")
    assert (answer["distribution"], answer["package"]) == ("recdistill-huber", "recdistill_huber")
    assert sorted(answer["files"]) == sorted(tree(tmp_path / "recdistill-huber"))
    assert answer["next"][1:3] == ["pip install -e '.[test]'", "pytest"]
    (tmp_path / "my plugins").mkdir()
    answer = json.loads(recdistill("plugins", "new", "loss", "huber", "--dir", "my plugins", "--json")[1])
    assert answer["next"][0] == "cd 'my plugins/recdistill-huber'"


def test_an_empty_folder_is_filled(recdistill: Shell, tmp_path: Path) -> None:
    (tmp_path / "recdistill-fm").mkdir()
    assert recdistill("plugins", "new", "student", "fm", "--dir", tmp_path)[0] == 0
    assert (tmp_path / "recdistill-fm" / "pyproject.toml").is_file()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "studnt",
            "fm",
            "unknown kind 'studnt' (did you mean 'student'?)\n  to do: use one of: teacher, student, loss, ",
        ),
        ("student", "f m", "'f m' cannot name a plugin\n  to do: use 1 to 24 letters (a to z), digits, '_' and '-', "),
        ("student", "fm-", "'fm-' cannot name a plugin"),
        ("student", "été", "'été' cannot name a plugin"),
        ("student", "fm\n", "'fm\\n' cannot name a plugin"),
        ("student", "", "'' cannot name a plugin"),
        ("student", "x" * (MOST_LETTERS + 1), "xx' cannot name a plugin"),
        ("loss", "soft_ce", "there is a loss 'soft_ce' already\n  where: plugin 'soft' (recdistill "),
        ("loss", "kl", "to do: choose another name"),
        ("command", "run", "there is a command 'run' already\n  where: plugin 'pipeline' (recdistill "),
        ("command", "plugins", "there is a command 'plugins' already\n  where: the shell itself"),
        (
            "loss",
            "hstu",
            "there is a package 'recdistill_hstu' already\n  where: the Python environment of this command",
        ),
        ("student", "core", "there is a package 'recdistill_core' already"),
    ],
)
def test_what_is_refused_is_refused_with_a_reason(
    recdistill: Shell, tmp_path: Path, kind: str, name: str, message: str
) -> None:
    code, out, err = recdistill("plugins", "new", kind, name, "--dir", tmp_path)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_what_the_same_plugin_has_installed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed_by(distribution: str) -> Registry:
        plugin = PluginRecord("fm", distribution, "1.0")
        component = Component("fm", BuildContext, BuildContext, "Mine", api_version=1)
        return Registry((plugin,), (Registered("student", component, plugin),))

    mine = Scaffold("student", "fm")
    refuse_taken(mine, installed_by("recdistill-fm"))
    with pytest.raises(UsageError, match=r"there is a student 'fm' already\n  where: plugin 'fm' \(rd-other 1.0\)"):
        refuse_taken(mine, installed_by("rd-other"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "recdistill_fm" or None)
    with pytest.raises(UsageError, match="there is a package 'recdistill_fm' already"):
        refuse_taken(mine, Registry((), ()))
    monkeypatch.setattr(new, "distribution", lambda name: name == "recdistill-fm")
    refuse_taken(mine, installed_by("recdistill-fm"))


def test_a_folder_that_is_there_is_left_alone(recdistill: Shell, tmp_path: Path) -> None:
    home = tmp_path / "recdistill-fm"
    home.mkdir()
    (home / "mine.txt").write_text("mine")
    code, _, err = recdistill("plugins", "new", "student", "fm", "--dir", tmp_path)
    assert code == 2
    assert err == (
        "error: recdistill-fm is there already and is no empty folder\n"
        f"  where: {home}\n"
        "  to do: choose another name, give another --dir, or remove it\n"
    )
    assert tree(tmp_path) == {"recdistill-fm/mine.txt": "mine"}
    code, _, err = recdistill("plugins", "new", "student", "fm", "--dir", tmp_path / "none")
    assert (code, err.splitlines()[0]) == (2, "error: there is no such folder")
    (tmp_path / "file").touch()
    code, _, err = recdistill("plugins", "new", "student", "fm", "--dir", tmp_path / "file")
    assert (code, err.splitlines()[-1]) == (2, "  to do: make it, or give another --dir")


def test_a_project_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_text, []

    def full(self: Path, text: str, encoding: str | None = None) -> int:
        written.append(self)
        if len(written) > 5:
            raise OSError(28, "No space left on device")
        return write(self, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError, match="the project cannot be written: No space left on device\n") as caught:
        Scaffold("student", "fm").write(tmp_path)
    assert str(caught.value).endswith(f"where: {tmp_path / 'recdistill-fm'}\n  to do: give another --dir")
    assert len(written) == 6
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *more: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UsageError, match="the project cannot be written: Permission denied\n"):
        Scaffold("student", "fm").write(tmp_path)


def test_it_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom recdistill_core.cli import main\n"
        "try:\n    main(['plugins', 'new', 'teacher', 'mean'])\nfinally:\n"
        "    print(sorted({'torch', 'lightning', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def said(*command: str, cwd: Path) -> str:
    """What a checker that must find nothing has printed."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ODD)
def test_ruff_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        Scaffold(kind, name).write(tmp_path / kind)
    said("ruff", "check", "--no-cache", ".", cwd=tmp_path)
    said("ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path)


@pytest.mark.slow
def test_mypy_has_nothing_to_say(tmp_path: Path) -> None:
    """All kinds in one run, under the settings that each project has: mypy reads torch's types once."""
    whole = tmp_path / "whole"
    for kind in KINDS:
        home = Scaffold(kind, f"2-{kind}s").write(tmp_path)
        shutil.copytree(home, whole, dirs_exist_ok=True)
        (whole / "train.py").rename(whole / f"train_{kind}.py")
    scripts = sorted(path.name for path in whole.glob("train_*.py"))
    found = said("mypy", "--cache-dir", str(tmp_path / "cache"), "src", *scripts, cwd=whole)
    assert found == f"Success: no issues found in {3 * len(KINDS)} source files\n"
