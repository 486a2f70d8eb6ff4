"""Verbs that plugins add: into groups, beside each other, and what happens when one of them fails while it runs."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from core_cases import points, write_plugin

from recdistill_core import Command, cli, shell
from recdistill_core.registry import PluginRecord, Registry, discover

Shell = Callable[..., tuple[int | str | None, str, str]]

PLUGIN = """
import typer

def group():
    app = typer.Typer(no_args_is_help=True)
    @app.command("check")
    def check():
        "Check it."
        print("own check")
    @app.command("other")
    def other():
        "Another."
    return app

def verb():
    def act(json: bool = False):
        raise RuntimeError("half way through")
    return act

@rd.hookimpl
def recdistill_commands():
    return [rd.Command("things", group, "Things.", group=True), rd.Command("act", verb, "Act.")]
"""
ADDED = """
def load():
    def count():
        print("counted")
    return count

@rd.hookimpl
def recdistill_commands():
    return [
        rd.Command("things count", load, "Count them."),
        rd.Command("plugins count", load, "Count plugins."),
        rd.Command("lonely count", load, "Count what nobody else touches."),
        rd.Command("things check", load, "A second check."),
        rd.Command("act now", load, "A verb below a verb."),
    ]
"""


@pytest.fixture
def recdistill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    """The command in this process, with two plugins and nothing else."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_plugin(tmp_path, "base", PLUGIN)
    write_plugin(tmp_path, "more", ADDED)
    registry = discover(points(tmp_path))
    assert [record.reason for record in registry.plugins] == ["", ""]
    for module in (cli, shell):
        monkeypatch.setattr(module, "installed", lambda: registry)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*words: str) -> tuple[int | str | None, str, str]:
        code: int | str | None = 0
        try:
            cli.main(words)
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[name]


@pytest.mark.parametrize("head", ["things", "plugins", "lonely"])
def test_a_plugin_adds_a_verb_to_a_group(recdistill: Shell, head: str) -> None:
    assert recdistill(head, "count") == (0, "counted\n", "")
    code, out, _ = recdistill(head, "--help")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.split()[:1] == ["count"]]
    assert line.endswith("[rd-more]")


def test_groups_keep_their_own_verbs(recdistill: Shell) -> None:
    assert recdistill("plugins", "list")[0] == 0
    code, out, _ = recdistill("things", "--help")
    assert (code, "Check it." in out, "Another." in out) == (0, True, True)
    code, out, _ = recdistill("--help")
    assert "Verbs of rd-more." in out
    assert code == 0


def test_a_verb_that_is_there_already_is_refused_when_asked_for(recdistill: Shell) -> None:
    code, _, err = recdistill("things", "check")
    assert code == 4
    assert err == (
        "error: command 'things check' is there already\n"
        "  where: plugin 'more' (rd-more 1.0) adds it a second time\n"
        "  to do: switch that plugin off with --no-plugin, or report it to its author\n"
    )


def test_a_verb_below_a_verb_is_refused_when_asked_for(recdistill: Shell) -> None:
    code, _, err = recdistill("act", "now")
    assert code == 4
    assert err == (
        "error: command 'act now' needs a group 'act', which is a verb\n"
        "  where: plugin 'more' (rd-more 1.0); the verb is of plugin 'base' (rd-base 1.0)\n"
        "  to do: switch one of them off with --no-plugin, or report it to its author\n"
    )


def test_a_verb_that_fails_while_it_runs_is_attributed(recdistill: Shell) -> None:
    code, out, err = recdistill("act")
    assert (code, out) == (4, "")
    assert "Traceback" in err
    assert err.endswith(
        "error: plugin 'base' (rd-base 1.0) failed: RuntimeError: half way through\n"
        "  where: module fake_base; the traceback above ends in its code\n"
        "  to do: report it to the plugin's author, or do without it\n"
    )
    code, out, _ = recdistill("act", "--json")
    assert (code, json.loads(out)["kind"]) == (4, "PluginError")


def test_a_fault_of_the_core_keeps_its_traceback(recdistill: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(registry: Registry, words: object) -> typer.Typer:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(cli, "build_app", broken)
    with pytest.raises(RuntimeError, match="a fault of our own"):
        recdistill("plugins", "list")


def test_options_before_the_verb_reach_the_environment(recdistill: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECDISTILL_STRICT_PLUGINS", "RECDISTILL_NO_PLUGIN", "RECDISTILL_ONLY_PLUGIN"):
        monkeypatch.setenv(name, "")
    words = ["--strict-plugins", "--no-plugin", "more", "--no-plugin=base", "--only-plugin", "a", "plugins", "list"]
    assert recdistill(*words)[0] == 0
    assert os.environ["RECDISTILL_STRICT_PLUGINS"] == "1"
    assert os.environ["RECDISTILL_NO_PLUGIN"] == "more,base"
    assert os.environ["RECDISTILL_ONLY_PLUGIN"] == "a"
    assert recdistill("--no-plugin")[0] == 2


def test_the_version(recdistill: Shell) -> None:
    assert recdistill("--version") == (0, "recdistill 0.1.0\n", "")


def test_a_clash_is_listed_at_both_plugins(recdistill: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_plugin(tmp_path, name, "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('hinge')]\n")
    registry = discover(points(tmp_path))
    monkeypatch.setattr(shell, "installed", lambda: registry)
    rows = {row["name"]: row for row in json.loads(recdistill("plugins", "list", "--json")[1])}
    assert rows["one"]["components"][0]["also_in"] == ["rd-two"]
    assert rows["two"]["components"][0]["also_in"] == ["rd-one"]
    assert "loss hinge (also in rd-one: write rd-two:hinge)" in recdistill("plugins", "list")[1]


def test_expected_failures_and_switched_off_plugins_are_shown(
    recdistill: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plugin(
        tmp_path,
        "odd",
        "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('odd', expected_failures={'x': 'by design'})]\n",
    )
    found = discover(points(tmp_path))
    off = PluginRecord("gone", "rd-gone", "1.0", off="switched off by --no-plugin gone")
    registry = Registry((*found.plugins, off), found.found, found.commands)
    monkeypatch.setattr(shell, "installed", lambda: registry)
    assert "fails the check x by design: by design" in recdistill("plugins", "show", "odd")[1]
    assert "off: switched off by --no-plugin gone" in recdistill("plugins", "list")[1]


def test_command_names() -> None:
    assert Command("labels verify", lambda: None, "s").name == "labels verify"
