"""A sweep of small runs: what they share is made once, what fails fails alone, and a killed sweep goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pipeline_cases import FEED, Verb, answer, command, config, environment, refused, run_of, write_config

from recdistill_core.config import load_yaml
from recdistill_sweep.tasks import Task, in_processes

pytestmark = pytest.mark.slow
SMALL: Mapping[str, Any] = {"students": ["mlp"], "seeds": [1, 2]}
GRID = {"strategy.alpha": [1, 10]}


def sweep_file(path: Path, dataset: Path | None, changes: Mapping[str, Any], **sections: Any) -> Path:
    plain = {"run": config(dataset, **{**SMALL, **changes}), **sections}
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_config(path, plain)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """A finished sweep that imports its own data: folder, document and messages; read-only."""
    home = tmp_path_factory.mktemp("sweep")
    file = sweep_file(home / "sweep.yaml", None, {}, grid=GRID)
    words = command("sweep", file, "--out", home / "out", "--workers", 2, "--json")
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    return home / "out", answer((ended.returncode, ended.stdout, ended.stderr)), ended.stderr


def test_the_runs_of_a_sweep_can_be_compared(done: tuple[Path, Any, str], recdistill: Verb) -> None:
    folders = sorted((done[0] / "runs").iterdir())
    found = answer(recdistill("compare", *folders, "--metric", "auc", "--resamples", 100, "--json"))
    assert len(found["rows"]) >= len(folders) > 1


def test_every_run_is_a_run_directory_equal_to_one_made_by_hand(
    done: tuple[Path, Any, str], recdistill: Verb, tmp_path: Path
) -> None:
    """By hand from the run's own configuration, which takes the shared parts, and without any of these."""
    out, document, _ = done
    assert list(document["runs"]) == ["alpha-1", "alpha-10"]
    for name, facts in document["runs"].items():
        run = out / facts["folder"]
        assert facts["status"] == "finished"
        assert facts["grid"] == {"strategy.alpha": int(name.removeprefix("alpha-"))}
        results = json.loads((run / "metrics.json").read_text())
        assert facts["numbers"]["mlp"]["auc"]["eta"] == results["eta"]["auc"]["value"]
        assert facts["numbers"]["mlp"]["ne"]["teacher"] == results["teacher"]["ne"]
    run = out / "runs/alpha-10"
    answer(recdistill("run", run / "config.yaml", "shared=''", "--out", tmp_path / "hand", "--json"))
    assert (tmp_path / "hand/metrics.json").read_bytes() == (run / "metrics.json").read_bytes()
    assert (tmp_path / "hand/labels").exists()
    answer(recdistill("run", run / "config.yaml", "--out", tmp_path / "again", "--json"))
    assert (tmp_path / "again/metrics.json").read_bytes() == (run / "metrics.json").read_bytes()
    assert not (tmp_path / "again/labels").exists()


def test_dataset_teachers_and_raw_students_are_made_once(done: tuple[Path, Any, str]) -> None:
    out, _, _ = done
    assert len(list((out / "shared/datasets").iterdir())) == 1
    assert len(list((out / "shared/steps").iterdir())) == 4
    for step in ("seed-1/teacher", "seed-2/teacher", "seed-1/mlp-raw", "seed-2/mlp-raw"):
        one, other = (out / "runs" / name / step / "model.safetensors" for name in ("alpha-1", "alpha-10"))
        assert one.samefile(other)
    labels = [
        json.loads((out / "runs/alpha-10" / f"seed-{seed}/{step}/manifest.json").read_text())["labels"]["version"]
        for step in ("teacher", "mlp-distilled")
        for seed in (1, 2)
    ]
    assert labels[:2] == labels[2:]
    assert labels[0] != labels[1]
    steps = [out / f"runs/alpha-{alpha}/seed-1/mlp-distilled/model.safetensors" for alpha in (1, 10)]
    assert steps[0].read_bytes() != steps[1].read_bytes()


def test_messages_say_what_started_what_finished_and_how_much_is_left(done: tuple[Path, Any, str]) -> None:
    out, document, said = done
    lines = [line for line in said.splitlines() if line]
    assert lines[0] == "runs to do: 2; before them, teachers and raw students: 4"
    for what in (
        "teacher hstu of alpha-1, seed 2",
        "raw student mlp of alpha-1, seed 1",
        "run alpha-1",
        "run alpha-10",
    ):
        assert f"started {what}" in lines
        assert [line for line in lines if line.startswith(f"finished {what} in ") and line.endswith(" left")], what
    assert lines[-1].endswith("; 0 left")
    assert {**document, "sweep": None} == {**json.loads((out / "sweep.json").read_text()), "sweep": None}
    assert "distilled student mlp, seed 1" in (out / "logs/alpha-10.log").read_text()


def test_a_finished_sweep_does_nothing_and_takes_further_runs(
    done: tuple[Path, Any, str], recdistill: Verb, tmp_path: Path
) -> None:
    out, document, _ = done
    again = tmp_path / "out"
    shutil.copytree(out, again)  # its runs name the shared folder of the other one
    file = sweep_file(tmp_path / "sweep.yaml", None, {"shared": str(out.resolve() / "shared")}, grid=GRID)
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*") if "runs" in path.parts}
    found = recdistill("sweep", file, "--out", again, "--json")
    numbers = {name: facts["numbers"] for name, facts in document["runs"].items()}
    assert {name: facts["numbers"] for name, facts in answer(found)["runs"].items()} == numbers
    assert "started" not in found[2]
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*") if "runs" in path.parts} == before
    more = {"strategy.alpha": [10, 3, 1]}
    file = sweep_file(tmp_path / "sweep.yaml", None, {"shared": str(out.resolve() / "shared")}, grid=more)
    planned = answer(recdistill("sweep", file, "--out", again, "--dry-run", "--json"))
    assert [facts["status"] for facts in planned["runs"].values()] == ["finished", "finished", "pending"]
    assert [part["runs"] for part in planned["shared"]] == [1, 1, 1, 1]
    assert not (again / "runs/alpha-3").exists()


def test_what_fails_fails_alone_and_the_command_fails(recdistill: Verb, feed_path: Path, tmp_path: Path) -> None:
    """One run on its data, one while it trains, one through a teacher that it shares with another."""
    file = sweep_file(
        tmp_path / "sweep.yaml",
        feed_path,
        {"seeds": [1]},
        arms={
            "good": {},
            "no-task": {"task": "like"},
            "no-examples": {"labels.examples": str(tmp_path / "absent.parquet")},
            "no-teacher": {"pretrained.path": str(tmp_path)},
            "no-teacher-either": {"pretrained.path": str(tmp_path), "strategy.alpha": 2},
        },
    )
    ended = recdistill("sweep", file, "--out", tmp_path / "out", "--workers", 2, "--json")
    runs = answer(ended, 1)["runs"]
    assert {name: facts["status"] for name, facts in runs.items()} == {
        "good": "finished",
        "no-examples": "failed",
        "no-task": "failed",
        "no-teacher": "failed",
        "no-teacher-either": "failed",
    }
    errors = {name: (facts["error"]["kind"], facts["error"]["error"]) for name, facts in runs.items() if name != "good"}
    assert errors["no-task"][0] == "DataError"
    assert "the dataset has no task 'like'" in errors["no-task"][1]
    assert "the list of examples cannot be read" in errors["no-examples"][1]
    assert errors["no-teacher"] == errors["no-teacher-either"]
    assert errors["no-teacher"][0] == "UsageError"
    assert "this folder holds no pre-trained model" in errors["no-teacher"][1]
    assert runs["no-teacher-either"]["error"]["task"] == "teacher hstu of no-teacher, seed 1"
    assert "Traceback" in (tmp_path / "out" / runs["no-examples"]["log"]).read_text()
    assert "failed: no-examples: the list of examples cannot be read" in ended[2]
    assert "failed teacher hstu of no-teacher, seed 1 (for 2 runs): this folder holds no pre-trained model" in ended[2]
    # once the cause is gone the same command does what is left
    shutil.copy(feed_path / "manifest.json", tmp_path / "absent.parquet")
    again = answer(recdistill("sweep", file, "--out", tmp_path / "out", "--json"), 1)["runs"]
    assert again["good"]["status"] == "finished"
    assert again["no-examples"]["status"] == "failed"


def test_a_sweep_that_is_killed_goes_on(done: tuple[Path, Any, str], tmp_path: Path) -> None:
    out, document, _ = done
    file = sweep_file(tmp_path / "sweep.yaml", None, {}, grid=GRID)
    words = command("sweep", file, "--out", tmp_path / "out", "--workers", 2, "--json")
    running = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    trains = tmp_path / "out/runs/alpha-1/seed-1/.mlp-distilled.part"
    until = time.monotonic() + 300
    while not trains.exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < until, "no run has started"
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not (tmp_path / "out/runs/alpha-1/metrics.json").exists()
    left = json.loads((tmp_path / "out/sweep.json").read_text())["runs"]
    assert left["alpha-1"]["status"] == "running"
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/shared").glob("steps/*/manifest.json")}
    assert len(made) == 4

    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    found = answer((ended.returncode, ended.stdout, ended.stderr))
    assert {name: facts["numbers"] for name, facts in found["runs"].items()} == {
        name: facts["numbers"] for name, facts in document["runs"].items()
    }
    for name in found["runs"]:
        ours, theirs = (folder / "runs" / name / "metrics.json" for folder in (tmp_path / "out", out))
        assert ours.read_bytes() == theirs.read_bytes()
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert "started teacher" not in ended.stderr


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_no_process_outlives_a_sweep_that_was_ended(name: str, feed_path: Path, tmp_path: Path) -> None:
    long = {"teacher_training": {"batch_size": 16, "batch_epochs": 200}, "seeds": [1]}
    file = sweep_file(tmp_path / "sweep.yaml", feed_path, long, grid=GRID)
    # a job in the background of a shell ignores SIGINT, and its children with it
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words = [sys.executable, "-c", f"{heed}from recdistill_core.cli import main; main()", "sweep", str(file)]
    words += ["--out", str(tmp_path / "out")]
    running = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out/runs/alpha-1/seed-1/.teacher.part/log/metrics.csv"
    until = time.monotonic() + 300
    while not log.exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < until, "no teacher is trained"
        time.sleep(0.02)
    running.send_signal(getattr(signal, name))
    # its pipes are closed once every process that inherited them has ended
    _, errors = running.communicate(timeout=120)
    if name == "SIGINT":
        assert running.returncode == 130
        assert "interrupted: what is finished stays, and the same command does the rest" in errors
    (lock,) = (path for path in (tmp_path / "out/shared/locks").iterdir() if not path.name.startswith("dataset"))
    with FileLock(lock, timeout=60):
        assert not list((tmp_path / "out/shared/steps").iterdir())


def test_a_process_that_is_killed_fails_its_run_alone(feed_path: Path, tmp_path: Path) -> None:
    def task(name: str, epochs: int) -> Task:
        plain = config(feed_path, **SMALL, teacher_training={"batch_size": 64, "batch_epochs": epochs})
        return Task(name, "teacher", tmp_path / f"{name}.log", {tmp_path / name: plain}, seed=1)

    def kill() -> None:
        while not (tmp_path / "long/seed-1/.teacher.part/log").exists():
            time.sleep(0.02)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = dict(in_processes([task("long", 1000), task("short", 1)], 1))
    killer.join()
    (failure,) = outcomes[0].failures.values()
    assert failure["kind"] == "ProcessEnded"
    assert "its process ended with signal 9, without a word" in failure["error"]
    assert outcomes[1].failures == {}
    assert (tmp_path / "short/seed-1/teacher/manifest.json").exists()


def test_what_is_refused_before_anything_runs(recdistill: Verb, feed_path: Path, tmp_path: Path) -> None:
    file = sweep_file(tmp_path / "sweep.yaml", feed_path, {}, grid=GRID)
    out = tmp_path / "out"
    refused(recdistill("sweep", file, "--out", out, "--workers", 0, "--json"), "UsageError", "workers must be >= 1")
    done = recdistill("sweep", file, "workers=2", "--out", out, "--json")
    refused(done, "ConfigError", "engine 'local' has no settings")
    assert not out.exists()
    out.mkdir()
    with FileLock(out / "sweep.lock"):
        refused(recdistill("sweep", file, "--out", out, "--json"), "UsageError", "another process is at this sweep")
    other = config(feed_path, **{**SMALL, "name": "alpha-1", "shared": str(out / "shared"), "threads": 2})
    run_of(out / "runs/alpha-1", other).raw_student("mlp", 1)
    done = recdistill("sweep", file, "--out", out, "--json")
    refused(done, "UsageError", "hold other runs than those of the sweep: 1", "alpha-1: the run directory holds")
    bad = sweep_file(tmp_path / "bad.yaml", feed_path, {}, grid={"strategy.alpha": [1, -1]})
    refused(recdistill("sweep", bad, "--out", out, "--json"), "ConfigError", "run alpha--1: strategy: alpha must be")


def test_a_dry_run_lists_the_runs_and_what_they_share(recdistill: Verb, tmp_path: Path) -> None:
    file = sweep_file(
        tmp_path / "sweep.yaml", None, {"seeds": [1]}, grid={**GRID, "dataset.importer.seed": [1, 2]}, arms={"a": None}
    )
    code, text, _ = recdistill("sweep", file, "--out", tmp_path / "out", "--dry-run")
    assert code == 0
    assert "4 runs" in text
    assert "teacher hstu of a,alpha-1,seed-1, seed 1: for 2 runs" in text
    assert "teacher hstu of a,alpha-1,seed-2, seed 1: for 2 runs" in text
    assert not (tmp_path / "out").exists()
    assert load_yaml(file)["run"]["dataset"]["importer"]["users"] == FEED["users"]


def test_tables_of_a_finished_sweep(done: tuple[Path, Any, str], recdistill: Verb, tmp_path: Path) -> None:
    out, document, _ = done
    file = sweep_file(tmp_path / "sweep.yaml", None, {}, grid=GRID)
    code, text, _ = recdistill("sweep", file, "--out", out)
    assert code == 0
    assert "alpha-10" in text
    assert f"{document['runs']['alpha-10']['numbers']['mlp']['auc']['eta']:.2f}" in text


def test_ray_does_the_runs_too(done: tuple[Path, Any, str], recdistill: Verb, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out, document, _ = done
    file = sweep_file(tmp_path / "sweep.yaml", None, {}, grid=GRID)
    words = ("cpus_per_worker=0.5", "--engine", "ray", "--workers", 2, "--out", tmp_path / "out", "--json")
    found = answer(recdistill("sweep", file, *words))
    assert {name: facts["status"] for name, facts in found["runs"].items()} == dict.fromkeys(found["runs"], "finished")
    for name in document["runs"]:
        ours, theirs = (folder / "runs" / name / "metrics.json" for folder in (tmp_path / "out", out))
        assert ours.read_bytes() == theirs.read_bytes()
