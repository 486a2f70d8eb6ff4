import itertools

import pytest
import torch
from recdistill_core import Batch, History, Schema
from recdistill_core.schema import Categorical, EventField

from recdistill_fm import FmConfig
from recdistill_fm.student import FmStudent, interactions

SCHEMA = Schema(
    tasks=("click",),
    categorical=(Categorical("item_id", "item_id", "item"), Categorical("tab", "tab")),
    numeric=("age", "duration"),
    events=(EventField("item", "item_id"),),
    actions=("click",),
    vocabularies={"item_id": 9, "tab": 3},
)
PLAIN = Schema(("click",), SCHEMA.categorical, SCHEMA.numeric, vocabularies=SCHEMA.vocabularies)


def batch(rows):
    """Rows of one user, of which each sees one event more than the one before."""
    ids = torch.arange(rows)
    events = {"item": ids % 9, "action": ids % 2}
    history = History(events, torch.tensor([0, rows]), torch.zeros_like(ids), ids)
    numeric = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    return Batch(ids, ids, ids, ids, ids, torch.stack([ids % 9, ids % 3], dim=1), numeric, history=history)


def test_the_identity_equals_the_double_sum():
    fields = torch.randn(6, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pairs = itertools.combinations(range(5), 2)
    assert torch.allclose(interactions(fields), sum(fields[:, i] * fields[:, j] for i, j in pairs))


@pytest.mark.parametrize("schema", [SCHEMA, PLAIN], ids=["history", "no history"])
def test_a_new_tower_gives_the_factorisation_machine(schema):
    torch.manual_seed(2)
    student, rows = FmStudent(FmConfig(embedding=4, recent=3), schema, ["click"]), batch(7)
    weights, factors = (fields(**student.inputs(rows)) for fields in (student.linear, student.factors))
    assert factors.shape == (7, 5 if schema.events else 4, 4)
    wanted = weights.sum((1, 2))
    for i, j in itertools.combinations(range(factors.shape[1]), 2):
        wanted = wanted + (factors[:, i] * factors[:, j]).sum(1)
    assert torch.allclose(student.tower()(student.backbone(rows))["click"], wanted, atol=1e-7)


def test_a_field_is_its_value_times_its_factors():
    student, rows = FmStudent(FmConfig(embedding=4, recent=3), SCHEMA, ["click"]), batch(7)
    fields = student.factors(**student.inputs(rows))
    assert torch.equal(fields[:, 3], rows.numeric[:, 1:] * student.factors.numeric[1])
    assert torch.equal(fields[0, 4], torch.zeros(4))  # the first row sees no event
    assert not torch.equal(fields[1, 4], fields[2, 4])


def test_without_events_there_is_no_field_of_them():
    for student in (FmStudent(FmConfig(), PLAIN, ["click"]), FmStudent(FmConfig(recent=0), SCHEMA, ["click"])):
        assert student.history is None
        assert set(student.inputs(batch(3))) == {"categorical", "numeric"}


@pytest.mark.parametrize(("settings", "message"), [({"embedding": 0}, "embedding"), ({"recent": -1}, "recent")])
def test_settings_have_ranges(settings, message):
    with pytest.raises(ValueError, match=f"{message} must be >= "):
        FmConfig(**settings)
