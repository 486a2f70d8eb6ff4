"""A Python function as a teacher, for scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.batch import Batch, Scores
from recdistill_core.component import BuildContext
from recdistill_core.errors import DataError, UsageError
from recdistill_external.config import ValueRules
from recdistill_external.values import Tally, fingerprint_of


class ExternalTeacher:
    """Scores of a function; implements :class:`recdistill_core.interfaces.Teacher`.

    Args:
        function: ``function(batch) -> {task: [N]}``, or ``[N]`` where there is one task, of tensors, arrays or lists;
            NaN or None is an invalid score. The batch comes without labels.
        fingerprint: what names the model behind it, such as ``ranker 2026-11-01``; a function cannot be hashed. A new
            model needs a new one.
        scale: ``probability`` or ``logit``: what the function returns.
        context: the schema and the tasks.
        clip, invalid: see :class:`recdistill_external.config.ValueRules`.

    Raises:
        UsageError: for settings out of range, or without a fingerprint or a task.
    """

    def __init__(
        self,
        function: Callable[[Batch], Any],
        *,
        fingerprint: str,
        scale: str,
        context: BuildContext,
        clip: float = 0.0,
        invalid: str = "refuse",
    ) -> None:
        if not fingerprint.strip():
            raise UsageError(
                "an external teacher needs a fingerprint: a function cannot be hashed",
                fix="name the model and its version, such as fingerprint='ranker 2026-11-01'",
            )
        if not context.tasks:
            raise UsageError("an external teacher needs at least one task", fix="give BuildContext(schema, tasks)")
        try:
            self.rules = ValueRules(scale, clip, invalid)
        except ValueError as error:
            raise UsageError(f"the external teacher {fingerprint!r} has a bad setting: {error}") from error
        self.function, self.name, self.tasks = function, fingerprint, tuple(context.tasks)
        self._view = context.schema.view_hash() if context.schema else ""
        self._tally = Tally(self.rules)

    def score(self, batch: Batch) -> Scores:
        """Raw logits ``{task: [N]}``, NaN where an invalid score is skipped.

        Raises:
            DataError: if the function returns other tasks or shapes, or invalid scores that are not to be skipped.
        """
        where = f"external teacher {self.name!r}"
        with torch.no_grad():
            answer = self.function(replace(batch, labels={}, observed={}, teacher=None))
        found = answer if isinstance(answer, Mapping) else dict.fromkeys(self.tasks[:1], answer)
        if set(found) != set(self.tasks):
            raise DataError(
                f"the function scored the tasks {', '.join(map(str, found)) or 'none'}; asked for were "
                f"{', '.join(self.tasks)}",
                where=where,
                fix="return {task: scores} with one score for each row",
            )
        tally, ids = Tally(self.rules), batch.example_id.cpu().numpy()
        logits = {task: tally.logits(task, _floats(found[task], len(batch), task, where), ids) for task in self.tasks}
        tally.settle(where)
        self._tally.merge(tally)
        device = batch.example_id.device
        return Scores({task: torch.from_numpy(logit).to(device) for task, logit in logits.items()})

    def fingerprint(self) -> str:
        """Hex digest of the name given, the scale, the tasks and the feature view."""
        return fingerprint_of("function", self.name, self.rules, self.tasks, self._view)

    def describe(self) -> Mapping[str, Any]:
        """The name given and counts of what was scored, clipped and skipped so far."""
        return {"fingerprint": self.name, **self._tally.describe()}


def _floats(values: Any, rows: int, task: str, where: str) -> NDArray[np.float64]:
    """``[rows]`` of whatever was returned; None becomes NaN."""
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        found = np.asarray(plain, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the scores of task {task!r} are no numbers: {error}", where=where, fix="return one number for each row"
        ) from error
    if found.shape != (rows,):
        raise DataError(
            f"the scores of task {task!r} have shape {list(found.shape)} for {rows} rows",
            where=where,
            fix="return one score for each row of the batch, in its order",
        )
    return found
