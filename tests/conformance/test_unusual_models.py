"""Teachers, students and strategies that look unlike the shipped ones and keep the contract: no check may fail them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from model_cases import GoodStudent, GoodTeacher
from torch import Tensor, nn
from wrong import Plain

from recdistill_core import Batch, BuildContext, Component, HistoryWindow, Scores
from recdistill_core.features import FeatureEmbedding, Tower
from recdistill_core.interfaces import HeadStrategy, LossParts
from recdistill_core.registry import PluginRecord, Registered
from recdistill_core.testing import checks_for, run_check, sample_batch


class BlackBox:
    """Scores that somebody else computed, by example; no torch module."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        ids = sample_batch().example_id.tolist()
        self.scores = {key: float(place % 5 - 2) for place, key in enumerate(ids)}
        self.tasks = context.tasks

    def score(self, batch: Batch) -> Scores:
        found = [self.scores[key] for key in batch.example_id.tolist()]
        logit = torch.tensor(found, device=batch.event_time.device)
        return Scores(dict.fromkeys(self.tasks, logit))

    def fingerprint(self) -> str:
        return "00ff" * 8


class FrozenBox(nn.Module):
    """A trained torch model that is only asked, without history."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__()
        self.inner = GoodTeacher(config, context).requires_grad_(False).eval()
        self.history = self.inner.history

    def train(self, mode: bool = True) -> FrozenBox:
        return self

    def score(self, batch: Batch) -> Scores:
        return self.inner.score(batch)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


class Noisy(GoodTeacher):
    """Dropout modules, functional dropout and a layer that starts at zero."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.drop = nn.Dropout(0.3)
        self.late = nn.Linear(self.features.out_width, self.features.out_width)
        nn.init.zeros_(self.late.weight)
        nn.init.zeros_(self.late.bias)

    def dense(self, batch: Batch) -> Tensor:
        found = super().dense(batch)
        return nn.functional.dropout(self.drop(found + self.late(found).tanh()), 0.2, self.training)


class OncePerUser(GoodTeacher):
    """Encodes each (history, end) pair once, however many rows share it, with prefix sums over all events."""

    def dense(self, batch: Batch) -> Tensor:
        past = batch.history
        assert past is not None
        pairs, place = torch.unique(torch.stack([past.row_to_history, past.row_end], 1), dim=0, return_inverse=True)
        value = torch.sin(past.events["item"].float())
        total = torch.cat([value.new_zeros(1), value.cumsum(0)])
        first = past.offsets[pairs[:, 0]]
        mean = (total[first + pairs[:, 1]] - total[first]) / pairs[:, 1].clamp(min=1)
        return super().dense(batch) + self.scale * mean[place][:, None]

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.scale = nn.Parameter(torch.ones(()))


class NoHistory(GoodTeacher):
    """Reads no history, and says so."""

    recent = 0


class Normalised(GoodStudent):
    """Batch statistics, dropout and no history."""

    recent = 0

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.norm = nn.Sequential(nn.BatchNorm1d(self.width), nn.Dropout(0.5))

    def encode(self, **inputs: Tensor) -> Tensor:
        found: Tensor = self.norm(self.dense(self.features(**inputs)))
        return found


class Attentive(GoodStudent):
    """Attention over a padded history, with dropout inside the layer; the unseen places are masked."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.history = HistoryWindow(6, 2)
        self.recent = 5
        self.item = nn.Embedding(self.schema.num_items, 4)
        self.attend = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.out = nn.Linear(4, self.width)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.history is not None
        events, seen = batch.history.last(self.recent)
        return {**super().inputs(batch), "past": events["item"], "seen": seen}

    def encode(self, **inputs: Tensor) -> Tensor:
        past, seen = inputs.pop("past"), inputs.pop("seen")
        known = (past >= 0) & (past < self.item.num_embeddings)
        value = self.item(torch.where(known, past, 0))
        nothing = nn.functional.pad(seen, (1, 0), value=True)  # a place that is always there, for rows without history
        value = nn.functional.pad(value, (0, 0, 1, 0))
        mixed = self.attend(value[:, :1], value, value, key_padding_mask=~nothing, need_weights=False)[0][:, 0]
        return super().encode(**inputs) + self.out(mixed)


class LogitsInTheBackbone(GoodStudent):
    """A factorisation machine: the backbone gives the logits and towers have no parameter."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.history = None
        self.embed = FeatureEmbedding(self.schema, 3)
        self.linear = FeatureEmbedding(self.schema, len(self.tasks))
        self.width = len(self.tasks)
        del self.features, self.dense

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"categorical": batch.categorical}

    def encode(self, **inputs: Tensor) -> Tensor:
        fields = self.embed(inputs["categorical"]).unflatten(1, (-1, 3))
        pairs = (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True) / 2
        found: Tensor = self.linear(inputs["categorical"]).unflatten(1, (-1, self.width)).sum(1) + pairs
        return found

    def tower(self) -> nn.Module:
        tasks = self.tasks

        class Unstack(nn.Module):
            def forward(self, features: Tensor) -> dict[str, Tensor]:
                return dict(zip(tasks, features.unbind(1), strict=True))

        return Unstack()


class FrozenTable(GoodStudent):
    """Embeddings from elsewhere that stand still, a buffer that is not kept, and tied weights in a tower."""

    scale: Tensor

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        for weight in self.features.parameters():
            weight.requires_grad_(False)
        self.register_buffer("scale", torch.full((), 0.5), persistent=False)

    def encode(self, **inputs: Tensor) -> Tensor:
        return super().encode(**inputs) * self.scale

    def tower(self) -> nn.Module:
        tower = Tower(self.width, self.width, self.tasks)
        twice = nn.Sequential(nn.Linear(self.width, self.width), nn.SiLU(), nn.Linear(self.width, self.width))
        twice[2].weight = twice[0].weight
        return nn.Sequential(twice, tower)


class Scheduled(HeadStrategy):
    """Two auxiliary towers, a weight that grows with the steps, and hard labels that count half beside a teacher."""

    auxiliary = ("soft", "both")

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        self.steps += 1
        alpha = (self.steps / 100).clamp(max=1.0)
        return {
            "main": 0.5 * parts.hard(heads["main"]),
            "soft": alpha * parts.soft(heads["soft"]),
            "both": (1 - alpha) * parts.hard(heads["both"]) + alpha * parts.soft(heads["both"]),
        }


class Control(HeadStrategy):
    """Two towers without a teacher: what does the second tower do by itself?"""

    auxiliary = ("second",)

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__()

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        return {f"{name}/hard": parts.hard(logit) for name, logit in heads.items()}


UNUSUAL: list[tuple[str, Any]] = [
    *[("teacher", made) for made in (BlackBox, FrozenBox, Noisy, OncePerUser, NoHistory)],
    *[("student", made) for made in (Normalised, Attentive, LogitsInTheBackbone, FrozenTable)],
    *[("strategy", made) for made in (Scheduled, Control)],
]
NEEDS = {Scheduled: frozenset({"teacher"})}
#: What says nothing about them, and why.
SILENT = {
    "no torch module": {"fingerprint_follows_weights", "fingerprint_follows_the_feature_view"},
    "no TrainableTeacher": {"backward_reaches_every_parameter", "weights_survive_safetensors"},
    "no history": {"later_events_do_not_reach_a_logit", "rows_without_history_have_logits"},
    "no parameter": {"serving_module_holds_no_auxiliary_tower", "auxiliary_tower_is_isolated"},
    "not need teacher labels": {"valid_teacher_labels_move_some_head"},
    "it tells no embeddings of ids": {"id_embeddings_are_one_per_id"},
}
#: About the plugin of a component; these have none.
ABOUT_PLUGINS = {"fingerprint_is_the_same_in_every_process", "importing_its_hooks_is_cheap"}


@pytest.mark.parametrize(("kind", "made"), UNUSUAL, ids=lambda value: getattr(value, "__name__", value))
def test_a_legal_model_passes(kind: str, made: Any) -> None:
    component = Component("unusual", Plain, made, "Unusual", needs=NEEDS.get(made, frozenset()), api_version=1)
    entry = Registered(kind, component, PluginRecord("unusual", "rd-unusual", "1.0"))
    for check in checks_for(entry):
        if check.name not in ABOUT_PLUGINS:
            found = run_check(entry, check)
            silent = any(check.name in names and reason in found.detail for reason, names in SILENT.items())
            assert found.status == ("not applicable" if silent else "passed"), (check.name, found.detail)
