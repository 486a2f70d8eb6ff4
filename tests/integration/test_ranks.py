"""Two processes train as one: same updates, same labels, same checkpoints; real processes, joined by gloo."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_worker as worker
import torch
from pipeline_cases import TEACHER, fit
from safetensors.torch import load_file
from test_capture import captured
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from recdistill_core import BuildContext, installed, make
from recdistill_core.interfaces import CaptureMode
from recdistill_lightning.sharding import shard
from recdistill_lightning.shares import cuts
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Ended:
    """How the processes of a job ended: exit code and what they said, by rank."""

    codes: list[int | None]
    said: list[str]


def job(count: int, feed: Path, out: Path, *scenarios: str, seconds: int = 240, **more: object) -> Ended:
    """Run scenarios of ``rank_worker`` in ``count`` processes; fails where one is not done in time."""
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "RANKS": str(count)}
    shared |= {name: str(value) for name, value in more.items()}
    forks = multiprocessing.get_context("forkserver")  # what has imported torch once is forked, which saves seconds
    forks.set_forkserver_preload(["rank_worker"])
    logs = [out / f"rank-{rank}.log" for rank in range(count)]
    processes = [
        forks.Process(
            target=worker.run,
            args=(feed, out, scenarios, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, logs[rank]),
        )
        for rank in range(count)
    ]
    end = time.monotonic() + seconds
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        alive = [process.is_alive() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    said = [path.read_text() if path.exists() else "" for path in logs]
    assert not any(alive), f"not done after {seconds} s:\n" + "\n".join(text[-3000:] for text in said)
    return Ended([process.exitcode for process in processes], said)


def done(ended: Ended) -> None:
    assert ended.codes == [0] * len(ended.codes), "\n".join(text[-3000:] for text in ended.said)


def told(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"rank-{rank}.json").read_text())
    return found


def same_weights(one: Path, two: Path, tolerance: float = 1e-9) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.shape == second[name].shape
        assert float((tensor - second[name]).abs().max()) < tolerance, name


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other slow down small models beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(feed: ParquetSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fit of one process, as it always was."""
    out = tmp_path_factory.mktemp("alone")
    worker.train(feed, out, "auto", worker.Save(out))
    return out


@pytest.fixture(scope="module")
def saved_by_one(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same fit with FSDP2 in one process."""
    out = tmp_path_factory.mktemp("one")
    done(job(1, feed_path, out, "fsdp2"))
    return out / "fsdp2"


@pytest.fixture(scope="module")
def pair(feed_path: Path, saved_by_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of it."""
    out = tmp_path_factory.mktemp("pair")
    done(
        job(
            2,
            feed_path,
            out,
            "ddp",
            "fsdp2",
            "clipped",
            "mixed",
            "student",
            "pruned",
            "resume",
            CHECKPOINTS=saved_by_one,
        )
    )
    return out


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_make_the_updates_and_labels_of_one(strategy: str, alone: Path, pair: Path) -> None:
    one, two = told(alone), told(pair / strategy)
    assert one["steps"] == two["steps"] > 30
    same_weights(alone, pair / strategy)
    np.testing.assert_allclose(two["losses"], one["losses"], atol=1e-9)
    assert told(pair / strategy, 1)["losses"] == two["losses"]
    assert two["metrics"]["val/ne"] == pytest.approx(one["metrics"]["val/ne"], abs=1e-9)
    # rows of one request that show one item have equal logits, and rounding decides how many of them tie
    assert two["metrics"]["val/gauc"] == pytest.approx(one["metrics"]["val/gauc"], abs=2e-3)
    labels, wanted = (captured(ParquetLogitStore(path / "labels")) for path in (pair / strategy, alone))
    for column in ("example_id", "step"):
        np.testing.assert_array_equal(labels[column], wanted[column])
    np.testing.assert_allclose(labels["logit_click"], wanted["logit_click"], atol=1e-5)
    for rank in (0, 1):
        found = told(pair / strategy, rank)
        assert found["committed"] == one["committed"] == [one["committed"][0], worker.ROWS]
        assert found["trained"] == one["trained"]


def test_each_layer_is_gathered_by_itself(pair: Path) -> None:
    for rank in (0, 1):
        assert told(pair / "fsdp2", rank)["sharded"] == ["", "teacher.layers.0", "teacher.layers.1"]
        assert told(pair / "ddp", rank)["sharded"] == []


@pytest.mark.parametrize(
    ("name", "layers", "further"),
    [("hstu", "layers", []), ("hf", "decoder.layers", ["head.cross.0"])],
    ids=["hstu", "hf"],
)
def test_blocks_of_a_teacher_are_its_layers(name: str, layers: str, further: list[str], feed: ParquetSource) -> None:
    """Without blocks all weights would be gathered at once: results stay right, and the memory is that of the whole."""
    settings = {**TEACHER, "name": name, "layers": 3}
    teacher = make(installed(), "teacher", settings, BuildContext(feed.schema, ("click",)))
    expected = [*(f"{layers}.{number}" for number in range(3)), *further]
    assert list(teacher.blocks()) == [teacher.get_submodule(part) for part in expected]
    batch = feed.batch(np.arange(200), teacher.history)
    before = teacher.score(batch).logits["click"]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    shard(teacher, init_device_mesh("cpu", (1,)))
    assert [part for part, module in teacher.named_modules() if isinstance(module, FSDPModule)] == ["", *expected]
    torch.testing.assert_close(teacher.score(batch).logits["click"], before)


def test_some_share_was_empty(feed: ParquetSource) -> None:
    module = worker.teacher(feed)
    batches = list(worker.data_module(feed, module, rows=worker.ROWS, order=worker.ORDER).training_batches())
    ends = [cuts(batch.user_id.numpy(), batch.request_id.numpy(), 2) for batch in batches]
    assert any(0 in np.diff(bounds) for bounds in ends)
    assert len({int(np.diff(bounds)[0]) for bounds in ends}) > 5  # and others were uneven


def test_clipping_and_accumulation_see_the_gradient_of_all(feed: ParquetSource, pair: Path, tmp_path: Path) -> None:
    worker.train(feed, tmp_path, "auto", gradient_clip_val=0.05, accumulate_grad_batches=2)
    same_weights(tmp_path, pair / "clipped")


def test_half_the_precision_is_about_the_same(feed: ParquetSource, pair: Path, tmp_path: Path) -> None:
    worker.mixed(feed, tmp_path, "auto")
    one, two = told(tmp_path), told(pair / "mixed")
    assert two["types"] == one["types"] == ["torch.float32"]
    np.testing.assert_allclose(two["losses"], one["losses"], atol=0.05)
    assert two["losses"] != one["losses"]


def test_a_student_learns_the_same_in_two_processes(feed: ParquetSource, pair: Path, tmp_path: Path) -> None:
    module = worker.a_student(feed)
    fit(module, worker.student_data(feed, module))
    worker.save_full_weights(module, tmp_path / "model.safetensors")
    same_weights(tmp_path, pair / "student", 1e-5)


def test_a_student_is_pruned_and_grown_alike_in_two_processes(feed: ParquetSource, pair: Path, tmp_path: Path) -> None:
    for name, pruning in worker.prunings().items():
        module = worker.a_student(feed)
        torch.manual_seed(0)
        fit(module, worker.student_data(feed, module), pruning)
        (tmp_path / name).mkdir()
        worker.save_full_weights(module, tmp_path / name / "model.safetensors")
        same_weights(tmp_path / name, pair / "pruned" / name, 1e-5)


def test_labels_of_a_sharded_teacher_are_its_scores(feed: ParquetSource, alone: Path, pair: Path) -> None:
    module = worker.teacher(feed)
    module.load_state_dict(load_file(pair / "fsdp2/model.safetensors"), strict=False)
    store = ParquetLogitStore(pair / "fsdp2/after")
    (made,) = store.versions()
    assert (made.version, made.mode) == (module.teacher.fingerprint(), CaptureMode.OUT_OF_FOLD)
    batch = feed.batch(np.arange(*worker.TEST), module.history)
    signal = store.read(made.version, batch.example_id.numpy())
    assert bool(signal.valid["click"].all())
    torch.testing.assert_close(
        signal.logits["click"], module.teacher.score(batch).logits["click"].float(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("place", ["mid", "end"])
def test_a_checkpoint_of_one_process_goes_on_in_two(place: str, alone: Path, pair: Path) -> None:
    same_weights(alone, pair / "resume" / place)
    assert told(pair / "resume" / place)["trained"] == told(alone)["trained"]
    assert told(pair / "resume" / place)["steps"] == told(alone)["steps"]


def test_a_checkpoint_of_two_processes_goes_on_in_one(
    feed: ParquetSource, feed_path: Path, alone: Path, pair: Path, tmp_path: Path
) -> None:
    done(job(1, feed_path, tmp_path, "resume", "plain", CHECKPOINTS=pair / "fsdp2"))
    for place in ("mid", "end"):
        same_weights(alone, tmp_path / "resume" / place)
        assert told(tmp_path / "resume" / place)["trained"] == told(alone)["trained"]
    halfway = torch.load(alone / "mid.ckpt", weights_only=True)["state_dict"]
    for name, tensor in load_file(tmp_path / "plain/model.safetensors").items():
        torch.testing.assert_close(tensor, halfway[name], atol=1e-9, rtol=0)
    # a checkpoint of data-parallel training is an ordinary file, which one process goes on from
    worker.go_on(feed, tmp_path / "ddp", pair / "ddp/mid.ckpt", "auto")
    same_weights(alone, tmp_path / "ddp")


def test_a_checkpoint_holds_no_pickle_but_one_that_is_read_as_plain_values(pair: Path) -> None:
    folder = pair / "fsdp2/mid.ckpt"
    assert sorted(path.suffix for path in folder.iterdir()) == [".pt", ".safetensors", ".safetensors"]
    assert torch.load(folder / "meta.pt", weights_only=True)["rest"]["global_step"] == worker.SAVE_AT


@pytest.mark.parametrize(("scenario", "dead"), [("second_dies", 1), ("first_dies", 0)])
def test_a_process_that_dies_ends_the_other_and_commits_no_label(
    scenario: str, dead: int, feed_path: Path, tmp_path: Path
) -> None:
    ended = job(2, feed_path, tmp_path, scenario, seconds=100)
    assert ended.codes[dead] == 9, ended.said[dead]
    assert ended.codes[1 - dead] not in (0, 9), ended.said[1 - dead]
    assert ParquetLogitStore(tmp_path / scenario / "labels").versions() == ()


def test_both_processes_refuse_what_one_of_them_must(feed: ParquetSource, feed_path: Path, tmp_path: Path) -> None:
    done(job(2, feed_path, tmp_path, "seen_before", "no_share"))
    example = int(worker.seen(feed)[0])
    for rank in (0, 1):
        leak = told(tmp_path / "seen_before", rank)
        assert leak["kind"] == "LeakError"
        assert f"1 examples of this batch were trained on in an earlier fit\n  where: example {example}" in leak["text"]
        assert told(tmp_path / "no_share", rank) == {
            "kind": "UsageError",
            "text": "2 processes train together, and the batch does not say which whole one it is a share of\n"
            "  where: Batch.share\n"
            "  to do: fit with datamodule=DistillationDataModule(...), or set share=Share(ids, processes) in your "
            "batches",
        }
    assert ParquetLogitStore(tmp_path / "seen_before/labels").versions() == ()
