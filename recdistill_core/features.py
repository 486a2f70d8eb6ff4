"""Building blocks that turn a batch's columns into dense inputs; teachers and students share them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch
from recdistill_core.interfaces import HistoryWindow
from recdistill_core.schema import ITEM, OOV, Categorical, Schema


class FeatureEmbedding(nn.Module):
    """All categorical features in one embedding table, one lookup for a whole batch.

    Features that share a vocabulary share rows. Ids outside their vocabulary, negative ones included, read the
    out-of-vocabulary row; so a served model needs no mapping in front of it.

    Args:
        schema: the dataset's schema.
        width: ``d``, width of one feature's embedding.
        features: names of the categorical features to embed, in order; None takes all.
        std: standard deviation of the initial weights.
    """

    def __init__(self, schema: Schema, width: int, features: Sequence[str] | None = None, std: float = 0.05) -> None:
        super().__init__()
        names = [feature.name for feature in schema.categorical]
        chosen = names if features is None else list(features)
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise ValueError(f"unknown categorical features {unknown}; the dataset has {names}")
        by_name = dict(zip(names, schema.categorical, strict=True))
        bases: dict[str, int] = {}
        rows = 0
        for name in chosen:
            vocabulary = by_name[name].vocabulary
            if vocabulary not in bases:
                bases[vocabulary] = rows
                rows += schema.vocabulary_size(vocabulary)
        self.names = chosen
        self.item = next((name for name in chosen if _is_the_item(schema, by_name[name])), None)
        self.width = width
        self.out_width = width * len(chosen)
        self.table = nn.Embedding(max(rows, 1), width)
        nn.init.normal_(self.table.weight, std=std)
        self.columns: Tensor
        self.base: Tensor
        self.size: Tensor
        vocabularies = [by_name[name].vocabulary for name in chosen]
        self.register_buffer("columns", torch.tensor([names.index(name) for name in chosen], dtype=torch.long))
        self.register_buffer("base", torch.tensor([bases[name] for name in vocabularies], dtype=torch.long))
        self.register_buffer(
            "size", torch.tensor([schema.vocabulary_size(name) for name in vocabularies], dtype=torch.long)
        )

    def forward(self, categorical: Tensor) -> Tensor:
        """``[N, Fc]`` int64 ids -> ``[N, features * d]``."""
        ids = categorical[:, self.columns]
        ids = torch.where((ids >= 0) & (ids < self.size), ids, OOV)
        found: Tensor = self.table(ids + self.base)
        return found.flatten(1)

    def of(self, kind: str, ids: Tensor) -> Tensor | None:
        """``[M]`` ids -> ``[M, d]``, what :meth:`forward` makes of them; None where it embeds no such feature.

        Args:
            kind: name of a feature, or ``item`` for the one that is the item itself. ids: of its vocabulary.
        """
        name = self.item if kind == ITEM else kind
        if name not in self.names:
            return None
        place = self.names.index(name)
        ids = torch.where((ids >= 0) & (ids < self.size[place]), ids, OOV)
        found: Tensor = self.table(ids + self.base[place])
        return found


def _is_the_item(schema: Schema, feature: Categorical) -> bool:
    return feature.side == "item" and feature.vocabulary == schema.item_vocabulary


def history_inputs(batch: Batch, count: int) -> dict[str, Tensor]:
    """Plain tensors of the newest ``count`` events: ``history_item``, ``history_action`` ``[N, count]`` and
    ``history_seen`` ``[N, count]`` float32 of 0 and 1. A batch without histories gives none seen."""
    if batch.history is None:
        none = torch.zeros(len(batch), count, dtype=torch.long, device=batch.event_time.device)
        return {"history_item": none, "history_action": none, "history_seen": none.float()}
    events, seen = batch.history.last(count)
    return {"history_item": events["item"], "history_action": events["action"], "history_seen": seen.float()}


class RecentHistory(nn.Module):
    """Mean of item + action embeddings over the newest events of a row.

    The item embedding is its own table, so that the same item as candidate and as past event may differ.

    Args:
        schema: the dataset's schema, with events.
        width: ``d``, width of the pooled vector.
    """

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.out_width = width
        self.item = nn.Embedding(schema.num_items, width)
        self.action = nn.Embedding(schema.num_action_codes, width)
        nn.init.normal_(self.item.weight, std=0.05)
        nn.init.normal_(self.action.weight, std=0.05)

    def forward(self, history_item: Tensor, history_action: Tensor, history_seen: Tensor) -> Tensor:
        """``[N, K]`` ids, ``[N, K]`` action codes, ``[N, K]`` 0/1 -> ``[N, d]``; zeros where nothing is seen."""
        known = (history_item >= 0) & (history_item < self.item.num_embeddings)
        item = torch.where(known, history_item, OOV)
        action = torch.where((history_action >= 0) & (history_action < self.action.num_embeddings), history_action, 0)
        total = ((self.item(item) + self.action(action)) * history_seen[..., None]).sum(1)
        mean: Tensor = total / history_seen.sum(1, keepdim=True).clamp(min=1.0)
        return mean


class StudentInputs(nn.Module):
    """A student's dense input: categorical embeddings, numeric features and the pooled newest events, end to end.

    Args:
        schema: the dataset's schema.
        width: ``d``, width of each embedding.
        recent: ``K``, number of newest events pooled; 0, or a schema without events, leaves history out.
    """

    def __init__(self, schema: Schema, width: int, recent: int) -> None:
        super().__init__()
        self.categorical = FeatureEmbedding(schema, width)
        self.recent = recent if schema.events else 0
        self.pooled = RecentHistory(schema, width) if self.recent else None
        self.out_width = self.categorical.out_width + len(schema.numeric) + (width if self.recent else 0)

    @property
    def history(self) -> HistoryWindow | None:
        """The history window from which :meth:`tensors` can cut the newest ``K`` events exactly."""
        return HistoryWindow.newest(self.recent) if self.recent else None

    def tensors(self, batch: Batch) -> dict[str, Tensor]:
        """The plain inputs of :meth:`forward`, by name."""
        plain = {"categorical": batch.categorical, "numeric": batch.numeric}
        return {**plain, **history_inputs(batch, self.recent)} if self.recent else plain

    def forward(
        self,
        categorical: Tensor,
        numeric: Tensor,
        history_item: Tensor | None = None,
        history_action: Tensor | None = None,
        history_seen: Tensor | None = None,
    ) -> Tensor:
        """``[N, Fc]`` int64, ``[N, Fn]`` float32 and, with history, three ``[N, K]`` tensors -> ``[N, out_width]``."""
        parts = [self.categorical(categorical), numeric]
        if self.pooled is not None:
            if history_item is None or history_action is None or history_seen is None:
                raise ValueError("this student pools recent events: give history_item, history_action, history_seen")
            parts.append(self.pooled(history_item, history_action, history_seen))
        return torch.cat(parts, dim=1)


def dense_layers(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear -> SiLU -> Dropout for each consecutive pair of ``widths``; SiLU has no units that die on short logs."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class CrossLayer(nn.Module):
    """``x_{l+1} = x_0 * (W x_l + b) + x_l`` (DCN-v2, arXiv 2008.13535, equations 1 and 2).

    Args:
        width: ``F``. rank: of ``W = U V^T``; 0, or ``F`` and more, takes a full matrix.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        narrow = 0 < rank < width
        self.down: nn.Module = nn.Linear(width, rank, bias=False) if narrow else nn.Identity()
        self.up = nn.Linear(rank if narrow else width, width)

    def forward(self, first: Tensor, current: Tensor) -> Tensor:
        """``[N, F]``, ``[N, F]`` -> ``[N, F]``."""
        crossed: Tensor = first * self.up(self.down(current)) + current
        return crossed


class Tower(nn.Module):
    """``[N, D] -> {task: [N]}``: one hidden layer and one logit per task.

    Args:
        width: ``D``. hidden: width of the hidden layer; 0 for a linear tower. tasks: names, in order.
    """

    def __init__(self, width: int, hidden: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ValueError("a tower needs at least one task: give BuildContext(schema, tasks)")
        self.body = dense_layers([width, hidden]) if hidden else nn.Identity()
        self.out = nn.Linear(hidden or width, len(self.tasks))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Raw logits, before the sigmoid."""
        logits = self.out(self.body(features))
        return {task: logits[:, index] for index, task in enumerate(self.tasks)}
