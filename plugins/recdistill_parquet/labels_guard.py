"""Guards on values: what is no plausible logit is set aside with its reason, and too much of it stops the writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError
from recdistill_parquet.labels_limits import Limits as Limits

#: Rows from which the reference distribution of a version is learnt, and the fewest rows that are compared with it.
REFERENCE_ROWS, LEAST_ROWS, BINS = 8192, 512, 10
#: Rows before a writer stops early because too much of what it was given is implausible.
EARLY = 1000


@dataclass
class Guard:
    """Looks at the logits of one version as they come.

    Attributes:
        seen, set_aside: rows so far. reasons: ``{reason: rows}``.
    """

    limits: Limits
    names: Sequence[str]
    seen: int = 0
    set_aside: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    _reference: list[NDArray[np.float32]] = field(default_factory=list)

    def inspect(self, columns: Mapping[str, NDArray[Any]], where: str) -> NDArray[np.str_] | None:
        """``[N]`` why a row is set aside, an empty string where it is fine; None where all of them are.

        Raises:
            DataError: once more than the allowed share is set aside.
        """
        reason = None if self._all_fine(columns) else self._reasons(columns)
        self.seen += columns[self.names[0]].size
        if reason is not None:
            self.set_aside += int((reason != "").sum())
            for name, count in zip(*np.unique(reason[reason != ""], return_counts=True), strict=True):
                self.reasons[str(name)] = self.reasons.get(str(name), 0) + int(count)
        if self.seen >= EARLY:
            self.require_few(where)
        return reason

    def _all_fine(self, columns: Mapping[str, NDArray[Any]]) -> bool:
        """Whether no row has to be looked at; NaN is beyond any limit."""
        limit, parts = self.limits.max_abs_logit, [columns[name] for name in self.names]
        return self.limits.max_drift == 0 and all(
            not part.size or bool(part.max() <= limit and part.min() >= -limit) for part in parts
        )

    def _reasons(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.str_]:
        values = np.stack([columns[name] for name in self.names])
        reason = np.zeros(values.shape[1], dtype="<U12")
        with np.errstate(invalid="ignore"):
            reason[(np.abs(values) > self.limits.max_abs_logit).any(0)] = "out of range"
        reason[np.isinf(values).any(0)] = "infinite"
        reason[np.isnan(values).any(0)] = "NaN"
        if self.limits.max_drift > 0:
            fine = values[:, reason == ""]
            if self._drifted(fine):
                reason[reason == ""] = "drift"
        return reason

    def require_few(self, where: str) -> None:
        """Raise DataError if more than the allowed share was set aside."""
        if self.set_aside > self.limits.max_quarantined * self.seen:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
            raise DataError(
                f"{self.set_aside} of {self.seen} rows of logits are implausible ({counts}), more than the "
                f"{self.limits.max_quarantined:.2%} that the store sets aside",
                where=where,
                fix="look at the teacher: it may have diverged, or give probabilities; or raise "
                "the store's max_quarantined",
            )

    def _drifted(self, values: NDArray[np.float32]) -> bool:
        """Whether a batch ``[tasks, N]`` is far from the version's first rows; those are learnt from, never judged."""
        known = sum(part.shape[1] for part in self._reference)
        if known < REFERENCE_ROWS:
            self._reference.append(values[:, : REFERENCE_ROWS - known])
            return False
        if values.shape[1] < LEAST_ROWS:
            return False
        reference = np.concatenate(self._reference, axis=1)
        found = max(stability(reference[task], values[task]) for task in range(values.shape[0]))
        return found > self.limits.max_drift


def stability(reference: NDArray[Any], found: NDArray[Any], bins: int = BINS) -> float:
    """Population stability index of two samples over the deciles of the first one; 0 for equal distributions."""
    edges = np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1])
    shares = []
    for sample in (reference, found):
        counts = np.bincount(np.searchsorted(edges, sample, side="right"), minlength=bins)
        shares.append((counts + 0.5) / (sample.size + 0.5 * bins))  # half a row in each bin: no share is zero
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
