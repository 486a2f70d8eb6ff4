"""A bad plugin neither kills the run nor hides: third-party distributions, installed by pip, seen by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    assert len(projects) == 7
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *map(str, projects)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return target


def recdistill(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own that sees the third-party distributions."""
    return subprocess.run(
        [sys.executable, "-c", "from recdistill_core.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"},
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=120,
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
    assert rows["recdistill-duplicate"]["status"] == "ok"


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
