"""The sweep files and the tables of ``make bench-eta``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_cases import config, environment, run_of

from recdistill_core.registry import installed
from recdistill_sweep.planned import plan_all
from recdistill_sweep.sweepfile import read_sweep

ROOT = Path(__file__).resolve().parents[2]
ETA = ROOT / "benchmarks/eta"
(LISTED,) = re.findall(r"^ETA = ((?:.+\\\n)*.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
SWEEPS = sorted(path.name for path in ETA.glob("t*-*.yaml"))
QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1]}


def pages(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, ETA / "tables.py", folder, "--out", out]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_arm_of_a_sweep_file_can_start(name: str, tmp_path: Path) -> None:
    base, arms = read_sweep(ETA / name)
    plan_all(base, list({arm.arm: arm for arm in arms}.values()), tmp_path, installed())  # one of each arm's grid
    dataset = name.partition("-")[2].removesuffix(".yaml")
    names = [arm.name for arm in arms]
    if name.startswith("tables-"):
        assert f"{dataset},strategy-rec_distill" in names
        assert dataset in LISTED.replace("\\", " ").split()
    else:
        assert all(entry.startswith(f"{name.removesuffix('.yaml')},") for entry in names)


def test_every_name_that_the_target_goes_through_has_its_file() -> None:
    names = LISTED.replace("\\", " ").split()
    assert sorted(f"tables-{name}.yaml" for name in names) == [name for name in SWEEPS if name.startswith("tables-")]


@pytest.mark.slow
def test_pages_hold_what_the_runs_say(feed_path: Path, tmp_path: Path) -> None:
    arms: dict[str, dict[str, Any]] = {
        "strategy-rec_distill": {},
        "strategy-single": {"strategy": "single"},
        "capture-leaky": {"capture": {"mode": "leaky", "allow_leaky": True}},
        "size-students": {"students": ["mlp", {"name": "mlp", "hidden": [8]}]},
    }
    found = {}
    for name, changes in arms.items():
        plain = config(feed_path, **{**QUICK, **changes}, shared=str(tmp_path / "sweep/shared"))
        found[name] = run_of(tmp_path / f"sweep/runs/simulator,{name}", plain).all()
    out = tmp_path / "pages"
    done = pages(tmp_path / "sweep", out)
    assert done.returncode == 0, done.stderr
    text = (out / "simulator.md").read_text()
    assert "over [simulator.yaml](simulator.yaml), the first one is the default recipe" in text
    assert "| parameters of the student | parameters of the teacher |" in text
    for row, name in (("rec_distill", "strategy-rec_distill"), ("single", "strategy-single")):
        raw, distilled, teacher = (found[name][side]["auc"] for side in ("raw", "distilled", "teacher"))
        assert f"| {row} | {raw:.4f} → {distilled:.4f} ({teacher:.4f}) |" in text
    assert "| leaky (leaky: no result) |" in text
    assert "| students: mlp-2 |" in text
    plots = {path.name for path in out.glob("*.png")}
    assert plots == {f"simulator-{key}-{metric}.png" for key in ("strategy", "capture") for metric in ("auc", "ne")} | {
        f"simulator-size-{metric}-by-{what}.png" for metric in ("auc", "ne") for what in ("student", "teacher")
    }
    assert all(plot in text for plot in plots)


def test_without_runs_it_says_what_to_do(tmp_path: Path) -> None:
    done = pages(tmp_path, tmp_path / "pages")
    assert done.returncode == 1
    assert "there is no finished run DATASET,ROW" in done.stderr
    assert "to do: make bench-eta" in done.stderr
    (tmp_path / "runs/simulator,capture-leaky").mkdir(parents=True)
    (tmp_path / "runs/simulator,capture-leaky/metrics.json").write_text("{}")
    done = pages(tmp_path, tmp_path / "pages")
    assert done.returncode == 1
    assert "simulator,strategy-rec_distill is not finished, which every table begins with" in done.stderr
