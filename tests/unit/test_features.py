"""Embeddings, pooled histories and towers against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core_cases import SCHEMA, make_batch

from recdistill_core import FeatureEmbedding, RecentHistory, Schema
from recdistill_core.features import StudentInputs, Tower, dense_layers, history_inputs
from recdistill_core.schema import Categorical


def test_one_lookup_equals_one_table_per_vocabulary() -> None:
    torch.manual_seed(0)
    embedding = FeatureEmbedding(SCHEMA, 3)
    item, author, tab = embedding.table.weight.split([20, 7, 4])
    categorical = make_batch(50).categorical
    by_hand = [table[categorical[:, column]] for column, table in enumerate((item, author, author, tab))]
    assert torch.equal(embedding(categorical), torch.cat(by_hand, 1))
    assert embedding.out_width == 12
    assert embedding.table.num_embeddings == 31  # 'author' is there once, though two features read it


def test_features_of_one_vocabulary_share_rows() -> None:
    embedding = FeatureEmbedding(SCHEMA, 2)
    _, author, last_author, tab = embedding(torch.tensor([[1, 3, 3, 3]])).split(2, 1)
    assert torch.equal(author, last_author)
    assert not torch.equal(author, tab)


@pytest.mark.parametrize("wrong", [-1, -(2**62), 7, 8, 10**12, 2**62])
def test_ids_outside_the_vocabulary_read_its_row_0(wrong: int) -> None:
    embedding = FeatureEmbedding(SCHEMA, 2)
    known = torch.tensor([[1, 0, 2, 3]])
    assert torch.equal(embedding(torch.tensor([[1, wrong, 2, 3]])), embedding(known))
    item, author, tab = embedding.table.weight.split([20, 7, 4])
    every = embedding(torch.full((1, 4), wrong if wrong < 0 else 2**62))
    assert torch.equal(every, torch.cat([item[0], author[0], author[0], tab[0]])[None])


def test_chosen_features_come_in_the_order_asked_for() -> None:
    embedding = FeatureEmbedding(SCHEMA, 2, ["tab", "author"])
    assert embedding.table.num_embeddings == 11
    tab, author = embedding.table.weight.split([4, 7])
    assert torch.equal(embedding(torch.tensor([[9, 5, 6, 3]])), torch.cat([tab[3], author[5]])[None])
    with pytest.raises(ValueError, match=r"unknown categorical features \['tba'\]; the dataset has \['item_id', "):
        FeatureEmbedding(SCHEMA, 2, ["tba"])


def test_a_schema_without_categorical_features() -> None:
    embedding = FeatureEmbedding(Schema(tasks=("click",)), 4)
    assert embedding(torch.zeros(3, 0, dtype=torch.long)).shape == (3, 0)


def test_recent_history_equals_a_loop() -> None:
    torch.manual_seed(0)
    pooled = RecentHistory(SCHEMA, 3)
    batch = make_batch(30)
    assert batch.history is not None
    found = pooled(**history_inputs(batch, 4))
    for row in range(30):
        start = int(batch.history.offsets[batch.history.row_to_history[row]])
        end = start + int(batch.history.row_end[row])
        newest = range(max(start, end - 4), end)
        vectors = [
            pooled.item.weight[batch.history.events["item"][i]]
            + pooled.action.weight[batch.history.events["action"][i]]
            for i in newest
        ]
        wanted = torch.stack(vectors).mean(0) if vectors else torch.zeros(3)
        torch.testing.assert_close(found[row], wanted)


def test_recent_history_reads_row_0_for_unknown_ids() -> None:
    pooled = RecentHistory(SCHEMA, 3)
    seen, zero = torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.long)
    wrong = torch.tensor([[-1, 10**12]])
    assert torch.equal(pooled(wrong, wrong, seen), pooled(zero, zero, seen))


def test_a_batch_without_history_sees_none() -> None:
    inputs = history_inputs(replace(make_batch(), history=None), 3)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "history_item": (8, 3), "history_action": (8, 3), "history_seen": (8, 3),
    }  # fmt: skip
    assert not inputs["history_seen"].any()
    assert not RecentHistory(SCHEMA, 3)(**inputs).any()


def test_student_inputs_with_and_without_history() -> None:
    batch = make_batch()
    features = StudentInputs(SCHEMA, 3, 2)
    tensors = features.tensors(batch)
    assert features(**tensors).shape == (8, features.out_width) == (8, 4 * 3 + 2 + 3)
    assert features.history is not None
    assert features.history.length - features.history.stride + 1 >= 2  # so the newest 2 events are always there
    with pytest.raises(ValueError, match="this student pools recent events: give history_item, history_action, hist"):
        features(batch.categorical, batch.numeric)
    for schema, recent in ((SCHEMA, 0), (replace(SCHEMA, events=()), 2)):
        bare = StudentInputs(schema, 3, recent)
        assert bare.history is None
        assert set(bare.tensors(batch)) == {"categorical", "numeric"}
        assert bare(**bare.tensors(batch)).shape == (8, bare.out_width) == (8, 14)


def test_dense_layers_and_towers() -> None:
    assert [type(layer).__name__ for layer in dense_layers([3, 4, 2], 0.5)] == ["Linear", "SiLU", "Dropout"] * 2
    assert len(dense_layers([3])) == 0
    for hidden in (0, 5):
        tower = Tower(4, hidden, ("click", "like"))
        features = torch.randn(3, 4)
        logits = tower(features)
        assert list(logits) == ["click", "like"]
        assert torch.equal(torch.stack(list(logits.values()), 1), tower.out(tower.body(features)))
    with pytest.raises(ValueError, match="a tower needs at least one task"):
        Tower(4, 0, ())


def test_a_feature_of_another_vocabulary_moves_no_row_of_the_first() -> None:
    more = replace(SCHEMA, categorical=(*SCHEMA.categorical, Categorical("tab_before", "tab")))
    assert FeatureEmbedding(more, 2).base.tolist() == [0, 20, 20, 27, 27]
