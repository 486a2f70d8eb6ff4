"""The shipped students: shapes, gradients, what is served, what is stored."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_cases import SCHEMA, make_batch
from numpy.typing import NDArray
from torch import Tensor, nn

from recdistill_core import BuildContext, Schema, Student
from recdistill_core.config import make
from recdistill_core.errors import ConfigError, DataError, IntegrityError
from recdistill_core.features import CrossLayer
from recdistill_core.interfaces import ServingModule
from recdistill_core.registry import installed
from recdistill_dcn.model import DCN
from recdistill_lightning import StudentModule
from recdistill_pipeline.checkpoint import load_weights, restore, save_weights

KINDS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "embedding": 4, "hidden": [8, 6], "tower": 5, "recent": 3},
    "mlp-linear-tower": {"name": "mlp", "embedding": 4, "hidden": [8], "tower": 0, "recent": 0},
    "dcn": {"name": "dcn", "embedding": 4, "cross_layers": 3, "hidden": [8, 6], "tower": 5, "recent": 3},
    "dcn-rank-2": {"name": "dcn", "embedding": 4, "rank": 2, "hidden": [8, 6], "tower": 5, "recent": 3},
}
BATCH = make_batch(16)


def build(spec: dict[str, Any], schema: Schema = SCHEMA, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    student: Student = make(installed(), "student", spec, BuildContext(schema, schema.tasks))
    return student


@pytest.fixture(params=KINDS)
def student(request: pytest.FixtureRequest) -> Student:
    return build(KINDS[request.param])


def test_shapes(student: Student) -> None:
    features = student.backbone(BATCH)
    assert features.shape == (16, student.width)
    logits = student.tower()(features)
    assert {task: tuple(logit.shape) for task, logit in logits.items()} == {"click": (16,), "like": (16,)}
    assert student.backbone(BATCH.rows(torch.tensor([3]))).shape == (1, student.width)
    torch.testing.assert_close(student.backbone(BATCH.rows(torch.tensor([5, 2]))), features[[5, 2]])


def test_the_gradient_reaches_every_parameter(student: Student) -> None:
    main = student.tower()
    logits = main(student.backbone(BATCH))
    (logits["click"] - 2 * logits["like"]).square().sum().backward()
    for name, parameter in [*student.named_parameters(), *main.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_towers_share_no_parameter(student: Student) -> None:
    towers = [student.tower(), student.tower(), student]
    storages = [parameter.data_ptr() for tower in towers for parameter in tower.parameters()]
    assert len(set(storages)) == len(storages)


def test_what_is_served_is_the_main_tower_alone(student: Student) -> None:
    module = StudentModule(student, {"click": distilled()})
    serving = module.train().serving_module()
    assert not serving.training
    assert module.training
    module.eval()
    served, logits = serving(**student.inputs(BATCH)), module(BATCH)
    for task in SCHEMA.tasks:
        assert torch.equal(served[task], logits[task])
    names = {name for name, _ in serving.named_parameters()}
    assert names == {f"student.{name}" for name, _ in student.named_parameters()} | {
        f"main.{name}" for name, _ in module.main.named_parameters()
    }
    before = served["click"].clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert torch.equal(serving(**student.inputs(BATCH))["click"], before)


def distilled() -> Any:
    from recdistill_core.objective import Objective

    return Objective("click", make(installed(), "strategy", "rec_distill"), make(installed(), "loss", "soft_ce"))


class Named(nn.Module):
    """The served model with its inputs by name, as ``torch.export`` wants them for a dynamic number of rows."""

    def __init__(self, served: ServingModule) -> None:
        super().__init__()
        self.served = served

    def forward(
        self, categorical: Tensor, numeric: Tensor, history_item: Tensor, history_action: Tensor, history_seen: Tensor
    ) -> dict[str, Tensor]:
        past = {"history_item": history_item, "history_action": history_action, "history_seen": history_seen}
        logits: dict[str, Tensor] = self.served(categorical=categorical, numeric=numeric, **past)
        return logits


@pytest.mark.parametrize("kind", ["mlp", "dcn", "dcn-rank-2"])
def test_torch_export_of_what_is_served(kind: str) -> None:
    student = build(KINDS[kind])
    serving = student.serving_module(student.tower())
    inputs = student.inputs(BATCH)
    fixed = torch.export.export(serving, (), kwargs=inputs).module()
    torch.testing.assert_close(fixed(**inputs), serving(**inputs))
    shapes = {name: {0: torch.export.Dim("rows")} for name in inputs}
    dynamic = torch.export.export(Named(serving), (), kwargs=inputs, dynamic_shapes=shapes).module()
    for rows in (1, 2, 16):
        some = student.inputs(make_batch(rows, seed=1))
        torch.testing.assert_close(dynamic(**some), serving(**some))
    some["categorical"] = torch.full_like(some["categorical"], -1)  # the out-of-vocabulary mapping is in the graph
    torch.testing.assert_close(dynamic(**some), serving(**some))


@pytest.mark.parametrize("rank", [0, 2])
def test_cross_layers_equal_the_formula_in_numpy(rank: int) -> None:
    student = build({**KINDS["dcn"], "rank": rank})
    assert isinstance(student, DCN)

    def plain(tensor: Tensor) -> NDArray[np.float64]:
        return tensor.detach().double().numpy()

    first = plain(student.features(**student.inputs(BATCH)))
    current = first
    for layer in student.cross:
        assert isinstance(layer, CrossLayer)
        if rank:
            assert isinstance(layer.down, nn.Linear)
            matrix, bias = plain(layer.up.weight) @ plain(layer.down.weight), plain(layer.up.bias)
            assert np.linalg.matrix_rank(matrix) == rank
        else:
            matrix, bias = plain(layer.up.weight), plain(layer.up.bias)
        current = first * (current @ matrix.T + bias) + current  # DCN-v2, equation 1
    found = plain(student.backbone(BATCH))
    np.testing.assert_allclose(found[:, : first.shape[1]], current, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[:, first.shape[1] :], plain(student.dense(torch.tensor(first).float())), atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "dcn"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": []}, "hidden needs one or more widths >= 1, got []"),
        ({"hidden": [8, 0]}, "hidden needs one or more widths >= 1, got [8, 0]"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "dropout must lie in [0, 1), got -0.1"),
        ({"dropout": math.nan}, "dropout must lie in [0, 1), got nan"),
        ({"embedding": 0}, {"mlp": "embedding must be >= 1, got 0", "dcn": "embedding and cross_layers must be >= 1, "
                            "got embedding 0, cross_layers 2"}),
        ({"tower": -1}, {"mlp": "tower and recent must be >= 0, got tower -1, recent 10", "dcn": "tower, recent and "
                         "rank must be >= 0, got tower -1, recent 10, rank 0"}),
        ({"recent": -1}, {"mlp": "tower and recent must be >= 0, got tower 16, recent -1", "dcn": "tower, recent and "
                          "rank must be >= 0, got tower 16, recent -1, rank 0"}),
        ({"cross_layers": 0}, {"dcn": "embedding and cross_layers must be >= 1, got embedding 8, cross_layers 0"}),
        ({"rank": -2}, {"dcn": "tower, recent and rank must be >= 0, got tower 16, recent 10, rank -2"}),
    ],
)  # fmt: skip
def test_settings_out_of_range(name: str, values: dict[str, Any], message: str | dict[str, str]) -> None:
    wanted = message if isinstance(message, str) else message.get(name)
    if wanted is None:
        wanted = f"{next(iter(values))}: unknown key"
    with pytest.raises(ConfigError) as error:
        make(installed(), "student", {"name": name, **values}, BuildContext(SCHEMA, SCHEMA.tasks))
    assert wanted in str(error.value)


def test_dropout_acts_in_training_only() -> None:
    for name in ("mlp", "dcn"):
        student = build({**KINDS[name], "dropout": 0.5})
        assert not torch.equal(student.backbone(BATCH), student.backbone(BATCH))
        student.eval()
        assert torch.equal(student.backbone(BATCH), student.backbone(BATCH))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_without_events(kind: str) -> None:
    schema = replace(SCHEMA, events=(), actions=())
    student = build(KINDS[kind], schema)
    assert student.history is None
    batch = replace(BATCH, history=None)
    assert set(student.inputs(batch)) == {"categorical", "numeric"}
    assert student.serving_module(student.tower())(**student.inputs(batch))["like"].shape == (16,)


def test_weights_survive_a_trip_through_safetensors(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    module = StudentModule(student, {"click": distilled()}).eval()
    save_weights(module.state_dict(), path)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    changed = module(BATCH)["click"]
    stored = load_weights(path)
    assert stored.keys() == module.state_dict().keys()
    restore(module, path)
    assert not torch.equal(module(BATCH)["click"], changed)
    for name, value in module.state_dict().items():
        assert torch.equal(value, stored[name]), name


PICKLE = "the checkpoint is a pickle, which can run code when it is loaded\n  where: "


def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path) -> None:
    weights = build(KINDS["mlp"]).state_dict()
    files = [tmp_path / name for name in ("a.pt", "b.safetensors", "c.safetensors", "d.safetensors", "e.bin")]
    torch.save(weights, files[0])
    torch.save(weights, files[1])
    torch.save(weights, files[2], _use_new_zipfile_serialization=False)
    files[3].write_bytes(pickle.dumps({"a": 1}))
    save_weights(weights, files[4])
    for path in files:
        with pytest.raises(DataError) as error:
            load_weights(path)
        assert str(error.value).startswith(f"{PICKLE}{path}\n  to do: save the weights with safetensors.torch.save_f")


def test_no_safetensors_file_is_taken_for_a_pickle(tmp_path: Path) -> None:
    for length in range(1, 300):
        save_weights({"w" * length: torch.zeros(1)}, tmp_path / "model.safetensors")
        assert len(load_weights(tmp_path / "model.safetensors")) == 1


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    student = build(KINDS["mlp"])
    save_weights(student.state_dict(), path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], whole[: len(whole) // 2], whole + b"x", whole[:8] + b"x" + whole[9:]):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="the checkpoint is damaged: "):
            restore(student, path)
    path.unlink()
    with pytest.raises(IntegrityError, match="the checkpoint cannot be read: No such file or directory"):
        restore(student, path)
    save_weights(build(KINDS["dcn"]).state_dict(), path)
    with pytest.raises(IntegrityError, match="the checkpoint does not fit the model: Error") as e:
        restore(student, path)
    assert str(path) in str(e.value)
