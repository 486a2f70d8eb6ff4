import pytest
import torch
from recdistill_core import Batch, History, Schema
from recdistill_core.schema import Categorical, EventField

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.teacher import MyPluginTeacher

SCHEMA = Schema(
    tasks=("click",),
    categorical=(Categorical("item_id", "item_id", "item"),),
    events=(EventField("item", "item_id"),),
    actions=("click",),
    vocabularies={"item_id": 9},
)
CONFIG = MyPluginConfig(embedding=4, hidden=8, recent=2)


def batch(newest_item):
    """Two rows of one user, who has seen 4 events; the first row comes before the last of them."""
    ids = torch.arange(2)
    events = {"item": torch.tensor([1, 2, 3, newest_item]), "action": torch.tensor([0, 1, 0, 1])}
    history = History(events, torch.tensor([0, 4]), torch.zeros(2, dtype=torch.long), torch.tensor([3, 4]))
    return Batch(ids, ids, ids, ids, ids, ids[:, None], torch.zeros(2, 0), history=history)


def test_only_the_events_before_a_row_move_its_logit():
    teacher = MyPluginTeacher(CONFIG, SCHEMA, ["click"])
    first, second = (teacher.score(batch(item)).logits["click"] for item in (5, 6))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_the_fingerprint_follows_the_weights():
    torch.manual_seed(0)
    teacher = MyPluginTeacher(CONFIG, SCHEMA, ["click"])
    before = teacher.fingerprint()
    torch.manual_seed(0)
    assert MyPluginTeacher(CONFIG, SCHEMA, ["click"]).fingerprint() == before
    with torch.no_grad():
        next(teacher.parameters()).add_(1.0)
    assert teacher.fingerprint() != before


@pytest.mark.parametrize("settings", [{"embedding": 0}, {"hidden": 0}, {"recent": 0}])
def test_widths_have_a_range(settings):
    with pytest.raises(ValueError, match="embedding, hidden and recent must be >= 1"):
        MyPluginConfig(**settings)
