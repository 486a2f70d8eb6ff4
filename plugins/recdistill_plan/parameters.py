"""Parameters of an HSTU teacher by formula; the module on the meta device has as many."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from recdistill_plan.sizes import Model

TIME_BUCKETS = 129


class Parameters(NamedTuple):
    """Counts of parameters.

    Attributes:
        layer: of one HSTU layer. layers: of all. head: of the scoring head, its tables left out.
        tables: of all embedding tables, which are read by row ("sparse").
    """

    layer: int
    layers: int
    head: int
    tables: int

    @property
    def dense(self) -> int:
        """All but the tables."""
        return self.layers + self.head

    @property
    def total(self) -> int:
        """All."""
        return self.dense + self.tables


def count(model: Model) -> Parameters:
    """The parameters of ``model``.

    Raises:
        ValueError: if the schema lacks a vocabulary.
    """
    config = model.config
    biases = (config.max_length + 1) * config.position_bias + TIME_BUCKETS * config.time_bias
    layer = 5 * config.width**2 + biases
    tables = token_rows(model) * config.width + head_rows(model) * config.context_width
    return Parameters(layer, layer * config.layers, _head(model), tables)


def token_rows(model: Model) -> int:
    """Rows of the tokens' embedding table: items, event fields, actions, and what a candidate token holds besides."""
    schema = model.schema
    fields = {entry.vocabulary for entry in schema.events}
    candidate = {
        entry.vocabulary
        for entry in schema.categorical
        if entry.side == "item" or (entry.side == "context" and entry.vocabulary in fields)
    }
    rows = sum(schema.vocabulary_size(name) for name in {schema.item_vocabulary} | fields | candidate)
    return rows + schema.num_action_codes * model.config.added_action


def head_rows(model: Model) -> int:
    """Rows of the head's embedding table; features that share a vocabulary share rows."""
    return max(1, sum(model.schema.vocabulary_size(name) for name in set(model.head_features())))


def _head(model: Model) -> int:
    config, width = model.config, model.head_width()
    up = config.cross_rank if model.narrow_crosses() else width
    cross = width * config.cross_rank * model.narrow_crosses() + up * width + width
    sizes = [width + config.width, *config.hidden]
    deep = sum(before * after + after for before, after in pairwise(sizes))
    return config.cross_layers * cross + deep + (width + sizes[-1] + 1) * len(model.tasks)
