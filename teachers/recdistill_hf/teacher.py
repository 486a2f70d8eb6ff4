"""The ``hf`` teacher: a transformers decoder over item and action embeddings, with many candidates per history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.artefact import SHARD, load_as, save_teacher
from recdistill_core.batch import Batch, Scores
from recdistill_core.errors import ConfigError, Problem
from recdistill_core.fingerprint import module_fingerprint
from recdistill_core.interfaces import HistoryWindow, TrainableTeacher
from recdistill_core.schema import Schema
from recdistill_hf.config import HFConfig
from recdistill_hf.decoder import make_decoder
from recdistill_hf.encode import encode_packed, encode_padded
from recdistill_hstu.attention import check_config, choose_backend, prepare
from recdistill_hstu.bias import TIME_BUCKETS, time_bucket
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.head import ScoringHead
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.tokens import TokenEmbedding


class HFTeacher(TrainableTeacher):
    """A decoder of transformers as a pointwise ranking model, with the candidate scheme of M-FALCON (2402.17152).

    An event at place ``i`` of its history has position id ``i``; a candidate that sees ``n`` events has ``n``. Events
    are causal. A candidate attends to the events before its ``row_end`` and to itself, never to another candidate: its
    token is what the plain decoder gives for the last token of a sequence of these events and the candidate.

    Args:
        config: architecture and sizes.
        schema: the dataset's schema, with events.
        tasks: names of the tasks, one logit each.

    Attributes:
        config: as given, but without ``pretrained_decoder``: the weights are in the teacher.
        decoder: the transformers model; ``decoder.save_pretrained`` writes it in transformers' own form.

    Raises:
        ConfigError: if the schema has no events, the architecture lacks an option, ``pretrained_decoder`` holds another
            decoder, or the backend can never serve the configuration on this machine.
        IntegrityError: if the weights in ``pretrained_decoder`` cannot be read.
    """

    def __init__(self, config: HFConfig, schema: Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        if not schema.events:
            raise ConfigError(
                [Problem("teacher", "hf needs history, and the dataset has no events; import the log with events")]
            )
        self.config = replace(config, pretrained_decoder="")
        self.schema = schema
        self.history = HistoryWindow(config.max_length, config.history_stride)
        self.tokens = TokenEmbedding(schema, config.width, added_action=config.added_action)
        # one row more than there are buckets, for a token with no event before it
        self.gap = nn.Embedding(TIME_BUCKETS + 1, config.width) if config.time_gap else None
        if self.gap is not None:
            nn.init.zeros_(self.gap.weight)
        self.decoder: Any = make_decoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.head = ScoringHead(config, schema, tasks)
        self._attention = self._attention_config()
        if config.backend != "padded":
            check_config(self._attention)

    def training_scores(self, batch: Batch) -> Scores:
        """Logits ``{task: [N]}`` with gradient, in the current mode, and what the head read and made.

        ``hidden`` holds ``state [N, D]`` (the newest event that a row sees, after the last layer; zeros where it sees
        none), ``token [N, D]`` (the candidate, likewise) and ``head [N, H]`` (the head's last hidden layer).

        Raises:
            DataError: if a history is longer than ``max_length``, or its events lack a field of the schema.
            UsageError: if the configured backend cannot serve the tensors.
        """
        layout = Layout.of(batch, Span(self.config.attend_recent, self.config.attend_oldest))
        layout.require(self.config.max_length)
        x = self.tokens(batch)
        if self.gap is not None:
            x = x + self.gap(time_gaps(layout))
        encoded = self.dropout(self._encode(self.dropout(x), layout))
        events, token = encoded.split([layout.num_events, layout.num_rows])
        ends, owner = layout.visible[layout.num_events :], layout.history[layout.num_events :]
        padded = torch.cat([events, events.new_zeros(1, events.shape[1])])  # the last for a row that sees no event
        newest = torch.where(ends > 0, layout.offsets[owner] + ends - 1, layout.num_events)
        return self.head.scores(token, padded.index_select(0, newest), batch.categorical, batch.numeric)

    def _encode(self, x: Tensor, layout: Layout) -> Tensor:
        backend = self._backend()
        if backend == "padded":
            return encode_padded(self.decoder, x, layout, self.config.score_budget)
        return encode_packed(self.decoder, x, layout, prepare(backend, layout, self._attention))

    def save_pretrained(
        self, folder: Path | str, *, overwrite: bool = False, max_shard_size: int | str = SHARD
    ) -> None:
        """Write config.json and safetensors; see :func:`recdistill_core.artefact.save_teacher` for the errors."""
        save_teacher(
            self,
            folder,
            component="hf",
            config=self.config,
            schema=self.schema,
            tasks=self.head.tasks,
            overwrite=overwrite,
            max_shard_size=max_shard_size,
        )

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> HFTeacher:
        """What :meth:`save_pretrained` wrote; see :func:`recdistill_core.artefact.load_as` for the errors."""
        return load_as(folder, "hf", HFConfig, cls)

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        """See :meth:`TrainableTeacher.id_embedding`; of the candidate token, else of the head."""
        found = self.tokens.of(kind, ids)
        return self.head.features.of(kind, ids) if found is None else found

    def fingerprint(self) -> str:
        """Hex digest of weights, configuration, tasks and feature view; equal across processes."""
        return module_fingerprint(self, self.config, f"{self.schema.view_hash()}:{','.join(self.head.tasks)}")

    def describe(self) -> Mapping[str, Any]:
        """``{"architecture": its name, "backend": the one in use where the weights are now}``."""
        return {"architecture": self.config.architecture, "backend": self._backend()}

    def _backend(self) -> str:
        if self.config.backend == "padded":
            return "padded"
        weight = self.tokens.table.weight
        return choose_backend(self._attention, weight.device, weight.dtype)

    def _attention_config(self) -> HSTUConfig:
        """What the jagged backends are told: softmax attention without bias, of the decoder's heads."""
        head = self.config.options.get("head_dim", self.config.width // self.config.heads)
        return HSTUConfig(
            width=self.config.heads * head,
            heads=self.config.heads,
            max_length=self.config.max_length,
            history_stride=self.config.history_stride,
            attend_recent=self.config.attend_recent,
            attend_oldest=self.config.attend_oldest,
            attention="softmax",
            backend="auto" if self.config.backend == "padded" else self.config.backend,
            position_bias=False,
            time_bias=False,
            score_budget=self.config.score_budget,
        )


def time_gaps(layout: Layout) -> Tensor:
    """``[T]`` int32 bucket of the time since the newest event that a token sees besides itself; 129 where none.

    Args:
        layout: of all tokens.
    """
    before = layout.position  # an event's place, a row's row_end: how many events come before either
    newest = (layout.offsets[layout.history] + before - 1).clamp(min=0)
    if not layout.num_events:
        return torch.full_like(before, TIME_BUCKETS)
    bucket = time_bucket(layout.time - layout.event_time[newest])
    return torch.where(before > 0, bucket, TIME_BUCKETS)
