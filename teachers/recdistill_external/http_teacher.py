"""Somebody else's model behind a service: rows go out in JSON, scores come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.batch import Batch, Scores
from recdistill_core.component import BuildContext
from recdistill_core.errors import DataError
from recdistill_external.config import HttpConfig
from recdistill_external.http_client import HttpClient, Unsound
from recdistill_external.raw_ids import RowFields
from recdistill_external.values import Tally, fingerprint_of

WHO = "teacher 'http'"


class HttpTeacher:
    """Asks a service for the scores of a batch; implements :class:`recdistill_core.interfaces.Teacher`.

    No label is sent. Building it asks nothing of the service.

    Args:
        config: the service. context: the schema, the tasks, and the source where ``fields`` names raw ids.
        client: sends the requests; None: one of its own.

    Attributes:
        batch_rows: rows of a request.

    Raises:
        UsageError: for a field that the dataset does not have, raw ids without a source, or a secret that is not set.
    """

    def __init__(self, config: HttpConfig, context: BuildContext, client: HttpClient | None = None) -> None:
        self.config, self.tasks, self.batch_rows = config, tuple(context.tasks), config.batch_rows
        self._view = context.schema.view_hash() if context.schema else ""
        self._fields = RowFields(tuple(config.fields), context, WHO)
        self._client = client or HttpClient(config)
        self._tally = Tally(config.rules())

    def score(self, batch: Batch) -> Scores:
        """Raw logits ``{task: [N]}``, NaN where an invalid score is skipped; one request for ``batch_rows`` rows.

        Raises:
            DataError: if the service gives no sound answer, runs another version, or gives invalid scores that are
                not to be skipped.
        """
        rows, ids = self._fields.of(batch), batch.example_id.cpu().numpy()
        tally = Tally(self.config.rules())
        parts: dict[str, list[NDArray[np.float32]]] = {task: [np.zeros(0, np.float32)] for task in self.tasks}
        for first in range(0, len(rows), self.config.batch_rows):
            part = slice(first, first + self.config.batch_rows)
            scores = self._client.post({"tasks": list(self.tasks), "rows": rows[part]}, self._check(ids[part].tolist()))
            for task in self.tasks:
                parts[task].append(tally.logits(task, scores[task], ids[part]))
        tally.settle(f"{self.config.url.partition('?')[0]}, version {self.config.version}")
        self._tally.merge(tally)
        device = batch.example_id.device
        return Scores({task: torch.from_numpy(np.concatenate(found)).to(device) for task, found in parts.items()})

    def fingerprint(self) -> str:
        """Hex digest of the version, the fields that are sent, the scale, the tasks and the feature view."""
        origin = [self.config.version, list(self.config.fields)]
        return fingerprint_of("http", origin, self.config.rules(), self.tasks, self._view)

    def describe(self) -> Mapping[str, Any]:
        """Version, and counts of requests, further attempts, clipped and skipped scores so far."""
        counts = {"requests": self._client.requests, "retries": self._client.retries}
        return {"version": self.config.version, **counts, **self._tally.describe()}

    def _check(self, ids: list[int]) -> Callable[[Any], dict[str, NDArray[np.float64]]]:
        def check(answer: Any) -> dict[str, NDArray[np.float64]]:
            if not isinstance(answer, dict):
                raise Unsound(f"the answer is no JSON object but {type(answer).__name__}")
            self._require_version(answer)
            if answer.get("ids") != ids:
                raise Unsound(_difference(ids, answer.get("ids")))
            scores = answer.get("scores")
            if not isinstance(scores, dict) or set(scores) != set(self.tasks):
                given = ", ".join(map(str, scores)) if isinstance(scores, dict) else type(scores).__name__
                raise Unsound(f"'scores' holds {given or 'no task'}, asked for were {', '.join(self.tasks)}")
            return {task: _numbers(task, scores[task], len(ids)) for task in self.tasks}

        return check

    def _require_version(self, answer: Mapping[str, Any]) -> None:
        found = answer.get("version")
        if found != self.config.version:
            says = "does not say which version it runs" if found is None else f"runs version {found!r}"
            raise DataError(
                f"the service {says}, and labels of version {self.config.version!r} were asked for",
                where=self.config.url.partition("?")[0],
                fix="labels of two models must not mix: give the version that it runs, whose labels are kept apart"
                if found is not None
                else "let every answer say the version, as in {'version': '2026-11-01', 'ids': [...], 'scores': {...}}",
            )


def _difference(asked: list[int], given: Any) -> str:
    """How the ids of an answer differ from those asked for."""
    if not isinstance(given, list):
        return f"'ids' is no list but {type(given).__name__}"
    if len(given) != len(asked):
        return f"the answer has {len(given)} ids for {len(asked)} rows"
    place = next(n for n, (one, other) in enumerate(zip(asked, given, strict=True)) if one != other)
    others = sorted(map(str, given)) != sorted(map(str, asked))
    kind = "the ids are others" if others else "the ids are in another order"
    return f"{kind}: place {place} has {given[place]!r}, asked for was {asked[place]}"


def _numbers(task: str, values: Any, rows: int) -> NDArray[np.float64]:
    if not isinstance(values, list) or len(values) != rows:
        count = len(values) if isinstance(values, list) else type(values).__name__
        raise Unsound(f"the scores of task {task!r} are {count} for {rows} rows")
    wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int | float | None)]
    if wrong:
        raise Unsound(f"the scores of task {task!r} hold {wrong[0]!r}, which is no number")
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError as error:
        raise Unsound(f"a score of task {task!r} is no 64-bit float") from error
