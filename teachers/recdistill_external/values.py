"""From somebody else's scores to raw logits: every value is checked, and whatever is changed or left out is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.batch import ABSURD_LOGIT
from recdistill_core.errors import DataError
from recdistill_core.fingerprint import digest
from recdistill_external.config import ValueRules

BROKEN = "are NaN or infinite"
OUTSIDE = "lie outside [0, 1]"
EDGE = "are 0 or 1, whose logit is infinite"
ABSURD = f"have a logit beyond +-{ABSURD_LOGIT:g}"


@dataclass
class Fault:
    """Scores of one task that are none, for one reason: how many, and the first one."""

    count: int
    example: int
    value: float


@dataclass
class Tally:
    """Scores seen so far.

    Attributes:
        rules: what the scores mean.
        scored, clipped: ``{task: rows}`` that have a score, and of them those whose probability was clipped.
        faults: ``{(task, reason): fault}``.
    """

    rules: ValueRules
    scored: dict[str, int] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)

    def logits(
        self,
        task: str,
        scores: NDArray[np.float64],
        example_id: NDArray[np.int64],
        absent: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Raw logits ``[N]`` of ``scores [N]``; NaN where there is none: ``absent [N]``, or an invalid score.

        Invalid scores are only counted here; :meth:`settle` refuses them.
        """
        known = np.ones(scores.shape, np.bool_) if absent is None else ~absent
        with np.errstate(invalid="ignore", divide="ignore"):
            logit, reasons = self._probability(scores) if self.rules.scale == "probability" else _logit(scores)
        for reason, wrong in reasons.items():
            wrong &= known
            known &= ~wrong
            self._count(task, reason, wrong, scores, example_id)
        self.scored[task] = self.scored.get(task, 0) + int(known.sum())
        if self.rules.clip:
            moved = known & ((scores < self.rules.clip) | (scores > 1.0 - self.rules.clip))
            self.clipped[task] = self.clipped.get(task, 0) + int(moved.sum())
        return np.where(known, logit, np.nan).astype(np.float32)

    def settle(self, where: str) -> None:
        """Raise DataError for invalid scores, unless the rules say to skip them."""
        if not self.faults or self.rules.invalid == "skip":
            return
        parts = [
            f"{fault.count:,} of task {task!r} {reason}, the first one ({fault.value:g}) of example {fault.example}"
            for (task, reason), fault in self.faults.items()
        ]
        edge = any(reason == EDGE for _, reason in self.faults)
        unit = any(reason == OUTSIDE for _, reason in self.faults)
        fixes = ["set clip, such as 1e-6, for probabilities of 0 and 1"] if edge else []
        fixes += ["set scale: logit if these are values before the sigmoid"] if unit else []
        raise DataError(
            f"scores cannot be used: {'; '.join(parts)}",
            where=where,
            fix="; ".join([*fixes, "mend the scores, or set invalid: skip to leave these rows without a label"]),
        )

    def merge(self, other: Tally) -> None:
        """Add the counts of ``other``."""
        for mine, theirs in ((self.scored, other.scored), (self.clipped, other.clipped)):
            for task, count in theirs.items():
                mine[task] = mine.get(task, 0) + count
        for key, fault in other.faults.items():
            old = self.faults.get(key)
            self.faults[key] = Fault(old.count + fault.count, old.example, old.value) if old else Fault(**vars(fault))

    def describe(self) -> Mapping[str, Any]:
        """Counts as plain values; ``skipped`` by task and reason."""
        skipped: dict[str, dict[str, int]] = {}
        for (task, reason), fault in self.faults.items():
            skipped.setdefault(task, {})[reason] = fault.count
        return {"scored": dict(self.scored), "clipped": dict(self.clipped), "skipped": skipped}

    def _probability(self, scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
        reasons = {BROKEN: ~np.isfinite(scores), OUTSIDE: (scores < 0.0) | (scores > 1.0)}
        if self.rules.clip:
            scores = np.clip(scores, self.rules.clip, 1.0 - self.rules.clip)
        else:
            reasons[EDGE] = (scores == 0.0) | (scores == 1.0)
        logit = np.log(scores) - np.log1p(-scores)
        reasons[ABSURD] = np.abs(logit) > ABSURD_LOGIT
        return logit, reasons

    def _count(
        self,
        task: str,
        reason: str,
        wrong: NDArray[np.bool_],
        scores: NDArray[np.float64],
        example_id: NDArray[np.int64],
    ) -> None:
        if not wrong.any():
            return
        first = int(np.argmax(wrong))
        fault = self.faults.setdefault((task, reason), Fault(0, int(example_id[first]), float(scores[first])))
        fault.count += int(wrong.sum())


def _logit(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
    return scores, {BROKEN: ~np.isfinite(scores), ABSURD: np.abs(scores) > ABSURD_LOGIT}


def fingerprint_of(kind: str, origin: Any, rules: ValueRules, tasks: tuple[str, ...], view: str) -> str:
    """32 hex digits of where the scores come from, what they mean, the tasks and the hash of the feature view."""
    plain = [kind, origin, rules.scale, rules.clip, list(tasks), view]
    return digest(plain) + digest(["second half", *plain])
