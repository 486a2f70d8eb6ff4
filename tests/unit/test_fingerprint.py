"""Digests: equal for equal things in every process, different for everything else."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from recdistill_core.fingerprint import digest, file_sha256, module_fingerprint, snapshot_digest
from recdistill_core.interfaces import CaptureMode


@dataclass(frozen=True)
class Config:
    width: int = 1
    sizes: tuple[int, ...] = (1, 2)


def test_digest_is_of_the_value() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(Config()) == digest({"width": 1, "sizes": [1, 2]})
    assert digest(Path("x")) == digest("x")
    values = [1, 1.5, "1", None, True, [1], {"a": 1}, {"a": 2}, Config(), Config(2), {"x", "y"}, CaptureMode.LEAKY]
    assert len({digest(value) for value in values}) == len(values)
    assert len(digest(1)) == 16


def test_digest_of_a_set_is_equal_in_every_process() -> None:
    code = "from recdistill_core.fingerprint import digest; print(digest({'a': set('recdistill')}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest({"a": set("recdistill")})  # this process has another hash seed


@pytest.mark.parametrize(("value", "kind"), [(lambda: 1, "function"), (object(), "object")])
def test_what_has_no_stable_text_has_no_digest(value: object, kind: str) -> None:
    with pytest.raises(TypeError, match=f"a {kind} has no stable digest: its text is its address in memory"):
        digest({"a": value})


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_a_module_fingerprint_covers_weights_config_and_view() -> None:
    base = module_fingerprint(linear(), Config(), "view")
    assert base == module_fingerprint(linear(), Config(), "view")
    assert len(base) == 32
    changed = linear()
    with torch.no_grad():
        changed[0].bias[2] += 1e-6  # type: ignore[index, operator]  # a Sequential
    named = nn.ModuleDict({"0": linear()[0], "2": linear()[1]})  # type: ignore[index]  # a Sequential
    others = [
        module_fingerprint(linear(1), Config(), "view"),
        module_fingerprint(linear(), Config(2), "view"),
        module_fingerprint(linear(), Config(), "other"),
        module_fingerprint(linear().double(), Config(), "view"),
        module_fingerprint(changed, Config(), "view"),
        module_fingerprint(named, Config(), "view"),
    ]
    assert len({base, *others}) == 7


def test_a_module_fingerprint_takes_any_tensor() -> None:
    module = nn.Module()
    for name, tensor in {
        "empty": torch.zeros(0, 3),
        "halved": torch.ones(2, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }.items():
        module.register_buffer(name, tensor)
    before = module_fingerprint(module, None, "v")
    module.get_buffer("mask")[1] = True
    assert module_fingerprint(module, None, "v") != before


def test_files_and_snapshots(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 3_000_000)
    assert file_sha256(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert snapshot_digest({"a": "1", "b": "2"}) == snapshot_digest({"b": "2", "a": "1"})
    assert len({snapshot_digest(files) for files in ({}, {"a": "1"}, {"a": "2"}, {"b": "1"})}) == 4
