"""The sequence model: the teacher's parameters, causal states, and the fields that it predicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gpsd_cases import GENRES, ITEMS, SCHEMA, TEACHER, Source, small
from torch import Tensor

from recdistill_core.errors import ConfigError
from recdistill_core.schema import Categorical, EventField
from recdistill_gpsd.model import InputPositions, NextEvent, predicted_fields, trained_rows
from recdistill_gpsd.negatives import Drawing
from recdistill_gpsd.sasrec import SASRecLayer, padded
from recdistill_gpsd.sequences import read_sequences
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.teacher import HSTUTeacher

KINDS = {
    "hstu": {},
    "hstu, positions": {"input_positions": True, "input_dropout": 0.5},
    "sasrec": {"architecture": "sasrec", "input_positions": True},
}


def model(kind: str = "hstu", teacher: HSTUConfig = TEACHER) -> NextEvent:
    torch.manual_seed(3)
    return NextEvent(teacher, small(**KINDS[kind]), SCHEMA).eval()


def events(*users: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    source = Source(users)
    found = source.events(np.cumsum(source.counts) - source.counts, source.counts)
    return {name: torch.from_numpy(column) for name, column in found.items()}, torch.from_numpy(source.counts)


def test_parameters_have_the_names_and_shapes_that_they_have_in_the_teacher() -> None:
    ours = {name: part.shape for name, part in model().named_parameters() if not name.startswith("predict.")}
    theirs = {name: part.shape for name, part in HSTUTeacher(TEACHER, SCHEMA, ["click"]).named_parameters()}
    assert ours == {name: shape for name, shape in theirs.items() if not name.startswith("head.")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_depends_on_its_event_and_those_before_it_alone(kind: str) -> None:
    net = model(kind)
    with torch.no_grad():
        whole = net(*events([1, 2, 3, 4, 5], [6, 7, 8]))
        later = net(*events([1, 2, 3, 9, 10], [6, 7, 11]))
        alone = net(*events([6, 7, 8]))
    assert torch.allclose(whole[:3], later[:3], atol=1e-6)
    assert torch.allclose(whole[5:7], later[5:7], atol=1e-6)
    assert torch.allclose(whole[5:], alone, atol=1e-6)
    assert not torch.allclose(whole[3:5], later[3:5], atol=1e-3)
    assert not torch.allclose(whole[:1], net(*events([2]))[:1], atol=1e-3)


def test_the_backends_agree() -> None:
    with torch.no_grad():
        one, two = (
            model(teacher=replace(TEACHER, backend=name))(*events([1, 2, 3], [4])) for name in ("reference", "chunked")
        )
    assert torch.allclose(one, two, atol=1e-5)


def test_semi_local_attention_is_the_teachers() -> None:
    net = model(teacher=replace(TEACHER, attend_recent=1, layers=1))
    with torch.no_grad():
        one, two = net(*events([1, 2, 3, 4])), net(*events([9, 2, 3, 4]))
    assert torch.allclose(one[2:], two[2:], atol=1e-6)
    assert not torch.allclose(one[0], two[0], atol=1e-3)


def test_item_side_fields_are_predicted() -> None:
    assert predicted_fields(SCHEMA) == ["item", "genre"]  # the tab is the context's, the action an outcome
    twin = replace(SCHEMA, events=(*SCHEMA.events, EventField("previous", "item_id")))
    twin = replace(twin, categorical=(*twin.categorical, Categorical("shown", "item_id", "item")))
    assert predicted_fields(twin) == ["item", "genre"]  # the item again
    assert NextEvent(TEACHER, small(field_weight=0.0), SCHEMA).fields == ["item"]


def test_losses_leave_out_targets_that_are_out_of_vocabulary() -> None:
    net = model()
    state = torch.randn(4, 8)
    target = {"item": torch.tensor([1, 0, 5, ITEMS]), "genre": torch.tensor([0, 1, 2, 3])}
    negative = {"item": torch.tensor([3, 4]), "genre": torch.tensor([[1], [2], [3], [1]])}
    drawing = {"item": Drawing(ITEMS), "genre": Drawing(GENRES)}
    found = net.losses(state, target, negative, drawing)
    assert {name: len(loss) for name, loss in found.items()} == {"item": 2, "genre": 3}
    kept = torch.tensor([0, 2])
    again = net.losses(
        state[kept],
        {name: ids[kept] for name, ids in target.items()},
        {**negative, "genre": negative["genre"][kept]},
        drawing,
    )
    assert torch.equal(found["item"], again["item"])


def test_a_field_is_compared_with_its_own_rows_of_the_table() -> None:
    net = model()
    weight = net.tokens.table.weight
    assert net.table("item").data_ptr() == weight.data_ptr()
    assert torch.equal(net.table("genre"), weight[ITEMS : ITEMS + GENRES])
    state = torch.randn(2, 8)
    assert net.query(state, "item") is state
    assert torch.equal(net.query(state, "genre"), state @ net.predict[0].weight.T)


def test_seen_rows_are_those_of_values_that_occur() -> None:
    net = model()
    sizes = {name: int(net.tokens.event_rows[1, at]) for at, name in enumerate(net.tokens.fields)}
    found = trained_rows(net, read_sequences(Source([[1, 4, 4], [7, 0]]), None, 0).occurrences(sizes))
    assert len(found) == net.tokens.table.num_embeddings == ITEMS + GENRES + 3 + 2
    assert found[:ITEMS].nonzero().flatten().tolist() == [0, 1, 4, 7]
    assert found[ITEMS : ITEMS + GENRES].tolist() == [True, False, True, False]
    assert found[ITEMS + GENRES :].tolist() == [False, True, True, True, True]


def test_a_backend_that_can_never_serve_is_refused() -> None:
    with pytest.raises(ConfigError, match="xformers: it computes softmax attention"):
        NextEvent(replace(TEACHER, backend="xformers"), small(), SCHEMA)


def test_input_positions_scale_and_add() -> None:
    made = InputPositions(4, 9, 0.0)
    x, place = torch.randn(2, 9), torch.tensor([3, 0])
    assert torch.allclose(made(x, place), x * 3 + made.weight[place])
    assert float(made.weight.detach().abs().max()) <= 2 / 3


def test_a_sasrec_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = SASRecLayer(6, 2, 5, 0.3).eval()
    x = torch.randn(1, 4, 6)

    def norm(t: Tensor) -> Tensor:
        return (t - t.mean(-1, keepdim=True)) / torch.sqrt(t.var(-1, keepdim=True, unbiased=False) + 1e-8)

    q, k, v = layer.query(norm(x)), layer.key(x), layer.value(x)
    heads = []
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        score = q[0, :, part] @ k[0, :, part].T / 3**0.5
        score = score.masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), -torch.inf)
        heads.append(score.softmax(1) @ v[0, :, part])
    h = norm(norm(x) + layer.output(torch.cat(heads, dim=1)))
    wanted = h + layer.narrow(torch.relu(layer.widen(h)))
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    assert not torch.equal(layer.train()(x), layer(x))  # dropout


def test_sequences_are_padded_at_their_end() -> None:
    x = torch.arange(1.0, 7.0)[:, None]
    wide, flat = padded(x, torch.tensor([1, 3, 2]))
    assert wide.squeeze(2).tolist() == [[1.0, 0.0, 0.0], [2.0, 3.0, 4.0], [5.0, 6.0, 0.0]]
    assert wide.flatten(0, 1)[flat].tolist() == x.tolist()
