"""The command shell: exit codes, one JSON document, and what an unlucky plugin cannot do to it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recdistill_core import BuildContext, Command, Component, cli, console, diagnosis, shell
from recdistill_core.errors import DataError
from recdistill_core.registry import PluginRecord, Registered, Registry, installed

EXAMPLE = Path(__file__).parents[2] / "examples" / "kuairand.yaml"
PIPELINE = {"demo", "run", "data", "teacher", "student", "evaluate", "export", "config"}
VERBS = {"doctor", "plugins", "labels", "compare", "sweep", *PIPELINE}


@dataclass(frozen=True)
class Done:
    code: int | str | None
    out: str
    err: str


Shell = Callable[..., Done]


@pytest.fixture
def recdistill(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """The command, in this process, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "250")
    root = logging.getLogger()
    handlers, level, hook = list(root.handlers), root.level, sys.excepthook

    def shell(*words: object) -> Done:
        code: int | str | None = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    yield shell
    root.handlers[:], sys.excepthook = handlers, hook
    root.setLevel(level)


def other(
    monkeypatch: pytest.MonkeyPatch, *commands: Command, reason: str = "", components: tuple[str, ...] = ()
) -> None:
    """Install a further plugin, for this test."""
    base = installed()
    record = PluginRecord("other", "rd-other", "1.0", ImportError(reason) if reason else None)
    found = tuple(
        Registered("loss", Component(name, BuildContext, BuildContext, "[bold] [/x] loss", api_version=1), record)
        for name in components
    )
    registry = Registry(
        (*base.plugins, record), (*base.found, *found), (*base.commands, *((verb, record) for verb in commands))
    )
    for module in (cli, shell):
        monkeypatch.setattr(module, "installed", lambda: registry)


def test_help_lists_every_verb_with_its_distribution(recdistill: Shell) -> None:
    done = recdistill("--help")
    assert (done.code, done.err) == (0, "")
    lines = {line.split()[0]: line for line in done.out.partition("Commands:")[2].splitlines() if line.strip()}
    assert set(lines) == VERBS
    shipped = VERBS - {"doctor", "plugins"}
    assert {name for name, line in lines.items() if line.endswith("[recdistill]")} == shipped
    assert recdistill().code == 2


def test_plugins_list_is_one_document(recdistill: Shell) -> None:
    done = recdistill("plugins", "list", "--json")
    assert (done.code, done.err) == (0, "")
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["soft"]["components"][0] == {
        "kind": "loss", "name": "soft_ce", "summary": rows["soft"]["components"][0]["summary"], "also_in": [],
    }  # fmt: skip
    assert set(rows["pipeline"]["commands"]) == {*PIPELINE, "labels backfill", "teacher save"}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["distribution"] for row in rows.values()} == {"recdistill"}
    table = recdistill("plugins", "list")
    assert table.code == 0
    assert "student mlp" in table.out


@pytest.mark.parametrize(
    "words",
    [
        "--help", "--version", "plugins list", "plugins list --json", "plugins show dcn", "plugins new --help",
        "plugins check --help", *(f"{verb} --help" for verb in sorted(VERBS)),
    ],
)  # fmt: skip
def test_looking_around_imports_no_torch(words: str) -> None:
    code = (
        "import sys\nfrom recdistill_core.cli import main\n"
        f"try:\n    main({words.split()})\nfinally:\n"
        "    print(sorted({'torch', 'lightning', 'pyarrow', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_plugins_show(recdistill: Shell) -> None:
    (row,) = json.loads(recdistill("plugins", "show", "dcn", "--json").out)
    assert (row["kind"], row["name"], row["distribution"], row["api_version"]) == ("student", "dcn", "recdistill", 1)
    meant = "widths of the parallel dense layers."
    assert {"name": "hidden", "type": "tuple[int, ...]", "default": [64, 32], "meaning": meant} in row["settings"]
    (row,) = json.loads(recdistill("plugins", "show", "ipw", "--json").out)
    assert row["needs"] == ["propensity"]
    assert "needs propensity" in recdistill("plugins", "show", "ipw").out
    (row,) = json.loads(recdistill("plugins", "show", "sampling", "--json").out)
    assert row["needs"] == ["(depends on its settings)"]
    (row,) = json.loads(recdistill("plugins", "show", "kuairand", "--json").out)
    path = row["settings"][0]
    assert (path["name"], path["type"], path["default"]) == ("path", "str", "required")
    assert path["meaning"].startswith("folder of the official release")
    rows = json.loads(recdistill("plugins", "show", "recdistill:parquet", "--json").out)
    assert [row["kind"] for row in rows] == ["store", "source"]
    (row,) = json.loads(recdistill("plugins", "show", "parquet", "--kind", "source", "--json").out)
    assert row["kind"] == "source"
    shown = recdistill("plugins", "show", "dcn")
    assert (shown.code, "cross_layers" in shown.out, "from recdistill 0.1.0, plugin API 1" in shown.out) == (
        0,
        True,
        True,
    )


@dataclass(frozen=True)
class Settings:
    """What a component is told.

    Attributes:
        path: a file, see: the docs.
        low, high: bounds of the range,
            both inclusive. step: between them.
    """

    path: str
    low: int = 0
    high: int = 1
    step: int = 1
    silent: bool = False


def test_meanings_come_from_the_docstring() -> None:
    assert shell.meanings(Settings) == {
        "path": "a file, see: the docs.",
        "low": "bounds of the range, both inclusive.",
        "high": "bounds of the range, both inclusive.",
        "step": "between them.",
    }
    assert shell.meanings(BuildContext(None).__class__)["tasks"] == "names of the tasks to predict, in order."
    assert shell.meanings(Done) == {}


@dataclass(frozen=True)
class Wider(Settings):
    """Has what its base has.

    Attributes:
        step: another one now. more: of its own.
    """

    more: int = 0


def test_a_configuration_says_what_its_base_says() -> None:
    told = shell.meanings(Wider)
    assert (told["path"], told["step"], told["more"]) == ("a file, see: the docs.", "another one now.", "of its own.")


@pytest.mark.parametrize("entry", installed().found, ids=lambda entry: f"{entry.kind}-{entry.component.name}")
def test_every_shipped_setting_has_a_meaning(entry: Registered) -> None:
    config = entry.component.config
    assert set(shell.meanings(config)) == {setting.name for setting in fields(config)}


def test_an_unknown_component_is_a_plugin_error(recdistill: Shell) -> None:
    done = recdistill("plugins", "show", "soft_cee")
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith(
        "error: no component is named 'soft_cee' (did you mean 'soft_ce'?)\n  to do: use one of: "
    )
    assert "or install the plugin that has it" in done.err
    error = json.loads(recdistill("plugins", "show", "qqq", "--json").out)
    assert error["error"].startswith("no component is named 'qqq'\n  to do: use one of: dcn, ")
    assert (error["kind"], error["exit_code"], error["causes"]) == ("PluginError", 4, [])
    done = recdistill("plugins", "show", "ml", "--kind", "student")
    assert done.err.startswith(
        "error: no student is named 'ml' (did you mean 'mlp'?)\n  to do: use one of: dcn, mlp; or"
    )
    done = recdistill("plugins", "show", "mlp", "--kind", "studnt")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: unknown kind 'studnt' (did you mean 'student'?)")


def test_an_unknown_component_is_chained_to_a_failed_plugin(recdistill: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    other(monkeypatch, reason="needs libmagic")
    done = recdistill("plugins", "show", "other")
    assert done.code == 4
    assert (
        "where: plugins that failed or are off, one of which may hold it: "
        "other (rd-other 1.0): ImportError: needs libmagic" in done.err
    )
    assert "caused by ImportError: needs libmagic" in done.err
    error = json.loads(recdistill("plugins", "show", "other", "--json").out)
    assert error["causes"] == ["ImportError: needs libmagic"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "No such command 'nosuch'."),
        (["plugins", "nosuch"], "No such command 'nosuch'."),
        (["plugins", "list", "--bogus"], "No such option: --bogus"),
        (["plugins", "list", "--bogus", "--json"], "No such option: --bogus"),
        (["plugins", "show"], "Missing argument 'NAME'."),
        (["run"], "Missing argument 'CONFIG'."),
        (["config", "validate"], "Missing argument 'CONFIG'."),
    ],
)
def test_wrong_usage_ends_with_2(recdistill: Shell, words: list[str], message: str) -> None:
    done = recdistill(*words)
    assert (done.code, done.out) == (2, "")
    assert f"error: {message}".lower() in done.err.lower()  # the case of NAME is up to the release of typer
    assert "Traceback" not in done.err


def test_config_validate_and_show(recdistill: Shell, tmp_path: Path) -> None:
    override = f"dataset.importer.path={tmp_path}"
    done = recdistill("config", "validate", EXAMPLE, override)
    assert (done.code, done.out) == (0, f"{EXAMPLE}: ok\n")
    answer = json.loads(recdistill("config", "validate", EXAMPLE, override, "--json").out)
    assert (answer["ok"], answer["name"]) == (True, "kuairand")
    assert {"teacher 'hstu'", "student 'dcn'", "strategy 'rec_distill'"} <= set(answer["components"])
    shown = json.loads(recdistill("config", "show", EXAMPLE, override, "seeds=[7]", "--json").out)
    assert (shown["dataset"]["importer"]["path"], shown["seeds"]) == (str(tmp_path), [7])
    path = tmp_path / "shown.yaml"
    path.write_text(recdistill("config", "show", EXAMPLE, override, "seeds=[7]").out)
    assert json.loads(recdistill("config", "show", path, "--json").out) == shown


def test_config_faults_come_with_their_paths(recdistill: Shell) -> None:
    words = ["config", "validate", EXAMPLE, "seeds=[]", "students[0].embeding=4", "teacher_training.lr=x"]
    done = recdistill(*words, "--json")
    error = json.loads(done.out)
    assert (done.code, error["kind"], error["exit_code"]) == (2, "ConfigError", 2)
    assert "  - teacher_training.lr: Value 'x' of type 'str' could not be converted to Float" in error["error"]
    done = recdistill("config", "validate", EXAMPLE, "students[0].embeding=4", "loss.temperature=1")
    assert (done.code, done.out) == (2, "")
    assert "error: the configuration has 2 faults:" in done.err
    assert "  - students[0].embeding: unknown key (did you mean 'embedding'?)" in done.err
    assert "  - loss.temperature: unknown key" in done.err
    done = recdistill("config", "validate", EXAMPLE.with_name("none.yaml"), "--json")
    assert json.loads(done.out)["causes"][0].startswith("FileNotFoundError: ")
    assert done.code == 2


def test_doctor(recdistill: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    done = recdistill("doctor", "--json")
    report = json.loads(done.out)
    assert (done.code, report["ok"]) == (0, True)
    states = {row["check"]: row["state"] for row in report["checks"]}
    assert states["python"] == states["torch"] == states["plugin mlp"] == "ok"
    other(monkeypatch, reason="needs [/usr/lib/x] and [bold]")
    done = recdistill("doctor")
    assert done.code == 4
    assert "ImportError: needs [/usr/lib/x] and [bold]" in done.out
    monkeypatch.setattr(diagnosis, "LIBRARIES", ("nosuchlib",))
    report = json.loads(recdistill("doctor", "--json").out)
    assert report["checks"][1] == {
        "check": "nosuchlib", "state": "failed", "detail": "not installed: pip install recdistill",
    }  # fmt: skip


def test_square_brackets_of_a_plugin_are_shown_as_they_are(recdistill: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    other(monkeypatch, reason="no closing [/tag] here", components=("odd",))
    done = recdistill("plugins", "list")
    assert (done.code, "ImportError: no closing [/tag] here" in done.out) == (0, True)
    done = recdistill("plugins", "show", "odd")
    assert (done.code, "[bold] [/x] loss" in done.out) == (0, True)


def verb(code: int | BaseException) -> Command:
    def act() -> None:
        if isinstance(code, BaseException):
            raise code
        raise cli.typer.Exit(code)

    return Command("act", lambda: act, "Act.")


@pytest.mark.parametrize(
    ("ending", "code"),
    [(0, 0), (7, 7), (DataError("bad", where="f", fix="mend"), 3), (KeyboardInterrupt(), 130), (SystemExit(9), 9)],
)
def test_exit_codes_of_a_verb(recdistill: Shell, monkeypatch: pytest.MonkeyPatch, ending: Any, code: int) -> None:
    other(monkeypatch, verb(ending))
    assert recdistill("act").code == code


def test_a_verb_that_cannot_be_loaded_names_its_plugin(recdistill: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Any:
        raise ImportError("needs libmagic")

    other(monkeypatch, Command("act", load, "Act."))
    assert recdistill("--help").code == 0
    done = recdistill("act")
    assert done.code == 4
    assert done.err == (
        "error: command 'act' cannot be loaded: ImportError: needs libmagic\n"
        "  where: plugin 'other' (rd-other 1.0)\n"
        "  to do: mend or reinstall the plugin, or report it to its author\n"
        "  caused by ImportError: needs libmagic\n"
    )


def test_no_plugin_takes_a_verb_from_another(recdistill: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    other(monkeypatch, Command("run", lambda: None, "Another run."))
    done = recdistill("run", "x.yaml")
    assert done.code == 4
    assert done.err == (
        "error: command 'run' is registered by 2 plugins\n"
        "  where: pipeline of recdistill, other of rd-other\n"
        "  to do: uninstall all but one of them, or switch them off with --no-plugin\n"
    )


def test_a_bar_is_drawn_on_a_terminal_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # on a dumb one nothing moves
    for terminal in (True, False):
        stream = io.StringIO()
        made = Console(file=stream, force_terminal=terminal, width=80)
        monkeypatch.setattr(console, "messages", lambda made=made: made)
        with console.progress_bar() as tell:
            tell("reading", 3, 4)
            tell("counting", 3, None)
        assert ("reading" in stream.getvalue()) == terminal
        assert ("counting" in stream.getvalue()) == terminal
        assert stream.getvalue().endswith("\x1b[2K" if terminal else "")


def test_notes_go_to_what_stderr_is_by_then(recdistill: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    recdistill("plugins", "list")
    with contextlib.redirect_stderr(io.StringIO()) as later:
        logging.getLogger("recdistill.labels").warning("3 labels were set aside")
    assert later.getvalue() == "3 labels were set aside\n"
    assert capsys.readouterr().err == ""
