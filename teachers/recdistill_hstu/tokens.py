"""Embeddings of events and candidates (ULTRA-HSTU, arXiv 2602.16986: item and action are added, not interleaved)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.schema import ITEM, OOV, Schema

ACTION = "<action>"


class TokenEmbedding(nn.Module):
    """One token per event and one per row.

    An event token is the sum of the embeddings of its fields (the item first) and of its action code. A candidate token
    is the sum of its item and of those categorical features that are on the item's side or share the vocabulary of an
    event field (a user's features never); it has no action. What shares a vocabulary shares a table. A feature of the
    item vocabulary on the item's side is the item again and is left out. Ids outside their vocabulary read row 0.

    Args:
        schema: the dataset's schema, with events.
        width: ``D``.
        added_action: whether events carry their action.
        std: standard deviation of the initial embeddings.
    """

    def __init__(self, schema: Schema, width: int, *, added_action: bool, std: float = 0.02) -> None:
        super().__init__()
        self.fields = [entry.name for entry in schema.events] + (["action"] if added_action else [])
        self.actions = schema.num_action_codes if added_action else 0
        in_events = [entry.vocabulary for entry in schema.events]
        chosen = [
            (column, feature.vocabulary)
            for column, feature in schema.feature_index()
            if (feature.side == "item" and feature.vocabulary != schema.item_vocabulary)
            or (feature.side == "context" and feature.vocabulary in in_events)
        ]
        sizes = {name: schema.vocabulary_size(name) for name in [schema.item_vocabulary, *in_events]}
        sizes |= {name: schema.vocabulary_size(name) for _, name in chosen}
        if added_action:
            sizes[ACTION] = schema.num_action_codes
        self.columns = [column for column, _ in chosen]
        self.names = [feature.name for feature in schema.categorical]
        self.table = nn.Embedding(sum(sizes.values()), width)
        nn.init.normal_(self.table.weight, std=std)
        event_tables = in_events + ([ACTION] if added_action else [])
        candidate_tables = [schema.item_vocabulary] + [name for _, name in chosen]
        self.event_rows: Tensor
        self.candidate_rows: Tensor
        self.register_buffer("event_rows", _rows(sizes, event_tables), persistent=False)
        self.register_buffer("candidate_rows", _rows(sizes, candidate_tables), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """``[E + N, D]``: all events in order, then one candidate per row.

        Raises:
            DataError: if the batch's events lack a field of the schema, or its rows have other categorical features.
        """
        ids = [self._of_candidates(batch)]
        if batch.history is not None:
            ids.insert(0, self._of_events(batch.history.events))
        return self._summed(ids)

    def of(self, kind: str, ids: Tensor) -> Tensor | None:
        """``[M]`` ids -> ``[M, D]``, their part of a candidate token; None for what is no part of it.

        Args:
            kind: ``item``, or the name of a categorical feature. ids: of its vocabulary.
        """
        parts = [ITEM, *(self.names[column] for column in self.columns)]
        if kind not in parts:
            return None
        found: Tensor = self.table(_lookup(ids[:, None], self.candidate_rows[:, parts.index(kind), None])[:, 0])
        return found

    def events(self, events: Mapping[str, Tensor]) -> Tensor:
        """``[E, D]`` of events ``{name: [E]}`` alone. Raises DataError as :meth:`forward` does."""
        return self._summed([self._of_events(events)])

    def candidates(self, batch: Batch) -> Tensor:
        """``[N, D]`` of the rows alone."""
        return self._summed([self._of_candidates(batch)])

    def _of_candidates(self, batch: Batch) -> Tensor:
        if batch.categorical.shape[1] != len(self.names):
            raise DataError(
                f"the batch has {batch.categorical.shape[1]} categorical features, and the teacher was built for "
                f"{len(self.names)}: {', '.join(self.names)}",
                where="Batch.categorical",
                fix="build batches with the source of the dataset whose schema the teacher was built with",
            )
        return _lookup(torch.cat([batch.item_id[:, None], batch.categorical[:, self.columns]], 1), self.candidate_rows)

    def _of_events(self, events: Mapping[str, Tensor]) -> Tensor:
        missing = [name for name in self.fields if name not in events]
        if missing:
            raise DataError(
                f"the batch's events lack {', '.join(missing)}",
                where=f"Batch.history.events: {', '.join(events)}",
                fix="build batches with the source of the dataset whose schema the teacher was built with",
            )
        return _lookup(torch.stack([events[name] for name in self.fields], dim=1), self.event_rows)

    def _summed(self, ids: Sequence[Tensor]) -> Tensor:
        """``[M, D]`` sums of the embeddings in each row of ``ids [M_i, F_i]``, part after part."""
        counts = torch.cat([torch.full((len(part),), part.shape[1], device=part.device) for part in ids])
        starts = counts.cumsum(0) - counts
        flat = torch.cat([part.flatten() for part in ids])
        tokens: Tensor = functional.embedding_bag(flat, self.table.weight, starts, mode="sum")
        return tokens


def _rows(sizes: dict[str, int], tables: Sequence[str]) -> Tensor:
    """``[2, F]`` int64: first row and size of each table within the one table that holds all of ``sizes``."""
    first, start = {}, 0
    for name, size in sizes.items():
        first[name] = start
        start += size
    return torch.tensor([[first[name] for name in tables], [sizes[name] for name in tables]])


def _lookup(ids: Tensor, rows: Tensor) -> Tensor:
    """``[M, F]`` ids -> ``[M, F]`` rows of the common table."""
    first, size = rows
    known: Tensor = (ids >= 0) & (ids < size)
    return torch.where(known, ids, OOV).add(first)
