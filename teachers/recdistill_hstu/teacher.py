"""The HSTU teacher: a history is encoded once, and every row of the batch that refers to it is a candidate token."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch, Scores
from recdistill_core.errors import ConfigError, DataError, Problem
from recdistill_core.fingerprint import module_fingerprint
from recdistill_core.interfaces import HistoryWindow, TrainableTeacher
from recdistill_core.schema import Schema
from recdistill_hstu.attention import check_config, choose_backend, logger, prepare
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.head import ScoringHead
from recdistill_hstu.layer import HSTULayer
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.stochastic import stochastic_length
from recdistill_hstu.tokens import TokenEmbedding


class HSTUTeacher(TrainableTeacher):
    """HSTU (arXiv 2402.17152) as a pointwise ranking model, with the candidate scheme of M-FALCON.

    History tokens are causal and see no candidate. A candidate passes through every layer, where it attends to the
    events before its ``row_end`` and to itself, never to another candidate. So a logit depends on its own row and on
    the events before it, and on nothing else in the batch.

    Args:
        config: sizes and kinds.
        schema: the dataset's schema, with events.
        tasks: names of the tasks, one logit each.

    Raises:
        ConfigError: if the schema has no events, or the backend can never serve the configuration on this machine.
    """

    def __init__(self, config: HSTUConfig, schema: Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        if not schema.events:
            raise ConfigError(
                [Problem("teacher", "hstu needs history, and the dataset has no events; import the log with events")]
            )
        check_config(config)
        self.config = config
        self.schema = schema
        self.history = HistoryWindow(config.max_length, config.history_stride)
        self.tokens = TokenEmbedding(schema, config.width, added_action=config.added_action)
        self.layers = nn.ModuleList([HSTULayer(config) for _ in range(config.layers)])
        self.head = ScoringHead(config, schema, tasks)

    def training_scores(self, batch: Batch) -> Scores:
        """Logits ``{task: [N]}`` with gradient, in the current mode.

        Raises:
            DataError: if a history is longer than ``max_length``, or its events lack a field of the schema.
            UsageError: if the configured backend cannot serve the tensors.
        """
        layout = Layout.of(batch, Span(self.config.attend_recent, self.config.attend_oldest))
        if layout.longest > self.config.max_length:
            raise DataError(
                f"a history of {layout.longest} events reached a teacher of max_length {self.config.max_length}",
                where="Batch.history.offsets",
                fix="ask the source for batches with teacher.history, or raise max_length",
            )
        if self.training and self.config.stochastic_length and batch.history is not None:
            thinned = stochastic_length(batch.history, self.config.max_length, self.config.stochastic_length)
            batch = replace(batch, history=thinned)
            layout = Layout.of(batch, layout.span)
        events, token, newest = self._transduce(batch, layout)
        padded = torch.cat([events, events.new_zeros(1, events.shape[1])])  # the last for a row that sees no event
        return Scores(self.head(token, padded.index_select(0, newest), batch.categorical, batch.numeric))

    def _transduce(self, batch: Batch, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Events ``[S - N, D]`` and rows ``[N, D]`` after the last layer, and ``[N]`` the newest event of each row.

        Earlier layers compute every token once; the last one only those that the head reads.
        """
        backend = self._backend(announce=True)
        x = self.tokens(batch)
        if len(self.layers) > 1:
            attend = prepare(backend, layout, self.config)
            for layer in list(self.layers)[:-1]:
                x = layer(x, attend)
        final, newest = layout.final()
        x = self.layers[-1](x, prepare(backend, final, self.config), final.token)
        events, token = x.split([final.asked_events, final.num_rows])
        return events, token, newest

    def blocks(self) -> Sequence[nn.Module]:
        """The HSTU layers."""
        return list(self.layers)

    def fingerprint(self) -> str:
        """Hex digest of weights, configuration, tasks and feature view; equal across processes."""
        return module_fingerprint(self, self.config, f"{self.schema.view_hash()}:{','.join(self.head.tasks)}")

    def describe(self) -> Mapping[str, Any]:
        """``{"attention": kind, "backend": the one in use where the weights are now}``."""
        return {"attention": self.config.attention, "backend": self._backend()}

    def _backend(self, *, announce: bool = False) -> str:
        weight = self.tokens.table.weight
        chosen = choose_backend(self.config, weight.device, weight.dtype)
        if announce:
            _announce(self.config.attention, chosen)
        return chosen


@functools.cache
def _announce(attention: str, backend: str) -> None:
    """Say once in a process which backend was chosen."""
    logger.info("hstu computes %s attention with the %s backend", attention, backend)
