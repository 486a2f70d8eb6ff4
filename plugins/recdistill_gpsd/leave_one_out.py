"""Leave-one-out (arXiv 1808.09781): a user's last event is the test, the one before it may be for validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.schema import OOV
from recdistill_gpsd.model import NextEvent
from recdistill_gpsd.negatives import unit
from recdistill_gpsd.ranking import full_ranking
from recdistill_gpsd.sequences import Ints, Sequences

#: Most scores (users times items), and most events, held at a time.
SCORES, EVENTS = 1 << 23, 1 << 17


@dataclass(frozen=True)
class Ranked:
    """Ranks of the held-out items.

    Attributes:
        rank: ``[U']`` of the users who have a target. user: ``[U']`` their numbers.
        out_of_vocabulary: users left out because their target is no item of the vocabulary.
    """

    rank: NDArray[np.float64]
    user: Ints
    out_of_vocabulary: int


def rank_held_out(model: NextEvent, sequences: Sequences, back: int = 1, popularity: Ints | None = None) -> Ranked:
    """Rank each user's ``back``-th newest event before the cutoff among all items.

    The model is shown the newest ``max_length`` events before the target; with ``back=1`` that includes the event that
    is held out for validation. Users with no event before the target have none to be told from, and are left out.

    Args:
        model: in any mode; left as it was. sequences: what it was trained on.
        back: 1 for the test, 2 for validation; at most ``sequences.holdout``.
        popularity: ``[V]`` how often each item occurs: rank by that instead of by the model, as a yardstick.
    """
    if not 1 <= back <= sequences.holdout:
        raise ValueError(f"back must lie in [1, holdout = {sequences.holdout}], got {back}")
    users = np.flatnonzero(sequences.count > back)
    item = sequences.source.events(sequences.start[users] + sequences.count[users] - back, np.ones_like(users))["item"]
    known = (item > OOV) & (item < model.schema.num_items)
    users, target = users[known], item[known]
    table = model.table("item") if popularity is None else torch.from_numpy(popularity).double()[:, None]
    cosine = model.config.normalise and popularity is None
    step = max(1, min(SCORES // len(table), EVENTS // model.teacher.max_length))

    def parts() -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]]:
        for first in range(0, len(users), step):
            chosen = users[first : first + step]
            before = sequences.count[chosen] - back
            shown = np.minimum(before, model.teacher.max_length)
            events = sequences.source.events(sequences.start[chosen] + before - shown, shown)
            query = _query(model, events, shown) if popularity is None else table.new_ones(len(chosen), 1)
            seen = _seen(model, sequences, chosen, before, events["item"], shown)
            wanted = torch.from_numpy(target[first : first + step]).to(table.device)
            on_device = None if seen is None else (seen[0].to(table.device), seen[1].to(table.device))
            yield (unit(query) if cosine else query), wanted, on_device

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            rank = full_ranking(parts(), unit(table) if cosine else table)
    finally:
        model.train(was_training)
    return Ranked(rank, users, int((~known).sum()))


def _query(model: NextEvent, events: Mapping[str, Ints], counts: Ints) -> Tensor:
    """``[B, D]`` what is compared with the items after the last of the ``counts [B]`` events of each user."""
    device = model.tokens.table.weight.device
    lengths = torch.from_numpy(counts).to(device)
    state = model({name: torch.from_numpy(column).to(device) for name, column in events.items()}, lengths)
    return model.query(state[lengths.cumsum(0) - 1], "item")


def _seen(
    model: NextEvent, sequences: Sequences, users: Ints, before: Ints, shown_items: Ints, shown: Ints
) -> tuple[Tensor, Tensor] | None:
    """``(row, item)`` pairs that the configuration leaves out of the ranking."""
    if model.config.filter_seen == "none":
        return None
    items, counts = shown_items, shown
    if model.config.filter_seen == "all":
        items, counts = sequences.source.events(sequences.start[users], before)["item"], before
    rows = np.repeat(np.arange(len(users)), counts)
    inside = (items >= 0) & (items < model.schema.num_items)
    return torch.from_numpy(rows[inside]), torch.from_numpy(items[inside])
