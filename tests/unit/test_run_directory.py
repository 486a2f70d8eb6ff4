"""Steps of a run directory where two processes want the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from recdistill_core.errors import UsageError
from recdistill_pipeline.rundir import RunDirectory

STEP = "seed-1/teacher"


def opened(path: Path) -> RunDirectory:
    return RunDirectory(path / "run", {"name": "n"})


def work(out: Path) -> dict[str, str]:
    (out / "model").write_text("whole")
    return {"by": "me"}


def never(out: Path) -> dict[str, str]:
    raise AssertionError(f"{out} is done again")


def test_a_step_that_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    run = opened(tmp_path)
    theirs = run.scratch(STEP) / "model"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("half")
    (run.path / ".locks").mkdir()
    with FileLock(run.path / ".locks/seed-1-teacher.lock"):
        with pytest.raises(UsageError, match="another process is at this step") as error:
            run.step(STEP, never)
        assert f"{run.path / STEP}\n" in str(error.value)
        assert "wait for it, or give another --out" in str(error.value)
        assert theirs.read_text() == "half"
        run.step("seed-2/teacher", work)
    assert not run.done(STEP)
    # a process that has died left its scratch, and no lock
    assert run.step(STEP, work)["by"] == "me"
    assert not theirs.exists()
    assert run.checked(STEP, "model").read_text() == "whole"


def test_a_step_that_another_process_has_just_done_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    one.step(STEP, work)
    answers = iter([False])  # asked before the lock was free
    done = other.done
    monkeypatch.setattr(other, "done", lambda name: next(answers, None) is not False and done(name))
    assert other.step(STEP, never)["by"] == "me"


def test_what_a_step_returns_is_what_its_manifest_says(tmp_path: Path) -> None:
    first = opened(tmp_path).step(STEP, lambda out: {"path": tmp_path, "sizes": (1, 2)})
    assert first == opened(tmp_path).step(STEP, never) == {"path": str(tmp_path), "sizes": [1, 2], "files": {}}


def test_a_step_that_fails_lets_the_next_one_try(tmp_path: Path) -> None:
    run = opened(tmp_path)
    with pytest.raises(AssertionError, match="is done again"):
        run.step(STEP, never)
    assert run.step(STEP, work)["by"] == "me"
