"""Sharded checkpoints in one process: what comes back, and what is refused; ``test_ranks`` has several processes."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from recdistill_core.errors import IntegrityError
from recdistill_lightning import load_sharded, save_full_weights, save_sharded


def model(width: int = 3, steps: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model with a buffer, after some steps of an optimiser with two kinds of state."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def test_weights_optimiser_and_the_rest_come_back(tmp_path: Path) -> None:
    module, optimizer = model(steps=3)
    optimizer.param_groups[0]["lr"] = 0.025
    rest = {"step": 3, "trained": torch.arange(5), "nested": {"a": [1, 2.5, None]}}
    for _ in range(2):  # a checkpoint of the same name is replaced
        save_sharded(tmp_path / "some.ckpt", module, [optimizer], rest)
    other, fresh = model()
    found = load_sharded(tmp_path / "some.ckpt", other, [fresh])
    assert (found["step"], found["nested"]) == (3, rest["nested"])
    assert torch.equal(found["trained"], torch.arange(5))
    assert fresh.param_groups[0]["lr"] == 0.025
    for name, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    for one, two in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert list(tmp_path.iterdir()) == [tmp_path / "some.ckpt"]


def shards(folder: Path) -> Path:
    (found,) = folder.glob("*.safetensors")
    return found


def cut_off(folder: Path) -> None:
    shards(folder).write_bytes(shards(folder).read_bytes()[:-9])


class Harmful:
    """Would make a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("harm",)


def overwritten(folder: Path) -> None:
    path = shards(folder)
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: shards(folder).unlink(), "is absent or was cut off"),
        (cut_off, "is absent or was cut off"),
        (overwritten, "its tensors cannot be read"),
        (lambda folder: (folder / "meta.pt").unlink(), "meta.pt cannot be read"),
        (lambda folder: (folder / "meta.pt").write_bytes(b"\x00" * 40), "meta.pt cannot be read"),
        (lambda folder: (folder / "meta.pt").write_bytes(b"junk"), "meta.pt cannot be read"),
        (lambda folder: (folder / "meta.pt").write_text("some text, no checkpoint\n"), "meta.pt cannot be read"),
        (shutil.rmtree, "there is no such folder"),
        (lambda folder: torch.save({"epoch": 1}, folder / "meta.pt"), "it was written by something else"),
        (lambda folder: torch.save([1], folder / "meta.pt"), "meta.pt cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    module, optimizer = model(steps=1)
    folder = tmp_path / "some.ckpt"
    save_sharded(folder, module, [optimizer], {})
    damage(folder)
    with pytest.raises(IntegrityError, match="the sharded checkpoint cannot be used") as caught:
        load_sharded(folder, *pair(model()))
    assert expected in str(caught.value)
    assert f"where: {folder}" in str(caught.value)
    assert "go on from an earlier checkpoint" in str(caught.value)


def pair(made: tuple[nn.Module, torch.optim.Optimizer]) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    return made[0], [made[1]]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module, optimizer = model(steps=1)
    folder = tmp_path / "some.ckpt"
    save_sharded(folder, module, [optimizer], {})
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))):
        write({"rest": Harmful(), "values": {}, "files": {}}, folder / "meta.pt")
        with pytest.raises(IntegrityError, match=r"meta.pt cannot be read") as caught:
            load_sharded(folder, *pair(model()))
        assert "weights_only" not in str(caught.value)
        assert caught.value.__cause__ is not None
    assert not (tmp_path / "harm").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    module, optimizer = model(steps=1)
    save_sharded(tmp_path / "some.ckpt", module, [optimizer], {})
    with pytest.raises(
        IntegrityError, match="the sharded checkpoint cannot be used: it is of another model: "
    ) as caught:
        load_sharded(tmp_path / "some.ckpt", *pair(model(width=5)))
    assert "0.weight is [3, 4] there and [5, 4] here; 0.bias is [3] there and [5] here; " in str(caught.value)
    assert re.search(r"; and \d+ more\n", str(caught.value))
    with pytest.raises(
        IntegrityError, match=r"another model: it has no weight; it has no bias; the model here has no 0\."
    ):
        load_sharded(tmp_path / "some.ckpt", nn.Linear(2, 2))
    fewer = nn.Sequential(nn.Linear(4, 3))  # the weights that it has do fit
    with pytest.raises(IntegrityError, match=r"another model: the model here has no 1\.bias; "):
        load_sharded(tmp_path / "some.ckpt", fewer)


def test_every_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    module, optimizer = model(steps=1)
    save_sharded(tmp_path / "some.ckpt", module, [optimizer], {})
    save_full_weights(module, tmp_path / "model.safetensors")
    (tmp_path / "other").touch()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.stat().st_mode for path in files} == {(tmp_path / "other").stat().st_mode}


def test_full_weights_of_one_process_are_its_state(tmp_path: Path) -> None:
    module, _ = model(steps=1)
    save_full_weights(module, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())
