"""The HSTU teacher: a history is encoded once, and every row of the batch that refers to it is a candidate token."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.artefact import SHARD, load_as, save_teacher
from recdistill_core.batch import Batch, Scores
from recdistill_core.errors import ConfigError, DataError, Problem, UsageError
from recdistill_core.fingerprint import module_fingerprint
from recdistill_core.interfaces import HistoryWindow, TrainableTeacher
from recdistill_core.modes import evaluation
from recdistill_core.schema import Schema
from recdistill_hstu.attention import Attend, check_config, choose_backend, logger, prepare
from recdistill_hstu.cache import Encoded, EncodedHistories, weights_of
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.events import require_events
from recdistill_hstu.head import ScoringHead
from recdistill_hstu.layer import HSTULayer
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.scoring import extended, require_later, score_part
from recdistill_hstu.steps import plan_steps
from recdistill_hstu.stochastic import stochastic_length
from recdistill_hstu.tokens import TokenEmbedding


class HSTUTeacher(TrainableTeacher):
    """HSTU (arXiv 2402.17152) as a pointwise ranking model, with the candidate scheme of M-FALCON.

    History tokens are causal and see no candidate. A candidate passes through every layer, where it attends to the
    events before its ``row_end`` and to itself, never to another candidate. So a logit depends on its own row and on
    the events before it, and on nothing else in the batch; with ``stochastic_length``, in training, also on chance and
    on what the oldest row of its user sees, and balanced, on the lengths of the batch's other histories.

    Args:
        config: sizes and kinds.
        schema: the dataset's schema, with events.
        tasks: names of the tasks, one logit each.

    Raises:
        ConfigError: if the schema has no events, or the backend can never serve the configuration on this machine.
    """

    history: HistoryWindow

    def __init__(self, config: HSTUConfig, schema: Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        if not schema.events:
            raise ConfigError(
                [Problem("teacher", "hstu needs history, and the dataset has no events; import the log with events")]
            )
        check_config(config)
        self.config = config
        self.schema = schema
        self.history = HistoryWindow(config.max_length, config.history_stride, config.keep_oldest)
        self.tokens = TokenEmbedding(schema, config.width, added_action=config.added_action)
        self.layers = nn.ModuleList([HSTULayer(config) for _ in range(config.layers)])
        self.head = ScoringHead(config, schema, tasks)

    def training_scores(self, batch: Batch) -> Scores:
        """Logits ``{task: [N]}`` with gradient, in the current mode, and what the head read and made.

        ``hidden`` holds ``state [N, D]`` (the newest event that a row sees, after the last layer; zeros where it sees
        none), ``token [N, D]`` (the candidate, likewise) and ``head [N, H]`` (the head's last hidden layer).

        Raises:
            DataError: if a history is longer than ``max_length``, or its events lack a field of the schema.
            UsageError: if the configured backend cannot serve the tensors.
        """
        config = self.config
        layout = Layout.of(batch, Span(config.attend_recent, config.attend_oldest))
        layout.require(config.max_length)
        if self.training and config.stochastic_length and batch.history is not None:
            limit, alpha, balance = config.max_length, config.stochastic_length, config.stochastic_balance
            thinned = stochastic_length(batch.history, limit, alpha, balance=balance)
            batch = replace(batch, history=thinned)
            layout = Layout.of(batch, layout.span)
        events, token, newest = self._transduce(batch, layout)
        padded = torch.cat([events, events.new_zeros(1, events.shape[1])])  # the last for a row that sees no event
        return self.head.scores(token, padded.index_select(0, newest), batch.categorical, batch.numeric)

    def encode(self, events: Mapping[str, Tensor], offsets: Tensor) -> EncodedHistories:
        """Whole histories, of any length, encoded once for :meth:`score_candidates`; see :mod:`recdistill_hstu.cache`.

        Args:
            events: ``{name: [E]}`` as in a batch, oldest first. offsets: ``[U + 1]`` int64.

        Raises:
            DataError: if the events lack a field of the schema or have an action that it lacks, their time goes
                backwards, or the offsets do not part them.
        """
        require_events(self.tokens, events, offsets, max(len(offsets) - 1, 0))
        config, like = self.config, self.tokens.table.weight
        histories = len(offsets) - 1
        whole = Encoded.empty(histories, config.layers - config.truncate_layers, config, like, 0)
        truncated = Encoded.empty(histories, config.truncate_layers, config, like, config.width)
        nothing = EncodedHistories(
            {name: column[:0] for name, column in events.items()},
            torch.zeros_like(offsets),
            whole,
            truncated if config.truncate_layers else None,
            like.new_zeros(histories, config.width),
            weights_of(self),
        )
        return self.extend(nothing, events, offsets)

    def extend(self, encoded: EncodedHistories, events: Mapping[str, Tensor], offsets: Tensor) -> EncodedHistories:
        """``encoded`` with new events after those of each history; equal to encoding all of them again.

        A history is encoded again where the window that the teacher sees of it moves on, which happens once in
        ``history_stride`` events, and once in half of ``truncate_length`` in the truncated layers.

        Args:
            encoded: what :meth:`encode` or this gave.
            events: ``{name: [M]}`` the new ones. offsets: ``[U + 1]`` int64 of them by history.

        Raises:
            DataError: if there are offsets of another number of histories, an event is older than one before it, or
                the events lack a field of the schema.
            UsageError: if the weights have changed since.
        """
        self._require_same_weights(encoded)
        if len(offsets) != len(encoded.offsets):
            raise DataError(
                f"there are new events of {len(offsets) - 1} histories, and {len(encoded)} are encoded",
                where="HSTUTeacher.extend",
                fix="give one offset per history, and an empty range where a history has no new event",
            )
        with evaluation(self):
            return extended(self, encoded, events, offsets, self._backend(announce=True))

    def score_candidates(
        self, encoded: EncodedHistories, rows: Batch, owner: Tensor, *, micro_batch: int = 4096
    ) -> Scores:
        """Logits ``{task: [N]}`` of rows that see all events of their histories; equal to :meth:`score` of them.

        Args:
            encoded: what :meth:`encode` or :meth:`extend` gave.
            rows: ``N`` candidates; their ``history`` is not read.
            owner: ``[N]`` int64 in ``[0, U)``, the history of each.
            micro_batch: candidates that are computed together, >= 1; it bounds memory and changes no logit.

        Raises:
            DataError: if a row is not later than its history's newest event, or names no history, or breaks the
                contract of a batch (a feature that is NaN, say).
            UsageError: if the weights have changed since, or ``micro_batch`` is below 1.
        """
        self._require_same_weights(encoded)
        if micro_batch < 1:
            raise UsageError(
                f"micro_batch must be at least 1, got {micro_batch}",
                where="HSTUTeacher.score_candidates",
                fix="lower it only as far as memory asks",
            )
        if (
            getattr(owner, "shape", None) != (len(rows),)
            or owner.dtype != torch.int64
            or bool(((owner < 0) | (owner >= len(encoded))).any())
        ):
            raise DataError(
                f"owner must name one of {len(encoded)} histories for each of {len(rows)} rows",
                where="HSTUTeacher.score_candidates",
                fix="give [N] int64 in [0, number of histories)",
            )
        replace(rows, history=None).validate("candidates")
        require_later(rows.event_time, encoded.last_time()[owner], owner, "candidate", strictly=True)
        backend = self._backend(announce=True)
        with evaluation(self):
            parts = [
                score_part(self, encoded, rows.rows(part), owner[part], backend)
                for part in torch.split(torch.arange(len(rows), device=owner.device), micro_batch)
            ]
        return Scores({task: torch.cat([part[task] for part in parts]) for task in self.head.tasks})

    def _require_same_weights(self, encoded: EncodedHistories) -> None:
        if encoded.weights != weights_of(self):
            raise UsageError(
                "the teacher's weights have changed since the histories were encoded",
                where="HSTUTeacher.encode",
                fix="encode them again",
            )

    def _transduce(self, batch: Batch, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Events ``[S - N, D]`` and rows ``[N, D]`` after the last layer, and ``[N]`` the newest event of each row.

        Earlier layers compute every token that the next one reads once; the last one only those that the head reads.
        """
        backend, prepared = self._backend(announce=True), dict[int, Attend]()
        steps, newest = plan_steps(layout, self.config)
        x = self.tokens(batch)
        for layer, step in zip(self.layers, steps, strict=True):
            attend = prepared.get(id(step.layout)) or prepare(backend, step.layout, self.config)
            prepared = {id(step.layout): attend}
            x = layer(x, attend, step.asked)
            if step.passed is not None:
                x = x.index_select(0, step.passed)
        events, token = x.split([len(x) - layout.num_rows, layout.num_rows])
        return events, token, newest

    def save_pretrained(
        self, folder: Path | str, *, overwrite: bool = False, max_shard_size: int | str = SHARD
    ) -> None:
        """Write config.json and safetensors; see :func:`recdistill_core.artefact.save_teacher` for the errors."""
        save_teacher(
            self,
            folder,
            component="hstu",
            config=self.config,
            schema=self.schema,
            tasks=self.head.tasks,
            overwrite=overwrite,
            max_shard_size=max_shard_size,
        )

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> HSTUTeacher:
        """What :meth:`save_pretrained` wrote; see :func:`recdistill_core.artefact.load_as` for the errors."""
        return load_as(folder, "hstu", HSTUConfig, cls)

    def blocks(self) -> Sequence[nn.Module]:
        """The HSTU layers."""
        return list(self.layers)

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        """See :meth:`TrainableTeacher.id_embedding`; of the candidate token, else of the head."""
        found = self.tokens.of(kind, ids)
        return self.head.features.of(kind, ids) if found is None else found

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
