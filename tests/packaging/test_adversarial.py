"""Plugins that load and train and do what none may do: the kit names each fault, from pytest and from the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FIXTURE = Path(__file__).parents[1] / "fixtures" / "thirdparty" / "adversarial"
#: (component, check) -> what the message must say.
FAULTS = {
    ("loss-mutates", "the_batch_is_never_changed"): "changes the batch that it is given: numeric",
    ("loss-reduces", "it_gives_one_loss_per_row"): "reduces by itself: returns shape [] for 48 rows",
    ("debiaser-moves", "data_stays_on_its_device"): "answers on another device than the batch's (cpu)",
    ("teacher-leaks", "labels_do_not_reach_a_logit"): "lets a label reach a logit",
    ("teacher-leaks", "other_rows_do_not_reach_a_logit"): "lets other rows reach a logit",
}

pytestmark = [pytest.mark.packaging, pytest.mark.slow]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the plugin, with a test file beside it."""
    target = tmp_path_factory.mktemp("adversarial")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(FIXTURE)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (target / "test_it.py").write_text(
        "from recdistill_core.testing import conformance\n\n"
        "@conformance('recdistill-adversarial')\ndef test_conformance(check):\n    check()\n"
    )
    return target


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "300"},
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_names_each_fault(installed: Path) -> None:
    shell = "from recdistill_core.cli import main; main()"
    done = run(installed, "-c", shell, "plugins", "check", "recdistill-adversarial", "--json")
    assert done.returncode == 4, done.stderr
    rows = json.loads(done.stdout)["checks"]
    found = {(f"{row['kind']}-{row['component'].split(':')[1]}", row["check"]): row for row in rows}
    for key, message in FAULTS.items():
        assert found[key]["status"] == "failed", key
        assert message in found[key]["detail"], key


def test_pytest_names_each_fault(installed: Path) -> None:
    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", "test_it.py")
    assert done.returncode == 1
    for (component, check), message in FAULTS.items():
        assert f"FAILED test_it.py::test_conformance[{component}-{check}]" in done.stdout
        assert message in done.stdout


def test_what_is_not_wrong_passes(installed: Path) -> None:
    done = run(
        *(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", "-k", "it_builds or unknown_key")
    )
    assert done.returncode == 0, done.stdout
