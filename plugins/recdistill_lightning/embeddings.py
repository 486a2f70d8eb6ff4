"""Embedding distillation: a student's embedding of an item learns to hold what the teacher's does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError, IntegrityError, UsageError, suggest
from recdistill_core.interfaces import Student
from recdistill_core.schema import ITEM, OOV, Schema
from recdistill_core.strategy import Paced
from recdistill_core.weights import load_weights, save_weights
from recdistill_lightning.mixing import mix, uniform

TABLE, SEEN = "table.", "seen."


@dataclass(frozen=True)
class IdEmbeddings:
    """A teacher's id embeddings at one moment of its training.

    Attributes:
        tables: ``{kind: [V, W] float32}``, one row per id of the vocabulary.
        seen: ``{kind: [V] bool}``, ids that the teacher had been trained on by then; the others are as they were drawn.
    """

    tables: Mapping[str, Tensor]
    seen: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tables = {TABLE + kind: table for kind, table in self.tables.items()}
        save_weights({**tables, **{SEEN + kind: seen for kind, seen in self.seen.items()}}, path)

    @classmethod
    def load(cls, path: Path) -> IdEmbeddings:
        """Read what :meth:`save` wrote. Raises IntegrityError where it is absent, damaged or something else."""
        found = load_weights(path)
        tables = {name.removeprefix(TABLE): part for name, part in found.items() if name.startswith(TABLE)}
        if not tables or {SEEN + kind for kind in tables} - set(found):
            raise IntegrityError(
                "the file does not hold a teacher's embeddings",
                where=str(path),
                fix="take the file that a teacher step or IdEmbeddings.save wrote",
            )
        return cls(tables, {kind: found[SEEN + kind] for kind in tables})


class Entities:
    """Where a batch of a dataset holds the ids of each kind.

    Args:
        schema: of the dataset. kinds: ``item``, or names of categorical features.

    Attributes:
        sizes: ``{kind: V}``, ids of its vocabulary.

    Raises:
        DataError: for a kind that the dataset lacks.
    """

    def __init__(self, schema: Schema, kinds: Sequence[str]) -> None:
        columns = {feature.name: (at, feature) for at, feature in schema.feature_index()}
        self.sizes: dict[str, int] = {}
        self._columns: dict[str, int] = {}
        for kind in kinds:
            if kind == ITEM:
                self.sizes[kind] = schema.num_items
                continue
            if kind not in columns:
                known = [ITEM, *columns]
                raise DataError(
                    f"the dataset has no ids of kind {kind!r}{suggest(kind, known)}",
                    where=f"categorical features: {', '.join(columns) or 'none'}",
                    fix=f"name {ITEM!r} or one of these features",
                )
            self._columns[kind], feature = columns[kind]
            self.sizes[kind] = schema.vocabulary_size(feature.vocabulary)

    def ids(self, batch: Batch, kind: str) -> Tensor:
        """``[N]`` int64 in ``[0, V)``; an id that the vocabulary lacks is 0."""
        ids = batch.item_id if kind == ITEM else batch.categorical[:, self._columns[kind]]
        return torch.where((ids >= 0) & (ids < self.sizes[kind]), ids, OOV)


class EmbeddingDistillation(Paced):
    """Distillation Experts (DE; Kang et al. 2020, "DE-RRD: A Knowledge Distillation Framework for Recommender System",
    CIKM, arXiv 2012.04357, section 4.1), for the entities of each row::

        s = softmax((log softmax(S t) + g) / tau)        g from Gumbel(0, 1); tau falls geometrically, batch by batch
        loss = weight * |t - sum_m s_m E_m(e)|^2

    with ``t`` the teacher's embedding of an entity, ``e`` the student's, experts ``E_m`` (linear, ReLU, linear) and a
    linear map ``S``. An entity that the teacher had not been trained on, and id 0, count 0. Experts and ``S`` are
    parameters of this module alone and take no part in what is served. What is drawn depends on the seed, the batch's
    number and the entity, so that rows may come in any batches.

    Args:
        student: whose embeddings learn. teacher: what they learn. schema: of the dataset as the student reads it.
        weight: of the loss beside that of the rows, finite and >= 0. experts: >= 1.
        temperature, temperature_end: of the first and the last batch, finite and > 0.
        steps: training batches, >= 1. seed: of the experts' first weights and of what is drawn.

    Raises:
        UsageError: for a setting out of range. DataError: for a kind that the student or the dataset lacks, or of which
            the dataset has another number of ids.
    """

    at: Tensor

    def __init__(
        self,
        student: Student,
        teacher: IdEmbeddings,
        schema: Schema,
        *,
        steps: int,
        weight: float = 1.0,
        experts: int = 4,
        temperature: float = 1.0,
        temperature_end: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= weight < math.inf or experts < 1 or steps < 1 or seed < 0:
            raise UsageError(
                f"weight must be finite and >= 0, experts and steps >= 1, seed >= 0; got {weight}, {experts}, {steps} "
                f"and {seed}"
            )
        if not (0 < temperature < math.inf and 0 < temperature_end < math.inf):
            raise UsageError(f"temperatures must be finite and > 0, got {temperature} and {temperature_end}")
        self.weight, self.experts, self.steps, self.seed = weight, experts, steps, seed
        self.temperatures = (temperature, temperature_end)
        self.kinds = tuple(teacher.tables)
        self.entities = Entities(schema, self.kinds)
        self.parts = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):  # whatever is drawn here must not move what the student draws
            torch.default_generator.manual_seed(int(mix(np.uint64(seed)) >> np.uint64(1)))
            for kind, table in teacher.tables.items():
                if len(table) != self.entities.sizes[kind]:
                    raise DataError(
                        f"the teacher has {len(table):,} embeddings of kind {kind!r}, and the dataset "
                        f"{self.entities.sizes[kind]:,} ids",
                        where="EmbeddingDistillation",
                        fix="take the embeddings of a teacher that was trained on this dataset",
                    )
                width = embedding_width(student, kind)
                self.parts.append(ExpertProjection(table, teacher.seen[kind], width, experts))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    def temperature(self) -> float:
        """``tau`` of the batch at hand."""
        first, last = self.temperatures
        share = min(int(self.at) / max(1, self.steps - 1), 1.0)
        return float(first * (last / first) ** share)

    def terms(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """``{"embeddings/<kind>": [N]}``, the loss of each row's entity, times ``weight``."""
        found = {}
        for place, (kind, part) in enumerate(zip(self.kinds, self.parts, strict=True)):
            ids, row = torch.unique(self.entities.ids(batch, kind), return_inverse=True)
            embedding = student.id_embedding(kind, ids)
            if embedding is None:
                raise _no_embedding(student, kind)
            noise = self._gumbel(ids, place).to(embedding)
            found[f"embeddings/{kind}"] = self.weight * part(embedding, ids, noise, self.temperature())[row]
        return found

    def _gumbel(self, ids: Tensor, place: int) -> Tensor:
        """``[M, E]`` float64 draws from Gumbel(0, 1)."""
        salt = mix(mix(mix(np.uint64(self.seed)) + np.uint64(int(self.at))) + np.uint64(place))
        keys = mix(ids.cpu().numpy().astype(np.uint64) ^ salt)[:, None] + np.arange(self.experts, dtype=np.uint64)
        chance = np.maximum(uniform(keys), 2.0**-54)  # the logarithm of 0 is none
        return torch.from_numpy(-np.log(-np.log(chance)))

    def advance(self, batch: Batch) -> None:
        """One more batch is done."""
        self.at += 1


class ExpertProjection(nn.Module):
    """The experts of one kind of entity.

    Args:
        table: ``[V, W]`` the teacher's embeddings. seen: ``[V]`` bool, which of them count.
        width: of the student's embeddings. experts: how many.
    """

    table: Tensor
    seen: Tensor

    def __init__(self, table: Tensor, seen: Tensor, width: int, experts: int) -> None:
        super().__init__()
        wide = table.shape[1]
        middle = (width + wide) // 2
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, wide)) for _ in range(experts)
        )
        self.selector = nn.Linear(wide, experts)
        seen = seen.clone()
        seen[OOV] = False
        self.register_buffer("table", table.detach().float(), persistent=False)
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, embedding: Tensor, ids: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """``[M]`` squared distances.

        Args:
            embedding: ``[M, width]``, the student's. ids: ``[M]``. noise: ``[M, E]``. temperature: > 0.
        """
        target = self.table[ids]
        choice = torch.softmax((functional.log_softmax(self.selector(target), 1) + noise) / temperature, 1)
        projected = torch.stack([expert(embedding) for expert in self.experts], 1)
        distance = (target - (choice[:, :, None] * projected).sum(1)).square().sum(1)
        return torch.where(self.seen[ids], distance, 0.0)


def embedding_width(student: Student, kind: str) -> int:
    """Width of the student's embeddings of this kind. Raises DataError where it has none."""
    with torch.no_grad():
        found = student.id_embedding(kind, torch.zeros(1, dtype=torch.long))
    if found is None:
        raise _no_embedding(student, kind)
    return int(found.shape[1])


def _no_embedding(student: Student, kind: str) -> DataError:
    what = (
        "the item itself is no categorical feature of the dataset" if kind == ITEM else "it does not read the feature"
    )
    return DataError(
        f"{type(student).__name__} has no embedding of kind {kind!r}",
        where=f"{type(student).__module__}: id_embedding",
        fix=f"{what}, or the student does not say: implement id_embedding, or name other kinds",
    )
