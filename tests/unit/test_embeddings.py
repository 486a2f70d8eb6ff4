"""Embedding distillation: the formula, whom its gradient reaches, what counts, and where ids have their embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_cases import SCHEMA, component, make_batch
from torch import Tensor

from recdistill_core import BuildContext, FeatureEmbedding, Student, TrainableTeacher
from recdistill_core.config import make
from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.registry import installed
from recdistill_core.weights import save_weights
from recdistill_lightning import EmbeddingDistillation, IdEmbeddings
from recdistill_lightning.embeddings import Entities, ExpertProjection

KINDS = ("item", "author")
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"embedding": 4, "hidden": [8], "recent": 2},
    "dcn": {"embedding": 4, "hidden": [8], "recent": 2},
    "hstu": {"width": 16, "heads": 2, "layers": 1, "max_length": 16, "history_stride": 4, "context_width": 4},
    "hf": {"width": 16, "heads": 2, "layers": 1, "max_length": 16, "history_stride": 4, "context_width": 4},
}


def tables(width: int = 6, seed: int = 0) -> IdEmbeddings:
    """Embeddings of items and authors; the last item was never seen."""
    draw = torch.Generator().manual_seed(seed)
    made = {kind: torch.randn(size, width, generator=draw) for kind, size in (("item", 20), ("author", 7))}
    seen = {kind: torch.ones(len(table), dtype=torch.bool) for kind, table in made.items()}
    seen["item"][19] = False
    return IdEmbeddings(made, seen)


def student_of(name: str = "mlp") -> Any:
    torch.manual_seed(3)
    return component("student", name, **SMALL[name])


def distillation(student: Student, **settings: Any) -> EmbeddingDistillation:
    return EmbeddingDistillation(student, settings.pop("teacher", tables()), SCHEMA, **{"steps": 10, **settings})


# ---------------------------------------------------------------------------------------------------------- the formula


def numpy_of(part: ExpertProjection, embedding: Tensor, ids: Tensor, noise: Tensor, temperature: float) -> Any:
    """The loss of each entity, written down again."""
    weights = {name: value.detach().double().numpy() for name, value in part.state_dict().items()}
    target = part.table.double().numpy()[ids.numpy()]
    score = target @ weights["selector.weight"].T + weights["selector.bias"]
    score = score - np.log(np.exp(score).sum(1, keepdims=True)) + noise.numpy()
    score = np.exp((score - score.max(1, keepdims=True)) / temperature)
    choice = score / score.sum(1, keepdims=True)
    found = np.zeros_like(target)
    for at in range(choice.shape[1]):
        first, last = f"experts.{at}.0", f"experts.{at}.2"
        hidden = embedding.detach().double().numpy() @ weights[f"{first}.weight"].T + weights[f"{first}.bias"]
        found += choice[:, at, None] * (np.maximum(hidden, 0) @ weights[f"{last}.weight"].T + weights[f"{last}.bias"])
    return np.where(part.seen[ids].numpy(), ((target - found) ** 2).sum(1), 0.0)


@pytest.mark.parametrize(("experts", "temperature"), [(1, 1.0), (3, 1.0), (3, 0.1)])
def test_the_loss_is_the_papers(experts: int, temperature: float) -> None:
    torch.manual_seed(0)
    part = ExpertProjection(tables().tables["item"], tables().seen["item"], 4, experts)
    embedding, ids = torch.randn(5, 4), torch.tensor([0, 3, 3, 19, 7])
    noise = torch.randn(5, experts)
    found = part(embedding, ids, noise, temperature)
    np.testing.assert_allclose(found.detach().numpy(), numpy_of(part, embedding, ids, noise, temperature), rtol=1e-4)
    assert found[0] == found[3] == 0.0  # the id of no value, and an item that the teacher had not been trained on


def test_a_fixed_choice_takes_one_expert() -> None:
    torch.manual_seed(0)
    part = ExpertProjection(tables().tables["item"], tables().seen["item"], 4, 3)
    embedding, ids = torch.randn(2, 4), torch.tensor([5, 6])
    noise = torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, 1e4]])
    found = part(embedding, ids, noise, 1.0)
    for row, expert in enumerate((0, 2)):
        alone = (part.table[ids[row]] - part.experts[expert](embedding[row])).square().sum()
        torch.testing.assert_close(found[row], alone)


def test_the_temperature_falls_geometrically_and_stays() -> None:
    made = distillation(student_of(), temperature=1.0, temperature_end=0.01, steps=5)
    found = []
    for _ in range(7):
        found.append(made.temperature())
        made.advance(make_batch())
    assert found == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5, 0.01, 0.01, 0.01])


def test_what_is_drawn_follows_gumbels_law_and_depends_on_the_entity_alone() -> None:
    made = distillation(student_of(), experts=4)
    drawn = made._gumbel(torch.arange(20_000), 0)
    assert drawn.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert drawn.std() == pytest.approx(np.pi / 6**0.5, abs=0.01)
    some = torch.tensor([7, 3, 1999])
    assert torch.equal(made._gumbel(some, 0), drawn[some])
    assert not torch.isclose(made._gumbel(some, 1), drawn[some]).any()  # another kind
    made.advance(make_batch())
    assert not torch.isclose(made._gumbel(some, 0), drawn[some]).any()  # another batch


# -------------------------------------------------------------------------------------------------------------- in rows


def test_rows_have_the_loss_of_their_entity_in_whatever_batch() -> None:
    student = student_of()
    made, batch = distillation(student, weight=0.5), make_batch(16)
    whole = made.terms(student, batch)
    assert set(whole) == {"embeddings/item", "embeddings/author"}
    for kind, values in whole.items():
        halves = [made.terms(student, batch.rows(part))[kind] for part in torch.arange(16).split(8)]
        torch.testing.assert_close(torch.cat(halves), values)
    double = distillation(student, weight=1.0).terms(student, batch)
    torch.testing.assert_close(double["embeddings/item"], 2 * whole["embeddings/item"])
    same = batch.item_id[:, None] == batch.item_id
    assert torch.equal(
        whole["embeddings/item"].expand(16, 16)[same], whole["embeddings/item"][:, None].expand(16, 16)[same]
    )


def test_the_gradient_reaches_the_students_embedding_of_these_ids_and_not_the_teachers() -> None:
    student = student_of()
    made, batch = distillation(student), make_batch(16)
    made.terms(student, batch)["embeddings/item"].sum().backward()
    moved = student.features.categorical.table.weight.grad.abs().sum(1) > 0
    ids = {int(item) for item in batch.item_id} - {0, 19}
    assert set(moved.nonzero()[:, 0].tolist()) == ids  # items come first in the common table
    assert not any(part.table.requires_grad for part in made.parts)
    assert student.dense[0].weight.grad is None
    assert all(expert[0].weight.grad is not None for expert in made.parts[0].experts)


def test_making_it_draws_nothing_that_others_draw() -> None:
    student = student_of()
    torch.manual_seed(11)
    wanted = torch.rand(4)
    torch.manual_seed(11)
    first = distillation(student, seed=4)
    assert torch.equal(torch.rand(4), wanted)
    again, other = distillation(student, seed=4), distillation(student, seed=5)
    same = [torch.equal(mine, yours) for mine, yours in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.parts[0].selector.weight, other.parts[0].selector.weight)


def test_training_brings_the_students_embeddings_to_the_teachers() -> None:
    student = student_of()
    made = distillation(student, steps=300)
    optimizer = torch.optim.Adam([*made.parameters(), *student.parameters()], lr=0.01)
    losses = []
    for step in range(300):
        batch = make_batch(64, seed=step)
        loss = torch.stack([values.mean() for values in made.terms(student, batch).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        made.advance(batch)
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:20])


# ------------------------------------------------------------------------------------------- where ids have embeddings


@pytest.mark.parametrize("name", ["mlp", "dcn"])
def test_a_students_embedding_is_the_one_that_it_serves(name: str) -> None:
    student, batch = student_of(name), make_batch(6)
    served = student.features.categorical(batch.categorical).unflatten(1, (4, 4))
    for kind, place in (("item", 0), ("item_id", 0), ("author", 1), ("last_author", 2), ("tab", 3)):
        found = student.id_embedding(kind, batch.categorical[:, place])
        assert torch.equal(found, served[:, place]), kind
    assert student.id_embedding("price", batch.item_id) is None
    beyond = student.id_embedding("author", torch.tensor([-1, 7, 99]))
    assert torch.equal(beyond, student.id_embedding("author", torch.zeros(3, dtype=torch.long)))


@pytest.mark.parametrize("name", ["hstu", "hf"])
def test_a_teachers_embedding_is_a_part_of_the_candidates_token(name: str) -> None:
    torch.manual_seed(0)
    teacher, batch = (
        make(installed(), "teacher", {"name": name, **SMALL[name]}, BuildContext(SCHEMA, ("click",))),
        make_batch(6),
    )
    item, author = (teacher.id_embedding(kind, batch.categorical[:, at]) for at, kind in enumerate(KINDS))
    torch.testing.assert_close(item + author, teacher.tokens.candidates(batch))
    assert item.shape == (6, 16)
    assert teacher.id_embedding("tab", batch.categorical[:, 3]).shape == (6, 4)  # the head's
    assert teacher.id_embedding("price", batch.item_id) is None


def test_who_does_not_say_has_none() -> None:
    assert TrainableTeacher().id_embedding("item", torch.zeros(1, dtype=torch.long)) is None
    assert Student().id_embedding("item", torch.zeros(1, dtype=torch.long)) is None


def test_an_item_that_is_no_feature_has_no_embedding() -> None:
    bare = replace(SCHEMA, categorical=SCHEMA.categorical[1:])
    assert FeatureEmbedding(bare, 4).of("item", torch.zeros(1, dtype=torch.long)) is None
    assert FeatureEmbedding(SCHEMA, 4, ["author"]).of("item_id", torch.zeros(1, dtype=torch.long)) is None


def test_ids_of_a_batch_that_the_vocabulary_lacks_are_0() -> None:
    batch = make_batch(4)
    odd = replace(batch, item_id=torch.tensor([-3, 5, 20, 19]))
    entities = Entities(SCHEMA, ["item", "tab"])
    assert entities.ids(odd, "item").tolist() == [0, 5, 0, 19]
    assert torch.equal(entities.ids(odd, "tab"), batch.categorical[:, 3])
    assert entities.sizes == {"item": 20, "tab": 4}


# -------------------------------------------------------------------------------------------------- files and refusals


def test_embeddings_survive_a_file(tmp_path: Path) -> None:
    made = tables()
    made.save(tmp_path / "e.safetensors")
    found = IdEmbeddings.load(tmp_path / "e.safetensors")
    for kind in KINDS:
        assert torch.equal(found.tables[kind], made.tables[kind])
        assert torch.equal(found.seen[kind], made.seen[kind])
    save_weights({"table.item": made.tables["item"]}, tmp_path / "half.safetensors")
    with pytest.raises(IntegrityError, match="the file does not hold a teacher's embeddings"):
        IdEmbeddings.load(tmp_path / "half.safetensors")
    (tmp_path / "e.safetensors").write_bytes(b"{" + json.dumps([1]).encode())
    with pytest.raises(IntegrityError, match="the checkpoint is damaged"):
        IdEmbeddings.load(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight must be finite and >= 0, experts and steps >= 1, seed >= 0; got -1.0, 4, 10 and 0"),
        ({"experts": 0}, "got 1.0, 0, 10 and 0"),
        ({"steps": 0}, "got 1.0, 4, 0 and 0"),
        ({"temperature_end": 0.0}, "temperatures must be finite and > 0, got 1.0 and 0.0"),
        ({"temperature": float("inf")}, "temperatures must be finite and > 0, got inf and 0.01"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        distillation(student_of(), **settings)
    assert message in str(caught.value)


def test_embeddings_of_another_dataset_are_refused() -> None:
    other = IdEmbeddings({"item": torch.zeros(5, 2)}, {"item": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(
        DataError, match="the teacher has 5 embeddings of kind 'item', and the dataset 20 ids"
    ) as caught:
        distillation(student_of(), teacher=other)
    assert "of a teacher that was trained on this dataset" in str(caught.value)


def test_a_kind_that_the_dataset_lacks_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"the dataset has no ids of kind 'autor' \(did you mean 'author'\?\)"
    ) as caught:
        Entities(SCHEMA, ["autor"])
    assert "categorical features: item_id, author, last_author, tab" in str(caught.value)


class Silent(Student):
    """Says nothing of its embeddings."""


def test_a_student_without_embeddings_is_refused() -> None:
    with pytest.raises(DataError, match="Silent has no embedding of kind 'item'") as caught:
        distillation(Silent())
    assert "implement id_embedding" in str(caught.value)
    made = distillation(student_of())
    with pytest.raises(DataError, match="Silent has no embedding of kind 'item'"):
        made.terms(Silent(), make_batch())
