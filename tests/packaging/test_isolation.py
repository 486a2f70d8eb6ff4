"""A bad plugin neither kills the run nor hides: third-party distributions, installed by pip, seen by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures" / "thirdparty"

pytestmark = pytest.mark.packaging

#: distribution -> (entry point, version, what the reason must say)
BROKEN = {
    "recdistill-raises": ("raises", "0.1.0", "ImportError: recdistill_raises needs libmagic"),
    "recdistill-exits": ("exits", "0.2.0", "SystemExit: recdistill_exits wants to leave"),
    "recdistill-mistyped": (
        "mistyped",
        "0.3.0",
        "unknown hook 'recdistill_losess' (did you mean 'recdistill_losses'?) where: recdistill_mistyped",
    ),
    "recdistill-wrongargs": ("wrongargs", "0.4.0", "{'registry'}"),
    "recdistill-oldapi": ("oldapi", "0.6.0", "component 'oldloss' was written for plugin API 0, this is API 1"),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed all third-party fixtures."""
    target = tmp_path_factory.mktemp("thirdparty")
    projects = sorted(path.parent for path in FIXTURES.glob("*/pyproject.toml"))
    assert len(projects) == 9
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *map(str, projects)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return target


def recdistill(installed: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own that sees the third-party distributions."""
    return subprocess.run(
        [sys.executable, "-c", "from recdistill_core.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200", **more},
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def listed(installed: Path) -> list[dict[str, Any]]:
    """What ``plugins list --json`` prints."""
    done = recdistill(installed, "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def rows(listed: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Third parties by distribution."""
    return {row["distribution"]: row for row in listed if row["distribution"] != "recdistill"}


def test_shipped_ones_load_beside_broken_ones(listed: list[dict[str, Any]]) -> None:
    shipped = {row["name"]: row["reason"] for row in listed if row["distribution"] == "recdistill"}
    assert len(shipped) > 10
    assert {name: reason for name, reason in shipped.items() if reason} == {}


def test_good_ones_are_listed(rows: dict[str, dict[str, Any]]) -> None:
    good = rows["recdistill-hinge"]
    assert (good["name"], good["version"], good["status"], good["reason"]) == ("hinge", "1.2.3", "ok", "")
    assert [(entry["kind"], entry["name"]) for entry in good["components"]] == [("loss", "hinge")]
    assert rows["recdistill-late"]["status"] == "ok"


def test_both_sides_of_a_clash_are_listed(listed: list[dict[str, Any]]) -> None:
    clashing = {
        row["distribution"]: component["also_in"]
        for row in listed
        for component in row["components"]
        if (component["kind"], component["name"]) == ("student", "mlp")
    }
    assert clashing == {"recdistill": ["recdistill-duplicate"], "recdistill-duplicate": ["recdistill"]}


@pytest.mark.parametrize("distribution", BROKEN)
def test_broken_ones_are_listed_with_the_reason(rows: dict[str, dict[str, Any]], distribution: str) -> None:
    name, version, reason = BROKEN[distribution]
    row = rows[distribution]
    assert (row["name"], row["version"], row["status"]) == (name, version, "failed")
    assert reason in row["reason"]
    assert row["components"] == row["commands"] == []


def test_the_table_names_the_broken_ones_too(installed: Path) -> None:
    done = recdistill(installed, "plugins", "list")
    assert done.returncode == 0, done.stderr
    for distribution in BROKEN:
        assert distribution in done.stdout


def test_a_good_one_is_shown(installed: Path) -> None:
    done = recdistill(installed, "plugins", "show", "hinge", "--json")
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)
    assert shown["distribution"] == "recdistill-hinge"
    assert [setting["name"] for setting in shown["settings"]] == ["margin"]


def test_a_component_of_a_broken_plugin_ends_with_the_cause(installed: Path) -> None:
    done = recdistill(installed, "plugins", "show", "raises", "--kind", "loss")
    assert done.returncode == 4
    assert "no loss is named 'raises'" in done.stderr
    assert "raises (recdistill-raises 0.1.0)" in done.stderr
    assert "caused by ImportError: recdistill_raises needs libmagic" in done.stderr
    assert "caused by OSError: libmagic.so.1: cannot open shared object file" in done.stderr
    assert done.stdout == ""


def test_the_cause_is_in_the_json_too(installed: Path) -> None:
    done = recdistill(installed, "plugins", "show", "exits", "--json")
    assert done.returncode == 4
    error = json.loads(done.stdout)
    assert (error["kind"], error["exit_code"]) == ("PluginError", 4)
    assert error["causes"] == ["SystemExit: recdistill_exits wants to leave"]


def test_a_name_that_two_distributions_register_must_be_qualified(installed: Path) -> None:
    done = recdistill(installed, "plugins", "show", "mlp")
    assert done.returncode == 4
    assert "student 'mlp' is registered by 2 distributions" in done.stderr
    assert "'recdistill-duplicate:mlp'" in done.stderr
    assert "'recdistill:mlp'" in done.stderr
    for distribution in ("recdistill", "recdistill-duplicate"):
        done = recdistill(installed, "plugins", "show", f"{distribution}:mlp", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["distribution"] == distribution


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """Writes a small run's configuration and returns its path."""

    def write(**changes: Any) -> str:
        plain = {
            "name": "small",
            "task": "click",
            "dataset": {"importer": {"name": "simulator", "users": 40, "items": 40, "impressions": 800}},
            "students": [{"name": "dcn", "embedding": 4, "hidden": [8]}],
            "teacher": {"name": "hstu", "width": 16, "layers": 1, "heads": 2, "hidden": [8]},
            "seeds": [1],
            **changes,
        }
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(plain))
        return str(path)

    return write


def test_a_config_that_needs_a_broken_plugin_ends_with_4_and_the_cause(
    installed: Path, config: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = recdistill(installed, "run", config(loss={"name": "raises"}), "--out", str(out))
    assert done.returncode == 4
    assert "no loss is named 'raises'" in done.stderr
    assert "caused by ImportError: recdistill_raises needs libmagic" in done.stderr
    assert "caused by OSError: libmagic.so.1: cannot open shared object file" in done.stderr
    assert not out.exists()


def test_a_config_that_needs_no_broken_plugin_is_fine(installed: Path, config: Callable[..., str]) -> None:
    done = recdistill(installed, "config", "validate", config(loss={"name": "hinge", "margin": 2.0}))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_clashing_name_in_a_config_must_be_qualified(installed: Path, config: Callable[..., str]) -> None:
    done = recdistill(installed, "config", "validate", config(students=[{"name": "mlp"}]))
    assert done.returncode == 4
    assert "where: recdistill-duplicate, recdistill" in done.stderr
    done = recdistill(installed, "config", "validate", config(students=[{"name": "recdistill:mlp"}]))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [("plugins", "list"), ("run", "CONFIG")])
def test_strict_makes_any_failure_fatal(installed: Path, config: Callable[..., str], words: tuple[str, ...]) -> None:
    done = recdistill(installed, "--strict-plugins", *(config() if word == "CONFIG" else word for word in words))
    assert done.returncode == 4
    assert "plugins failed to load, and --strict-plugins is on" in done.stderr
    for distribution in BROKEN:
        assert distribution in done.stderr
    done = recdistill(installed, *words, RECDISTILL_STRICT_PLUGINS="1")
    assert done.returncode == 4


def test_plugins_can_be_switched_off(installed: Path, config: Callable[..., str]) -> None:
    off = [word for distribution in BROKEN for word in ("--no-plugin", distribution)]
    done = recdistill(installed, "--strict-plugins", *off, "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["distribution"]: row for row in json.loads(done.stdout)}
    assert rows["recdistill-raises"]["status"] == "off"
    assert rows["recdistill-raises"]["reason"] == "switched off by --no-plugin recdistill-raises"
    assert rows["recdistill-hinge"]["status"] == "ok"
    done = recdistill(
        *(installed, "--no-plugin", "duplicate", "config", "validate", config(students=[{"name": "mlp"}]))
    )
    assert done.returncode == 0, done.stderr


def test_an_allow_list_loads_nothing_else(installed: Path) -> None:
    words = ("plugins", "list", "--json")
    for done in (
        recdistill(installed, "--only-plugin", "recdistill", "--only-plugin", "hinge", *words),
        recdistill(installed, *words, RECDISTILL_ONLY_PLUGIN="recdistill,hinge"),
    ):
        assert done.returncode == 0, done.stderr
        loaded = {row["distribution"] for row in json.loads(done.stdout) if row["status"] != "off"}
        assert loaded == {"recdistill", "recdistill-hinge"}
    done = recdistill(installed, "--only-plugin", "hnge", *words)
    assert done.returncode == 2
    assert "--only-plugin names 'hnge', which is no installed plugin (did you mean 'hinge'?)" in done.stdout


@pytest.mark.slow
def test_a_plugin_that_fails_in_training_is_named(installed: Path, config: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = recdistill(installed, "run", config(loss={"name": "late"}), "--out", str(out))
    assert done.returncode == 4
    assert "IndexError" in done.stderr
    assert "error: plugin 'late' (recdistill-late 0.7.0) failed: IndexError: " in done.stderr
    assert "the traceback above ends in its code" in done.stderr


def test_a_verb_of_a_plugin_that_is_off_is_no_riddle(installed: Path) -> None:
    done = recdistill(installed, "--only-plugin", "hinge", "config", "validate", "x.yaml")
    assert done.returncode == 2
    assert "there is no command 'config', and " in done.stderr
    assert "--only-plugin recdistill lets those load that ship with recdistill" in done.stderr
