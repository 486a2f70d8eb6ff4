import pytest
import torch
from recdistill_core import Batch, Schema
from recdistill_core.schema import Categorical

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.student import MyPluginStudent

SCHEMA = Schema(
    tasks=("click",),
    categorical=(Categorical("item_id", "item_id", "item"), Categorical("tab", "tab")),
    numeric=("age",),
    vocabularies={"item_id": 9, "tab": 3},
)


def batch(rows):
    ids = torch.arange(rows)
    return Batch(ids, ids, ids, ids, ids, torch.stack([ids % 9, ids % 3], dim=1), ids[:, None] / rows)


def test_the_backbone_is_as_wide_as_its_features():
    student = MyPluginStudent(MyPluginConfig(embedding=4), SCHEMA, ["click"])
    assert student.width == 2 * 4 + 1
    assert student.backbone(batch(5)).shape == (5, student.width)


def test_a_tower_gives_one_logit_per_row_and_task():
    tasks = ["click", "like"]
    student = MyPluginStudent(MyPluginConfig(embedding=4), SCHEMA, tasks)
    logits = student.tower()(student.backbone(batch(5)))
    assert {task: logit.shape for task, logit in logits.items()} == {"click": (5,), "like": (5,)}


def test_embedding_has_a_range():
    with pytest.raises(ValueError, match="embedding must be >= 1, got 0"):
        MyPluginConfig(0)
