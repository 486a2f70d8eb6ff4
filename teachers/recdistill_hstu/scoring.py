"""Encoding histories, letting them grow, and scoring candidates against them; see :mod:`recdistill_hstu.cache`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.interfaces import HistoryWindow
from recdistill_hstu.cache import Encoded, EncodedHistories, Merge, Stack, advance, candidates, moved_on
from recdistill_hstu.events import require_events
from recdistill_hstu.layout import ranges
from recdistill_hstu.steps import truncation

if TYPE_CHECKING:
    from recdistill_hstu.layer import HSTULayer
    from recdistill_hstu.teacher import HSTUTeacher


def stacks(teacher: HSTUTeacher, backend: str) -> tuple[Stack, Stack]:
    """The layers that see whole windows, and the truncated ones."""
    config, layers = teacher.config, cast("list[HSTULayer]", list(teacher.layers))
    whole = config.layers - config.truncate_layers
    last = Stack(layers[whole:], config, backend, last=True)
    return Stack(layers[:whole], config, backend, last=not last.layers), last


def extended(
    teacher: HSTUTeacher, encoded: EncodedHistories, events: Mapping[str, Tensor], offsets: Tensor, backend: str
) -> EncodedHistories:
    """See :meth:`HSTUTeacher.extend`."""
    require_events(teacher.tokens, {**dict.fromkeys(encoded.events), **events}, offsets, len(encoded))
    _require_order(encoded, events, offsets)
    whole, truncated = stacks(teacher, backend)
    together = Merge(encoded.offsets, offsets)
    past = {name: together(column, events[name]) for name, column in encoded.events.items()}
    start = teacher.history.start(together.offsets.diff())
    keep = start == encoded.whole.start
    since = torch.where(keep, encoded.offsets.diff(), 0)
    index, added = window_places(teacher.history, together.offsets, start, since)
    seen = {name: column[index] for name, column in past.items()}
    grown, x = advance(whole, moved_on(encoded.whole, keep, start), teacher.tokens.events(seen), seen["time"], added)
    shorter = None
    if encoded.truncated is not None:
        shorter, x, added = _truncate(teacher, encoded.truncated, keep, grown, truncated, (x, seen["time"], added))
    state = encoded.state.clone()
    state[added.diff() > 0] = x.to(state.dtype)
    return EncodedHistories(past, together.offsets, grown, shorter, state, encoded.weights)


def _truncate(
    teacher: HSTUTeacher,
    before: Encoded,
    keep: Tensor,
    whole: Encoded,
    stack: Stack,
    new: tuple[Tensor, Tensor, Tensor],
) -> tuple[Encoded, Tensor, Tensor]:
    """The truncated layers after those that see whole windows.

    Args:
        teacher: the model. before: its truncated layers so far.
        keep: ``[U]`` which histories only grew. whole: the other layers now. stack: the truncated ones.
        new: what these layers give them, ``[M, D]`` at times ``[M]`` and with offsets ``[U + 1]``.

    Returns:
        the truncated layers, ``[U', D]`` newest events of the histories that have new ones, and ``[U + 1]`` offsets of
        those.
    """
    window = truncation(teacher.config)
    assert window is not None
    inputs, times, added = new
    known = moved_on(before, keep, torch.where(keep, before.start, 0))
    together = Merge(known.offsets, added)
    inputs, times = together(known.inputs, inputs), together(known.time, times)
    start = window.start(whole.lengths)
    same = keep & (start == before.start)
    first = torch.where(same, known.lengths, start - known.start)  # of what is new to these layers, among the inputs
    counts = together.offsets.diff() - first
    index = ranges(together.offsets[:-1] + first, counts)
    added = pad(counts.cumsum(0), (1, 0))
    cache, x = advance(stack, moved_on(before, same, start), inputs[index], times[index], added)
    return cache, x, added


def window_places(window: HistoryWindow, offsets: Tensor, start: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
    """Which events windows that begin at ``start [U]`` show of those at places ``since [U]`` and later.

    Returns:
        ``[M]`` int64 places among the events of ``offsets [U + 1]``, and ``[U + 1]`` int64 offsets of them by history.
    """
    oldest = torch.where((start > 0) & (since == 0), window.oldest, 0)
    first = torch.maximum(start, since)
    begin = torch.stack([offsets[:-1], offsets[:-1] + first], 1)
    counts = torch.stack([oldest, offsets.diff() - first], 1)
    return ranges(begin.flatten(), counts.flatten()), pad(counts.sum(1).cumsum(0), (1, 0))


def score_part(
    teacher: HSTUTeacher, encoded: EncodedHistories, rows: Batch, owner: Tensor, backend: str
) -> dict[str, Tensor]:
    """Logits of some candidates; see :meth:`HSTUTeacher.score_candidates`."""
    x = teacher.tokens.candidates(rows)
    for stack, cache in zip(stacks(teacher, backend), (encoded.whole, encoded.truncated), strict=True):
        if cache is not None:
            x = candidates(stack, cache, x, owner, rows.event_time)
    return teacher.head(x, encoded.state[owner], rows.categorical, rows.numeric)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _require_order(encoded: EncodedHistories, events: Mapping[str, Tensor], offsets: Tensor) -> None:
    """Raise DataError where a new event is older than one before it."""
    owner = torch.repeat_interleave(torch.arange(len(encoded), device=offsets.device), offsets.diff())
    before = encoded.last_time()[owner]
    inside = owner[1:] == owner[:-1]
    before[1:] = torch.where(inside, events["time"][:-1], before[1:])
    require_later(events["time"], before, owner, "event", strictly=False)


def require_later(time: Tensor, before: Tensor, owner: Tensor, what: str, *, strictly: bool) -> None:
    """Raise DataError unless each ``time [M]`` is at or, where ``strictly``, after the time ``before [M]``."""
    wrong = (time <= before) if strictly else (time < before)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise DataError(
            f"{what} {first} has time {int(time[first])}, and the event before it {int(before[first])}",
            where=f"history {int(owner[first])}",
            fix="give events in order of time, and candidates an event_time after every event that they see",
        )
