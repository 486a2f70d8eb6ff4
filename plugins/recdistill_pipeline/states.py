"""The hidden-state channel of a run: the teacher's states in its step's folder, and students that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recdistill_core.errors import UsageError
from recdistill_core.interfaces import SampleSource
from recdistill_lightning.modules import TeacherModule
from recdistill_lightning.state_capture import StateCapture, states_with_later
from recdistill_lightning.state_source import ROWS, StateSource
from recdistill_lightning.states import read_states, write_states
from recdistill_pipeline.checkpoint import save_weights
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.report import LOGITS_ALONE, WITH_STATES
from recdistill_pipeline.rundir import checked_file, read_json
from recdistill_pipeline.scoring import rows_by_user

STATES, COMPRESSOR = "states.parquet", "compressor.safetensors"


def channel_of(plan: Plan) -> str:
    """What passes from the teacher to the students of a run."""
    return WITH_STATES if plan.config.states.width else LOGITS_ALONE


def state_capture(plan: Plan) -> StateCapture | None:
    """The callback that keeps a teacher's states, where the configuration asks for them."""
    config = plan.config.states
    if not config.width:
        return None
    return StateCapture(config.width, config.bits, of=config.of, warmup_steps=plan.config.capture.warmup_steps)


def leave_states(
    plan: Plan,
    capture: StateCapture | None,
    module: TeacherModule,
    source: SampleSource,
    split: Split,
    seed: int,
    labels: str,
    out: Path,
) -> dict[str, Any]:
    """Write the teacher's states into its step's folder ``out``; returns what the step's manifest says of them.

    The rows after the teacher's own, on which it was not trained, get the states of the trained teacher; all of them,
    for other runs may share the teacher and test it on more rows. ``labels`` is the version of the labels.
    """
    if capture is None:
        return {}
    later = rows_by_user(
        source, np.arange(split.teacher[1], source.num_rows), module.history, plan.config.evaluation.batch_size
    )
    states = states_with_later(capture, module, later, source, {"labels": labels, "seed": seed})
    write_states(states, out / STATES)
    if capture.compressor is not None:
        save_weights(capture.compressor.state_dict(), out / COMPRESSOR)
    after = int(states.after_training.sum())
    kept = {"in_training": len(states) - after, "after_training": after}
    return {"states": {"width": states.width, "bits": states.bits, "of": capture.of, **kept}}


def with_states(plan: Plan, source: SampleSource, teacher: Path | None) -> SampleSource:
    """The dataset with the user's past states; as it is where the configuration asks for none.

    Args:
        plan: the run's. source: the dataset. teacher: folder of the finished teacher step; None: zeros in their place.

    Raises:
        IntegrityError: for a file of states that was changed, or is of another dataset.
    """
    config = plan.config.states
    if not config.width:
        return source
    states = None if teacher is None else read_states(checked_file(teacher, STATES), config.width)
    return StateSource(source, config.width, states, recent=config.recent, delay_ms=60_000 * config.delay_minutes)


def state_facts(plan: Plan, view: SampleSource, teacher: Path | None, rows: tuple[int, int]) -> dict[str, Any]:
    """What a distilled student's manifest says of the states that it reads at its training rows ``rows``.

    Raises:
        UsageError: where the student would see none, as nobody says where its teacher lies.
    """
    if not isinstance(view, StateSource):
        return {}
    if teacher is None:
        raise UsageError(
            "the student is to read hidden states, and no run directory is given",
            where="fit_student(run=None)",
            fix="give the run directory, or set states.width to 0",
        )
    config = plan.config.states
    return {
        "states": {
            "sha256": read_json(teacher / "manifest.json")["files"][STATES],
            "width": config.width,
            "bits": config.bits,
            "recent": config.recent,
            "delay_minutes": config.delay_minutes,
            "of": config.of,
            "rows_with_one": _share(view, rows),
        }
    }


def _share(view: StateSource, rows: tuple[int, int]) -> float:
    """Which share of the row positions ``[first, last + 1)`` has a state to read."""
    users, times = view.column("user_id"), view.column("event_time")
    found = 0
    for start in range(rows[0], rows[1], ROWS):
        part = slice(start, min(start + ROWS, rows[1]))
        found += int((view.features(users[part], times[part])[:, -1] > 0).sum())
    return found / (rows[1] - rows[0])
