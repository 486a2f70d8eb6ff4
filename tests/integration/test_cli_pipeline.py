"""The verbs of the pipeline: one JSON document, exit codes, steps, signals; and the Lightning example."""

from __future__ import annotations

import ast
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pipeline_cases import FEED, Verb, answer, command, config, environment, refused, run_of, write_config

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "train_with_lightning.py"
SMALL: Mapping[str, Any] = {"seeds": [1], "students": ["mlp"]}


@pytest.mark.slow
def test_run_prints_one_document_and_the_steps_give_the_same(recdistill: Verb, tmp_path: Path) -> None:
    """``run`` in a process of its own, against import, verify, teacher, student and evaluate one by one."""
    whole = write_config(tmp_path / "whole.yaml", config(**SMALL))
    words = command("run", whole, "--out", tmp_path / "whole", "--json")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    found = answer((done.returncode, done.stdout, done.stderr))
    assert found["run"] == str(tmp_path / "whole")
    assert {**found, "run": None} == {**json.loads((tmp_path / "whole/metrics.json").read_text()), "run": None}

    settings = [f"{key}={value}" for key, value in FEED.items() if key != "name"]
    dataset = tmp_path / "dataset"
    made = answer(recdistill("data", "import", "simulator", *settings, "--out", dataset, "--json"))
    assert made["rows"] == 3000
    assert answer(recdistill("data", "verify", dataset, "--json"))["ok"] is True
    steps, out = write_config(tmp_path / "steps.yaml", config(dataset, **SMALL)), tmp_path / "steps"
    early = recdistill("student", "fit", steps, "--out", out, "--json")
    refused(early, "UsageError", "seed 1 has no teacher yet", "run 'teacher fit' first")
    assert answer(recdistill("teacher", "fit", steps, "--out", out, "--json")) == [str(out / "seed-1/teacher")]
    students = answer(recdistill("student", "fit", steps, "--out", out, "--json"))
    assert students == [str(out / f"seed-1/mlp-{kind}") for kind in ("distilled", "raw")]
    again = answer(recdistill("evaluate", out, "--json"))
    assert {**again, "run": None} == {**found, "run": None}


def test_exit_code_2_is_wrong_usage(recdistill: Verb, tmp_path: Path) -> None:
    path = write_config(tmp_path / "run.yaml", config(capture={"mode": "leaky"}))
    refused(recdistill("run", path, "--out", tmp_path / "out", "--json"), "ConfigError", "capture.allow_leaky=true")
    assert not (tmp_path / "out").exists()


def test_exit_code_3_is_bad_data(recdistill: Verb, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,event_time,clicked\na,x,1650000000000,1\nb,y,1650000000001,2\n")
    (tmp_path / "log.yaml").write_text("tasks: {click: clicked}\n")
    words = [f"path={tmp_path / 'log.csv'}", f"schema={tmp_path / 'log.yaml'}", "--out", tmp_path / "dataset"]
    done = recdistill("data", "import", "table", *words, "--json")
    refused(done, "DataError", "2", "log.csv")
    assert not (tmp_path / "dataset").exists()


def test_exit_code_4_is_a_plugin(recdistill: Verb, tmp_path: Path) -> None:
    path = write_config(tmp_path / "run.yaml", config(teacher={"name": "hstuu"}))
    done = recdistill("run", path, "--out", tmp_path / "out", "--json")
    refused(done, "PluginError", "no teacher is named 'hstuu' (did you mean 'hstu'?)")


def test_exit_code_5_is_damage(recdistill: Verb, feed_path: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(feed_path, dataset)
    part = dataset / "impressions" / "part-00000.arrow"
    whole = bytearray(part.read_bytes())
    whole[len(whole) // 2] ^= 1
    part.write_bytes(whole)
    refused(recdistill("data", "verify", dataset, "--json"), "IntegrityError", "sha256 differs", str(part))
    plain = recdistill("data", "verify", dataset)
    assert plain[:2] == (5, "")
    assert "error: a file of the dataset is damaged" in plain[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_in_a_fit_fails_the_run_and_a_rerun_completes_it(name: str, feed_path: Path, tmp_path: Path) -> None:
    plain = config(feed_path, **SMALL, teacher_training={"batch_size": 16, "batch_epochs": 4})
    path, out = write_config(tmp_path / "run.yaml", plain), tmp_path / "out"
    # a job in the background of a shell ignores SIGINT, and its children with it
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    shell = f"{heed}from recdistill_core.cli import main; main()"
    command = [sys.executable, "-c", shell, "run", str(path), "--out", str(out)]
    running = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = out / "seed-1/.teacher.part/log/metrics.csv"
    until = time.monotonic() + 120
    while not log.exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < until, "training did not start"
        time.sleep(0.05)
    running.send_signal(getattr(signal, name))
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 1, errors
    assert "teacher, seed 1 was interrupted" in errors
    assert "run the same command again" in errors
    assert list(out.glob("seed-1/*")) == [out / "seed-1/.teacher.part"]
    assert not (out / "seed-1/.teacher.part/manifest.json").exists()
    assert not list((out / "labels/segments").iterdir())
    if name == "SIGTERM":  # once is enough
        run_of(out, plain).all()
        assert (out / "metrics.json").exists()
        assert not list(out.rglob("*.part"))


def test_the_example_is_short() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    docstring = tree.body[0]
    lines = EXAMPLE.read_text().splitlines()[docstring.end_lineno :]
    assert sum(1 for line in lines if line.strip() and not line.strip().startswith("#")) <= 25


@pytest.mark.slow
def test_the_example_runs(feed_path: Path, tmp_path: Path) -> None:
    shutil.copytree(feed_path, tmp_path / "dataset")
    words = [sys.executable, str(EXAMPLE), str(tmp_path / "dataset")]
    done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (labels,) = (tmp_path / "labels" / "segments").iterdir()
    assert pq.read_metadata(labels).num_rows == 2400
    metrics = (tmp_path / "student/version_0/metrics.csv").read_text().splitlines()
    assert "val/auc" in metrics[0]
    assert len(metrics) >= 3
