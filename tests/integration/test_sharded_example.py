"""The example of sharded training as torchrun runs it, and where several processes are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pipeline_cases import Verb, config, data_module, environment, refused, run_of, teacher_module, write_config
from safetensors.torch import load_file

from recdistill_core.config import make
from recdistill_core.errors import UsageError
from recdistill_core.registry import installed
from recdistill_lightning import TrainerConfig
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_sharded.py"


@pytest.mark.slow
def test_a_run_reads_what_the_example_labels_under_torchrun(feed_path: Path, tmp_path: Path) -> None:
    shutil.copytree(feed_path, tmp_path / "dataset")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(EXAMPLE), str(tmp_path / "dataset")],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    counts = {entry.version: entry.count for entry in ParquetLogitStore(tmp_path / "labels").versions()}
    assert sorted(counts.values()) == [600, 2400]
    (made,) = [version for version, count in counts.items() if count == 2400]
    assert done.stdout.count(f"version {made}, 2400 labels") == 1
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("labels: ")]
    assert "teacher.layers.0.project.weight" in load_file(tmp_path / "teacher.safetensors")
    (newest,) = (tmp_path / "checkpoints").iterdir()
    assert (newest / "meta.pt").is_file()
    labels = OmegaConf.to_container(OmegaConf.create(told))["labels"]  # type: ignore[index, call-overload]  # a mapping
    assert set(labels["versions"]) == set(counts)
    shared = {"store": {"name": "parquet", "path": str(tmp_path / "labels")}, "split": {"test_from": "80%"}}
    plain = config(tmp_path / "dataset", **shared, labels=labels, students=["mlp"], seeds=[1])
    run_of(tmp_path / "run", plain).all()
    assert "eta" in (tmp_path / "run" / "metrics.json").read_text()


def test_a_run_refuses_to_be_one_of_several_processes(
    feed_path: Path, recdistill: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = write_config(tmp_path / "run.yaml", config(feed_path))
    done = recdistill("run", path, "--out", tmp_path / "out", "--json")
    refused(done, "UsageError", "this is one of 2 processes, and a run is one process", "docs/sharded-training.md")
    assert not (tmp_path / "out").exists()


def test_the_trainer_does_not_start_the_command_again(feed: ParquetSource, tmp_path: Path) -> None:
    module = teacher_module(feed)
    trainer = make(installed(), "trainer", {"name": "lightning", "accelerator": "cpu", "devices": "2"})
    with pytest.raises(UsageError, match="these settings take 2 processes, and this is the only one") as caught:
        trainer.fit(module, data_module(feed, module), epochs=1, callbacks=[], out=tmp_path, title="teacher")
    assert "a script that torchrun starts" in str(caught.value)


def test_the_trainers_strategies_are_named() -> None:
    with pytest.raises(ValueError, match=r"strategy must be one of auto, ddp, .*fsdp2; got 'fsdp'") as caught:
        TrainerConfig(strategy="fsdp")
    assert "fsdp2" in str(caught.value)
    with pytest.raises(ValueError, match="num_nodes must be >= 1, got 0"):
        TrainerConfig(num_nodes=0)
