"""Students whose parts, rows or inputs are wrong, each in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from model_cases import GoodStudent
from torch import Tensor, nn
from wrong import Plain, Wrong, wrong

from recdistill_core import Batch, BuildContext
from recdistill_core.features import Tower
from recdistill_core.interfaces import Student


class Wide(GoodStudent):
    """Says another width."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.width = self.features.out_width


class Unsaid(Student):
    """Says no width."""

    def backbone(self, batch: Batch) -> Tensor:
        return batch.numeric


class Infinite(GoodStudent):
    """Divides by a feature that may be 0."""

    def encode(self, **inputs: Tensor) -> Tensor:
        return super().encode(**inputs) / (inputs["categorical"][:, :1] * 0)


class Ids(GoodStudent):
    """Hands on ids as features."""

    width = 4

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.width = 4

    def encode(self, **inputs: Tensor) -> Tensor:
        return inputs["categorical"]


class FunctionTower(GoodStudent):
    """Has a function for a tower."""

    def tower(self) -> Any:
        return lambda features: {task: features.sum(1) for task in self.tasks}


class BareTower(GoodStudent):
    """Has a tower that gives a tensor."""

    def tower(self) -> nn.Module:
        return nn.Linear(self.width, len(self.tasks))


class ColumnTower(GoodStudent):
    """Has a tower that leaves the last axis of the layer."""

    def tower(self) -> nn.Module:
        class Column(Tower):
            def forward(self, features: Tensor) -> dict[str, Tensor]:
                return {task: logit[:, None] for task, logit in super().forward(features).items()}

        return Column(self.width, 0, self.tasks)


class OneTask(GoodStudent):
    """Has towers for the first task."""

    def tower(self) -> nn.Module:
        return Tower(self.width, 0, self.tasks[:1])


class LogTower(GoodStudent):
    """Has a tower that takes a logarithm."""

    def tower(self) -> nn.Module:
        class Log(Tower):
            def forward(self, features: Tensor) -> dict[str, Tensor]:
                return {task: logit.log() for task, logit in super().forward(features).items()}

        return Log(self.width, 0, self.tasks)


class TupleInputs(GoodStudent):
    """Gives a tuple of tensors."""

    def inputs(self, batch: Batch) -> Any:
        return tuple(super().inputs(batch).values())


class Dotted(GoodStudent):
    """Names an input as no argument can be named."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {**super().inputs(batch), "user.id": batch.user_id}


class HandsOnTheBatch(GoodStudent):
    """Gives its backbone the whole batch."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {**super().inputs(batch), "batch": batch}


class Weighted(GoodStudent):
    """Gives a scalar beside the rows."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {**super().inputs(batch), "mean_age": batch.numeric.mean()}


class EmbedsInInputs(GoodStudent):
    """Embeds before the boundary of what is served."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"dense": self.features(**self.features.tensors(batch))}

    def encode(self, **inputs: Tensor) -> Tensor:
        return torch.tanh(self.dense(inputs["dense"]))


class PadsToTheLongest(GoodStudent):
    """Pads events to the longest history of the batch."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        found = super().inputs(batch)
        assert batch.history is not None
        longest = int(batch.history.row_end.max())
        return {name: v[:, :longest] if name.startswith("history") else v for name, v in found.items()}


class TrainedOtherwise(GoodStudent):
    """Adds noise in training, where backbone alone is called."""

    def backbone(self, batch: Batch) -> Tensor:
        features = super().backbone(batch)
        return features + 0.1 * torch.randn_like(features) if self.training else features


class Scaled(GoodStudent):
    """Scales what backbone gives."""

    def backbone(self, batch: Batch) -> Tensor:
        return super().backbone(batch) * 2


class Positional(GoodStudent):
    """Takes its inputs by position."""

    def encode(self, dense: Tensor) -> Tensor:  # type: ignore[override]  # the mistake
        return torch.tanh(self.dense(dense))

    def backbone(self, batch: Batch) -> Tensor:
        return self.encode(self.features(**self.inputs(batch)))


class SameTower(GoodStudent):
    """Has one tower."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.head = super().tower()

    def tower(self) -> nn.Module:
        return self.head


class SharedLayer(GoodStudent):
    """Builds its towers on one common layer."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.common = nn.Linear(self.width, 3)

    def tower(self) -> nn.Module:
        return nn.Sequential(self.common, Tower(3, 0, self.tasks))


class ReadsLabels(GoodStudent):
    """Has the click rate of the batch among its numeric features."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        found = super().inputs(batch)
        return {**found, "numeric": found["numeric"] + batch.labels[self.tasks[0]].mean()}


class ReadsTheTeacher(GoodStudent):
    """Has the teacher's logit among its numeric features."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        found = super().inputs(batch)
        if batch.teacher is not None:
            found["numeric"] = found["numeric"] + batch.teacher.clean(self.tasks[0])[0][:, None]
        return found


class ReadsPropensity(GoodStudent):
    """Has the propensity among its numeric features."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.propensity is not None
        found = super().inputs(batch)
        return {**found, "numeric": found["numeric"] + batch.propensity[:, None]}


class Standardised(GoodStudent):
    """Standardises numeric features by the batch."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        found = super().inputs(batch)
        return {**found, "numeric": found["numeric"] - found["numeric"].mean(0)}


class NewestOfAll(GoodStudent):
    """Takes the newest events of the history, not of the row."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        past = batch.history
        assert past is not None
        return super().inputs(
            replace(
                batch, history=replace(past, row_end=torch.maximum(past.row_end, past.lengths[past.row_to_history]))
            )
        )


class ByUser(GoodStudent):
    """Returns the rows by user."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return super().inputs(batch.rows(batch.user_id.argsort(stable=True)))


class PaddingCounts(GoodStudent):
    """Adds the rank of a row's history in the batch, which padding brings about."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        found = super().inputs(batch)
        assert batch.history is not None
        padding = batch.history.row_end.max() - batch.history.row_end
        return {**found, "numeric": found["numeric"] + padding[:, None]}


class NewestEvent(GoodStudent):
    """Reads the newest event, which there may be none of."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        past = batch.history
        assert past is not None
        newest = past.events["item"][(past.offsets[past.row_to_history] + past.row_end - 1).clamp(min=0)]
        found = super().inputs(batch)
        return {**found, "numeric": found["numeric"] + newest[:, None]}


class LogOfId(GoodStudent):
    """Takes the logarithm of an id that is sorted by popularity."""

    def encode(self, **inputs: Tensor) -> Tensor:
        return super().encode(**inputs) + inputs["categorical"][:, 1:2].log()


class PlainEmbedding(GoodStudent):
    """Looks ids up as they come."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.items = nn.Embedding(self.schema.num_items, self.width)

    def place(self, ids: Tensor) -> Tensor:
        return ids

    def encode(self, **inputs: Tensor) -> Tensor:
        return super().encode(**inputs) + self.items(self.place(inputs["categorical"][:, 1]))


class Modulo(PlainEmbedding):
    """Wraps ids around the vocabulary."""

    def place(self, ids: Tensor) -> Tensor:
        return ids % self.items.num_embeddings


class Unused(GoodStudent):
    """Has a layer that it does not use."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.spare = nn.Linear(2, 2)


class RandomProjection(GoodStudent):
    """Projects with random numbers that it does not keep."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.register_buffer("random", torch.randn(self.width), persistent=False)

    def encode(self, **inputs: Tensor) -> Tensor:
        return super().encode(**inputs) * self.random


class GrowingTable(GoodStudent):
    """Has a table as long as its seed says."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.table = nn.Parameter(torch.ones(1 + torch.initial_seed() % 7))

    def encode(self, **inputs: Tensor) -> Tensor:
        return super().encode(**inputs) * self.table.mean()


def fails(check: str, made: type[Student], fault: str) -> Wrong:
    def build(config: Any, context: BuildContext) -> Student:
        return made(config, context) if issubclass(made, GoodStudent) else made()

    return wrong(check, "student", build, fault, config=Plain)


WIDTH = "width_is_the_backbones"
TOWERS = "towers_give_a_logit_per_row_and_task"
INPUTS = "inputs_are_plain_tensors_per_row"
ENCODE = "encode_of_inputs_is_the_backbone"
UNKNOWN = "unknown_ids_count_as_out_of_vocabulary"

WRONG = [
    fails(WIDTH, Wide, "has a backbone of shape [24, 6] for 24 rows and the width 22"),
    fails(WIDTH, Unsaid, "has the width None"),
    fails(WIDTH, Infinite, "has a backbone with NaN or infinite entries"),
    fails(WIDTH, Ids, "has a backbone of type torch.int64"),
    fails(TOWERS, FunctionTower, "has a tower of type function"),
    fails(TOWERS, BareTower, "has a tower that gives Tensor"),
    fails(TOWERS, ColumnTower, "has a tower that gives shape [24, 1] of task 'click' for 24 rows"),
    fails(TOWERS, OneTask, "has a tower without task 'like' (it has click)"),
    fails(TOWERS, LogTower, "not all of them finite floats"),
    fails(INPUTS, TupleInputs, "has inputs tuple"),
    fails(INPUTS, Dotted, "names an input 'user.id'"),
    fails(INPUTS, HandsOnTheBatch, "has an input 'batch' of type Batch"),
    fails(INPUTS, Weighted, "has an input 'mean_age' of shape [] for 24 rows"),
    fails(INPUTS, EmbedsInInputs, "has an input 'dense' with gradient"),
    fails(INPUTS, PadsToTheLongest, "pad to a constant width"),
    fails(ENCODE, TrainedOtherwise, "has another backbone(batch) than encode(**inputs(batch)) in training mode"),
    fails(ENCODE, Scaled, "has another backbone(batch) than encode(**inputs(batch)) in eval mode"),
    fails(ENCODE, Positional, "cannot encode its own inputs: TypeError"),
    fails("towers_share_no_parameter", SameTower, "returns one and the same tower"),
    fails("towers_share_no_parameter", SharedLayer, "has towers that share parameters: 0.weight, 0.bias"),
    fails("labels_do_not_reach_a_logit", ReadsLabels, "lets a label reach a logit: the main tower in eval mode moves"),
    fails("teacher_labels_do_not_reach_a_logit", ReadsTheTeacher, "lets a teacher label reach a logit"),
    fails("propensity_does_not_reach_a_logit", ReadsPropensity, "lets the propensity reach a logit"),
    fails("other_rows_do_not_reach_a_logit", Standardised, "lets other rows reach a logit: the main tower in eval"),
    fails("later_events_do_not_reach_a_logit", NewestOfAll, "reads future events: the main tower in eval mode moves"),
    fails("rows_may_come_in_any_order", ByUser, "depends on the order of rows: the main tower in eval mode moves"),
    fails("rows_may_come_one_by_one", PaddingCounts, "gives a row alone another logit than among others"),
    fails("rows_may_come_one_by_one", NewestEvent, "cannot take a batch of one row"),
    fails("rows_without_history_have_logits", NewestEvent, "cannot score when no row has a history"),
    fails("rows_out_of_vocabulary_have_logits", LogOfId, "gives NaN or infinite logits of task 'click' when every id"),
    fails(UNKNOWN, PlainEmbedding, "cannot take item_id = -1, of a vocabulary of 13: IndexError"),
    fails(UNKNOWN, Modulo, "takes item_id = -1, of a vocabulary of 13, for something else than out of vocabulary"),
    fails("backward_reaches_every_parameter", Unused, "take no part in its logits: student.spare.weight"),
    fails("weights_survive_safetensors", RandomProjection, "gives other logits once its weights are loaded"),
    fails("weights_survive_safetensors", GrowingTable, "cannot load its own weights into a new build"),
]
