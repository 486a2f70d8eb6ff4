"""What a model costs: counted by hand, and the same whichever backend computes it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline_cases import STUDENT, data_module, teacher_module

from recdistill_core.batch import Batch
from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import DataError, UsageError
from recdistill_core.objective import Objective
from recdistill_core.registry import installed
from recdistill_core.weights import load_weights, save_weights
from recdistill_lightning import StudentModule
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.dataset import make_split
from recdistill_pipeline.runconfig import SplitConfig
from recdistill_pipeline.scoring import cost


def test_an_mlp_costs_two_flops_a_weight_of_its_dense_layers(feed: ParquetSource) -> None:
    student = make(installed(), "student", {"name": "mlp", **STUDENT}, BuildContext(feed.schema, ("click",)))
    module = StudentModule(student, {"click": Objective("click")}).eval()
    found = cost(module.serving_module(), module, feed, (0, feed.num_rows), module.history)
    categorical, numeric = len(feed.schema.categorical), len(feed.schema.numeric)
    inputs = STUDENT["embedding"] * (categorical + 1) + numeric  # one more embedding: the pooled history
    sizes = [(inputs, 8), (8, 16), (16, 1)]  # dense layer, tower, logit
    assert found["flops_per_impression"] == 2 * sum(before * after for before, after in sizes)
    assert found["dense_parameters"] == sum(before * after + after for before, after in sizes)
    rows = feed.schema.num_items + feed.schema.num_action_codes
    rows += sum(feed.schema.vocabulary_size(name) for name in {entry.vocabulary for entry in feed.schema.categorical})
    assert found["embedding_parameters"] == STUDENT["embedding"] * rows


def test_the_chunked_backend_hides_no_flops(feed: ParquetSource) -> None:
    counts = {}
    for backend in ("reference", "chunked"):
        module = teacher_module(feed, backend=backend).eval()
        counts[backend] = cost(module.teacher, module, feed, (0, feed.num_rows), module.history)["flops_per_impression"]
    assert counts["chunked"] == pytest.approx(counts["reference"], rel=0.1)


def test_a_strategy_whose_processes_hold_parts_of_one_copy_is_refused(feed: ParquetSource) -> None:
    data = data_module(feed, teacher_module(feed))
    # stands for a Trainer whose strategy makes two copies of the model, each cut over two devices by tensors
    trainer = SimpleNamespace(world_size=4, global_rank=0, distributed_sampler_kwargs={"num_replicas": 2, "rank": 0})
    data.trainer = trainer  # type: ignore[assignment]  # as above
    with pytest.raises(UsageError) as caught:
        data.train_dataloader()
    assert str(caught.value) == (
        "the strategy makes 2 copies of the model in 4 processes, and the data module deals its rows to all of them\n"
        "  where: lightning.Trainer(strategy=...)\n"
        "  to do: use 'ddp' or recdistill_lightning.FSDP2Strategy(); tensor parallelism is not supported"
    )


def test_a_share_of_all_rows_ends_with_the_last_row(feed: ParquetSource) -> None:
    split = make_split(feed, SplitConfig(test_from="80%", test_until="100%"))
    assert split.test == (split.teacher[1], feed.num_rows)


def test_every_batch_of_a_source_is_checked(feed: ParquetSource, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, given = feed.batch, []

    def broken(rows: Any, history: Any) -> Batch:
        given.append(rows)
        batch = batches(rows, history)
        return batch if len(given) < 3 else replace(batch, numeric=torch.full((len(batch), 1), float("nan")))

    monkeypatch.setattr(feed, "batch", broken)
    with pytest.raises(DataError, match="numeric feature is NaN or infinite"):
        list(data_module(feed, teacher_module(feed)).train_dataloader())
    assert len(given) == 3


def test_lightning_refusing_its_settings_is_a_usage_error(feed: ParquetSource, tmp_path: Path) -> None:
    module = teacher_module(feed)
    trainer = make(installed(), "trainer", {"name": "lightning", "accelerator": "abacus"})
    with pytest.raises(UsageError, match=r"Lightning refuses the trainer's settings: .*abacus") as caught:
        trainer.fit(module, data_module(feed, module), epochs=1, callbacks=[], out=tmp_path, title="teacher")
    assert "'recdistill plugins show lightning' lists the settings" in str(caught.value)


@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_rows_that_are_held_stay_as_they_are(feed: ParquetSource, tmp_path: Path, strategy: str) -> None:
    module, table = teacher_module(feed), "teacher.tokens.table.weight"
    before = module.get_parameter(table).detach().clone()
    held = torch.arange(len(before)) % 2 == 0
    module.hold(table, held)
    trainer = make(installed(), "trainer", {"name": "lightning", "accelerator": "cpu", "strategy": strategy})
    trainer.fit(module, data_module(feed, module), epochs=1, callbacks=[], out=tmp_path / "log", title="teacher")
    save_weights(module.state_dict(), tmp_path / "model.safetensors")  # whole, also where the strategy has cut it
    after = load_weights(tmp_path / "model.safetensors")[table]
    assert torch.equal(after[held], before[held])
    assert not torch.equal(after[~held], before[~held])
    assert "LOCAL_RANK" not in os.environ  # by which Lightning takes a later fit for one of several processes


def test_few_updates_are_told_and_every_fit_leaves_a_log(
    feed: ParquetSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = teacher_module(feed)
    data = data_module(feed, module)
    with caplog.at_level("INFO", logger="recdistill_lightning"):
        make(installed(), "trainer", "lightning").fit(
            module, data, epochs=1, callbacks=[], out=tmp_path / "log", title="the teacher"
        )
    updates = data.updates(1)
    assert [record.getMessage() for record in caplog.records] == [
        f"the teacher: {updates} updates in 1 passes",
        "the teacher: so few updates rarely train a model; lower batch_size or raise batch_epochs",
    ]
    assert (tmp_path / "log/metrics.csv").read_text().count("\n") >= 2
