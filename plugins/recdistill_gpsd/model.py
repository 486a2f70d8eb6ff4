"""The sequence model: the teacher's tokens and layers, and one prediction for each event field of the item's side.

Its parameters have the names that they have in the teacher (``tokens.table.weight``, ``layers.0.project.weight``).
Axes: ``E`` events of all sequences of a batch, end to end; ``B`` sequences; ``M`` targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core.batch import Batch, History
from recdistill_core.schema import OOV, Schema
from recdistill_gpsd.config import PretrainConfig
from recdistill_gpsd.negatives import Drawing, sampled_softmax
from recdistill_gpsd.sasrec import SASRecLayer, padded
from recdistill_hstu.attention import check_config, choose_backend, prepare
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layer import HSTULayer
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.tokens import TokenEmbedding


class InputPositions(nn.Module):
    """``Dropout(x * sqrt(D) + position)`` with a learnt position for each place (arXiv 1808.09781, official code).

    Args:
        length: places. width: ``D``. dropout: probability in [0, 1).
    """

    def __init__(self, length: int, width: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout)
        std = width**-0.5
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """``x [E, D]``, ``place [E]`` -> ``[E, D]``."""
        result: Tensor = self.dropout(x * x.shape[1] ** 0.5 + functional.embedding(place, self.weight))
        return result


class NextEvent(nn.Module):
    """Tells a user's next event from the events before it.

    The state after an event is compared with the embeddings of all values of a field: for the item as it is, for a
    further field after a linear map of its own.

    Args:
        teacher: sizes and kinds of the tokens and layers. config: how inputs are made and losses computed.
        schema: the dataset's schema, with events.

    Attributes:
        fields: names of the predicted event fields, ``item`` first.

    Raises:
        ConfigError: if the teacher's backend can never serve its configuration on this machine.
    """

    def __init__(self, teacher: HSTUConfig, config: PretrainConfig, schema: Schema) -> None:
        super().__init__()
        check_config(teacher)
        self.teacher, self.config, self.schema = teacher, config, schema
        self.tokens = TokenEmbedding(schema, teacher.width, added_action=teacher.added_action)
        sasrec = config.architecture == "sasrec"
        self.layers = nn.ModuleList([_sasrec(teacher) if sasrec else HSTULayer(teacher) for _ in range(teacher.layers)])
        inputs = InputPositions(teacher.max_length, teacher.width, config.input_dropout)
        self.positions = inputs if config.input_positions else None
        self.fields = predicted_fields(schema) if config.field_weight else ["item"]
        self.predict = nn.ModuleList([nn.Linear(teacher.width, teacher.width, bias=False) for _ in self.fields[1:]])

    def forward(self, events: Mapping[str, Tensor], lengths: Tensor) -> Tensor:
        """``[E, D]`` the state after every event; it depends on that event and those before it alone.

        Args:
            events: ``{field: [E] int64}`` with the action and the time. lengths: ``[B]`` events of each sequence.
        """
        batch = _only_events(events, lengths, len(self.schema.categorical))
        x: Tensor = self.tokens(batch)
        layout = Layout.of(batch, Span(self.teacher.attend_recent, self.teacher.attend_oldest))
        if self.positions is not None:
            x = self.positions(x, layout.position)
        if self.config.architecture == "sasrec":
            wide, flat = padded(x, lengths)
            for layer in self.layers:
                wide = layer(wide)
            return wide.flatten(0, 1).index_select(0, flat)
        backend = choose_backend(self.teacher, x.device, x.dtype)
        attend = prepare(backend, layout, self.teacher)
        for layer in self.layers:
            x = layer(x, attend)
        return x

    def table(self, field: str) -> Tensor:
        """``[size, D]`` embeddings of the values of an event field, a part of the tokens' table."""
        first, size = self.tokens.event_rows[:, self.tokens.fields.index(field)].tolist()
        return self.tokens.table.weight[first : first + size]

    def query(self, state: Tensor, field: str) -> Tensor:
        """``[M, D]`` what is compared with the embeddings of a field."""
        if field == "item":
            return state
        mapped: Tensor = self.predict[self.fields.index(field) - 1](state)
        return mapped

    def losses(
        self,
        state: Tensor,
        target: Mapping[str, Tensor],
        negative: Mapping[str, Tensor],
        drawing: Mapping[str, Drawing],
    ) -> dict[str, Tensor]:
        """``{field: [M']}``, without the targets that are out of vocabulary.

        Args:
            state: ``[M, D]`` after the event before each target. target: ``{field: [M]}``.
            negative: ``{field: [K] or [M, K]}``. drawing: what they were drawn from.
        """
        config, found = self.config, {}
        for field in self.fields:
            table, ids, others = self.table(field), target[field], negative[field]
            known = (ids > OOV) & (ids < len(table))
            found[field] = sampled_softmax(
                self.query(state[known], field),
                table,
                ids[known],
                others if others.dim() == 1 else others[known],
                drawing[field],
                temperature=config.temperature,
                normalise=config.normalise,
                log_q=config.log_q,
            )
        return found


def predicted_fields(schema: Schema) -> list[str]:
    """``item``, and the event fields that share the vocabulary of a feature of the item's side."""
    of_item = {feature.vocabulary for feature in schema.categorical if feature.side == "item"}
    further = [entry.name for entry in schema.events[1:] if entry.vocabulary in of_item - {schema.item_vocabulary}]
    return ["item", *further]


def trained_rows(model: NextEvent, occurrences: Mapping[str, Any]) -> Tensor:
    """``[rows]`` bool: rows of the tokens' table whose value occurs in the sequences.

    Args:
        occurrences: ``{field: [size]}`` of every field that tokens read.
    """
    tokens = model.tokens
    seen = torch.zeros(tokens.table.num_embeddings, dtype=torch.bool)
    for at, field in enumerate(tokens.fields):
        first, size = tokens.event_rows[:, at].tolist()
        seen[first : first + size] |= torch.from_numpy(occurrences[field]) > 0
    return seen


def _sasrec(teacher: HSTUConfig) -> SASRecLayer:
    return SASRecLayer(teacher.width, teacher.heads, teacher.width, teacher.dropout)


def _only_events(events: Mapping[str, Tensor], lengths: Tensor, features: int) -> Batch:
    """A batch of sequences without a single row of ``features`` categorical features."""
    none = lengths.new_zeros(0)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Batch(
        example_id=none,
        request_id=none,
        user_id=none,
        item_id=none,
        event_time=none,
        categorical=lengths.new_zeros(0, features),
        numeric=torch.zeros(0, 0, device=lengths.device),
        history=History(events, offsets, none, none),
    )
