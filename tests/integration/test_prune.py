"""Students that are pruned and grown while they train, in a Trainer as a user would make it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline_cases import config, data_module, fit, run_of
from torch import Tensor

from recdistill_core import BuildContext, Objective
from recdistill_core.config import make
from recdistill_core.errors import UsageError
from recdistill_core.registry import installed
from recdistill_core.serving import with_named_inputs
from recdistill_core.weights import load_weights
from recdistill_lightning import DistillationDataModule, Optimisation, ReadOrder, StudentModule
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.scoring import cost
from recdistill_prune import GrowPrune, IdeaPrune, InRecovery, OneCosine, hidden_layers

STUDENT: dict[str, Any] = {"name": "dcn", "embedding": 4, "hidden": [8, 6], "tower": 4, "recent": 3}
START = {"student.dense.0": 8, "main.body.0": 4}


def student_module(feed: ParquetSource, optimisation: Optimisation | None = None, **changes: Any) -> StudentModule:
    torch.manual_seed(5)
    student = make(installed(), "student", {**STUDENT, **changes}, BuildContext(feed.schema, ("click",)))
    return StudentModule(student, {"click": Objective("click")}, optimisation or OneCosine(lr=1e-2))


def data_of(feed: ParquetSource, module: StudentModule, **settings: Any) -> DistillationDataModule:
    """Two passes of 12 batches."""
    return data_module(feed, module, order=ReadOrder(128, 0.0), batch_epochs=2, **settings)


def widths(module: torch.nn.Module) -> dict[str, int]:
    return {name: layer.width for name, layer in hidden_layers(module).items()}


class Diary(L.Callback):
    """Live neurons and learning rate after every batch, and the masked student as training ends."""

    def __init__(self, pruning: IdeaPrune | GrowPrune) -> None:
        self.pruning = pruning
        self.live: list[dict[str, int]] = []
        self.rates: list[float] = []
        self.logits = torch.empty(0)
        self.served: Any = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.live.append(self.pruning.widths)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        for name, layer in hidden_layers(pl_module).items():
            dead = (~self.pruning.live[name]).nonzero()[:, 0]
            for part, dimension in layer.parts():
                assert not part.index_select(dimension, dead).any()
                for value in trainer.optimizers[0].state[part].values():
                    if value.shape == part.shape:
                        assert not value.index_select(dimension, dead).any()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudentModule)
        pl_module.eval()
        self.logits = scores(pl_module, data_rows(pl_module, trainer))
        self.served = pl_module.serving_module()
        pl_module.train()


def data_rows(module: StudentModule, trainer: L.Trainer) -> Any:
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it in fit
    return data.source.batch(torch.arange(1600, 1700).numpy(), module.history)


def scores(module: StudentModule, batch: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(batch)["click"]
    return found


@pytest.mark.parametrize("name", ["mlp", "dcn"])
def test_an_enlarged_student_ends_as_it_was_built(feed: ParquetSource, name: str) -> None:
    hidden = {"mlp": {"student.dense.0": 8, "main.body.0": 4}, "dcn": START}[name]
    spec = {**STUDENT, "name": name}
    module, plain = student_module(feed, **spec), student_module(feed, **spec)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    pruning = IdeaPrune(enlarge=4.0, cuts=5)
    diary = Diary(pruning)
    trainer = fit(module, data_of(feed, module), pruning, diary)
    assert {key: value.shape for key, value in module.state_dict().items()} == shapes
    batch = data_rows(module, trainer)
    module.eval()
    torch.testing.assert_close(scores(module, batch), diary.logits, rtol=0, atol=1e-6)
    first, last = {key: 4 * width for key, width in hidden.items()}, hidden
    assert diary.live[:5] == [first] * 5  # a quarter of 24 batches
    assert diary.live[13:] == [last] * 11
    for before, after in itertools.pairwise(diary.live):
        assert all(after[key] <= before[key] for key in hidden)
    assert len({live["student.dense.0"] for live in diary.live}) == 6
    small, masked, wide = (
        cost(served, lambda rows, served=served: served(**served.student.inputs(rows)), feed, (0, 64), module.history)
        for served in (module.serving_module(), plain.serving_module(), diary.served)
    )
    assert small == masked
    layers = hidden_layers(module).values()
    saved = sum(3 * layer.width * (layer.before.in_features + layer.after.out_features) for layer in layers)
    assert wide["flops_per_impression"] - small["flops_per_impression"] == 2 * saved
    inputs = module.student.inputs(batch)
    rows = {key: {0: torch.export.Dim("rows")} for key in inputs}
    served = with_named_inputs(module.serving_module(), inputs)
    program = torch.export.export(served, (), dict(inputs), dynamic_shapes=rows).module()
    torch.testing.assert_close(program(**inputs)["click"], scores(module, batch))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("grows", [False, True])
def test_a_fit_that_goes_on_from_a_checkpoint_ends_in_the_same_weights(
    feed: ParquetSource, tmp_path: Path, grows: bool
) -> None:
    def parts() -> tuple[StudentModule, DistillationDataModule, IdeaPrune | GrowPrune]:
        module = student_module(feed, dropout=0.0)
        return module, data_of(feed, module, seed=3), GrowPrune() if grows else IdeaPrune(enlarge=3.0, cuts=4)

    module, data, pruning = parts()
    fit(module, data, pruning)
    whole = module.state_dict()

    module, data, pruning = parts()
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(module, data, pruning, keep, enable_checkpointing=True, max_steps=17)
    for step in (3, 9, 17):  # before the first change of width, between two, and after most
        module, data, pruning = parts()
        torch.manual_seed(99)  # another process has drawn other numbers; what is drawn follows the checkpoint
        fit(module, data, pruning, checkpoint=tmp_path / f"step={step}.ckpt")
        for name, value in module.state_dict().items():
            assert torch.equal(value, whole[name]), (step, name)


def test_narrow_phases_between_wide_ones(feed: ParquetSource) -> None:
    module = student_module(feed)
    pruning = GrowPrune(keep=0.4, narrow=0.5, cycles=2)
    diary = Diary(pruning)
    fit(module, data_of(feed, module), pruning, diary)
    small = {"student.dense.0": 4, "main.body.0": 2}
    # 24 batches: wide 4, narrow 6, wide 4, narrow 6, wide 4
    assert diary.live == [START] * 3 + [small] * 6 + [START] * 4 + [small] * 6 + [START] * 5
    assert widths(module) == START
    for layer in hidden_layers(module).values():
        assert layer.after.weight.abs().sum(0).amin() > 0  # those that came back have learnt
        assert layer.before.weight.abs().sum(1).amin() > 0


@pytest.mark.parametrize(
    ("final", "ends"),
    [
        (0.3, {"student.dense.0": 3, "main.body.0": 2}),
        ({"main.body.0": 1}, {"student.dense.0": 8, "main.body.0": 1}),
    ],
)
def test_a_student_may_end_smaller_than_it_was_built(feed: ParquetSource, final: Any, ends: dict[str, int]) -> None:
    module = student_module(feed)
    pruning = IdeaPrune(final=final, begin=0.5, end=0.5, cuts=1)
    diary = Diary(pruning)
    trainer = fit(module, data_of(feed, module), pruning, diary)
    assert diary.live == [START] * 11 + [ends] * 13
    assert widths(module) == ends
    module.eval()
    torch.testing.assert_close(scores(module, data_rows(module, trainer)), diary.logits, rtol=0, atol=1e-6)
    assert pruning.recovering


def test_the_neurons_that_matter_least_go_first(feed: ParquetSource) -> None:
    module = student_module(feed, Optimisation(lr=1e-9))
    layer = hidden_layers(module)["student.dense.0"]
    with torch.no_grad():
        layer.after.weight[:, [1, 4, 6]] *= 1e-6
    pruning = IdeaPrune(final={"student.dense.0": 5}, begin=0.2, end=0.2, cuts=1)
    fit(module, data_of(feed, module), pruning)
    assert (~pruning.live["student.dense.0"]).nonzero()[:, 0].tolist() == [1, 4, 6]


def test_importance_is_the_mean_over_rows_of_activation_times_gradient(feed: ParquetSource) -> None:
    module = student_module(feed, Optimisation(lr=1e-9))
    data = data_of(feed, module)
    batches = list(data.training_batches())
    wanted = torch.zeros(8)
    for batch in batches[:6]:
        found = {}
        hook = hidden_layers(module)["student.dense.0"].after.register_forward_pre_hook(
            lambda linear, args, found=found: (args[0].retain_grad(), found.update(h=args[0]))[0]
        )
        losses = torch.nn.functional.binary_cross_entropy_with_logits(module(batch)["click"], batch.labels["click"])
        losses.backward()
        hook.remove()
        wanted += (found["h"].detach() * found["h"].grad).abs().sum(0)
    order = wanted.argsort()
    pruning = IdeaPrune(final={"student.dense.0": 4}, begin=0.25, end=0.25, cuts=1)
    module = student_module(feed, Optimisation(lr=1e-9))
    fit(module, data_of(feed, module), pruning)
    assert (~pruning.live["student.dense.0"]).nonzero()[:, 0].tolist() == sorted(order[:4].tolist())


def test_the_rate_is_one_half_cosine(feed: ParquetSource) -> None:
    module = student_module(feed, OneCosine(lr=1e-2, warmup_steps=3))
    pruning = IdeaPrune(enlarge=2.0, cuts=2)
    diary = Diary(pruning)
    fit(module, data_of(feed, module), pruning, diary)
    wanted = [1e-2 * min(1, (step + 1) / 3) * (1 + math.cos(math.pi * step / 24)) / 2 for step in range(1, 25)]
    assert diary.rates == pytest.approx(wanted)
    with pytest.raises(ValueError, match="decay must be true: a cosine is a decay"):
        OneCosine(decay=False)


class Restarted(Optimisation):
    """A rate that starts again in the midst of training."""

    def configure(self, module: Any, total_steps: int, kept: Any = ()) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_a_second_warm_up_is_told_once(feed: ParquetSource, caplog: pytest.LogCaptureFixture) -> None:
    module = student_module(feed, Restarted(lr=1e-2))
    with caplog.at_level("WARNING", logger="recdistill_prune"):
        fit(module, data_of(feed, module), IdeaPrune(enlarge=2.0, cuts=2))
    assert [record.getMessage() for record in caplog.records] == [
        "IdeaPrune: the learning rate rises from 0.000302 to 0.01 at batch 9, after the first cut; use one schedule "
        "without a second warm-up, such as recdistill_prune.OneCosine"
    ]


def test_a_training_that_ends_early_is_told(feed: ParquetSource, caplog: pytest.LogCaptureFixture) -> None:
    module = student_module(feed)
    pruning = IdeaPrune(enlarge=2.0, cuts=3)
    with caplog.at_level("WARNING", logger="recdistill_prune"):
        fit(module, data_of(feed, module), pruning, max_steps=8)
    assert [record.getMessage() for record in caplog.records] == [
        "IdeaPrune: training ended after batch 8, the last change of width is due after batch 14; the student keeps "
        "its erased neurons"
    ]
    assert widths(module) == {name: 2 * width for name, width in START.items()}
    fit(module, data_of(feed, module), pruning)  # anew: the enlarged student is not enlarged again
    assert widths(module) == START
    with pytest.raises(UsageError, match="this IdeaPrune has done its work in an earlier fit") as caught:
        fit(module, data_of(feed, module), pruning)
    assert "make a new one for every fit" in str(caught.value)


def test_distillation_may_wait_for_recovery(feed: ParquetSource) -> None:
    torch.manual_seed(5)
    student = make(installed(), "student", STUDENT, BuildContext(feed.schema, ("click",)))
    pruning = IdeaPrune(enlarge=2.0, cuts=3)
    strategy = InRecovery(make(installed(), "strategy", "rec_distill"), pruning)
    module = StudentModule(student, {"click": Objective("click", strategy, make(installed(), "loss", "soft_ce"))})
    heard: list[set[str]] = []

    class Ear(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
            heard.append({name for name in trainer.callback_metrics if name.startswith("train/")})

    before = module.auxiliary["auxiliary"].out.weight.clone()
    fit(module, data_of(feed, module), pruning, Ear())
    last = max(pruning.plan)
    assert heard[:last] == [{"train/click/main/hard"}] * last
    assert len(heard) > last
    assert all("train/click/auxiliary/soft" in names for names in heard[last:])
    assert not torch.equal(module.auxiliary["auxiliary"].out.weight, before)


class Batches(L.LightningModule):
    """Not a student's module."""


REFUSED = [
    (
        lambda: IdeaPrune(final={"student.dense.0": 9}),
        "final width 9 of student.dense.0 does not lie in [1, 8]\n  where: IdeaPrune\n  to do: pruning starts from "
        "student.dense.0: 8, main.body.0: 4; build a wider student, or give enlarge",
    ),
    (
        lambda: IdeaPrune(final={"student.dense.1": 2}),
        "the student has no hidden layer 'student.dense.1' (did you mean 'student.dense.0'?)\n  where: IdeaPrune\n"
        "  to do: it has student.dense.0: 8, main.body.0: 4",
    ),
    (
        lambda: IdeaPrune(final=0.5, cuts=10, begin=0.5),
        "10 cuts do not fit in a training of 24 batches, between batch 12 and 14\n  where: IdeaPrune\n"
        "  to do: train longer, in smaller batches, or with fewer cuts",
    ),
    (
        lambda: GrowPrune(cycles=13),
        "13 narrow phases and 14 wide ones do not fit in 24 batches\n  where: GrowPrune\n"
        "  to do: train longer, in smaller batches, or with fewer cycles",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_cannot_be_pruned_is_refused_before_the_first_step(feed: ParquetSource, build: Any, message: str) -> None:
    module = student_module(feed)
    with pytest.raises(UsageError) as caught:
        fit(module, data_of(feed, module), build())
    assert str(caught.value) == message
    assert module.global_step == 0


def test_only_a_whole_student_is_pruned(feed: ParquetSource, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        GrowPrune().setup(L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), Batches(), "fit")
    assert str(caught.value) == (
        "GrowPrune needs a StudentModule, got Batches\n  to do: wrap the student in recdistill_lightning.StudentModule"
    )
    module = student_module(feed)
    cut = make(installed(), "trainer", {"name": "grow_prune", "accelerator": "cpu", "strategy": "fsdp2"})
    with pytest.raises(UsageError) as caught:
        cut.fit(module, data_of(feed, module), epochs=2, callbacks=[], out=tmp_path, title="student")
    assert str(caught.value) == (
        "GrowPrune cannot prune a model that is cut over processes\n  where: lightning.Trainer(strategy=...)\n"
        "  to do: train a student with strategy 'auto' or 'ddp'; it is small enough"
    )


class Bare(L.LightningDataModule):
    """The training batches alone, of which nobody knows how often they are read."""

    test_rows = None
    epochs = -1

    def __init__(self, data: DistillationDataModule) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(list(self.data.training_batches()), batch_size=None)  # type: ignore[arg-type]  # a list will do

    def val_dataloader(self) -> Any:
        return []


def test_the_length_of_a_training_with_another_data_module_is_the_trainers(feed: ParquetSource) -> None:
    module = student_module(feed, Optimisation())
    bare: Any = Bare(data_of(feed, module))
    with pytest.raises(UsageError) as caught:
        fit(module, bare, GrowPrune())
    assert str(caught.value) == (
        "the length of the training is not known, and with it the places where widths change\n"
        "  where: lightning.Trainer\n  to do: give max_epochs or max_steps"
    )
    pruning = GrowPrune(cycles=1)
    fit(module, bare, pruning, max_epochs=4, accumulate_grad_batches=2)
    assert list(pruning.plan) == [12, 36]  # 4 passes of 12 batches: a quarter wide, half narrow, a quarter wide


@pytest.mark.parametrize(
    "settings",
    [{"name": "idea_prune", "enlarge": 3.0, "begin": 0.2, "cuts": 2}, {"name": "grow_prune", "cycles": 1}],
    ids=["idea_prune", "grow_prune"],
)
def test_a_run_whose_trainer_prunes(feed_path: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Students are pruned, the teacher is not, and what comes after training meets the student as it is configured."""
    student = {"name": "mlp", "embedding": 4, "hidden": [8, 6], "tower": 4, "recent": 3}
    changes = {"students": [student], "seeds": [1], "exporters": ["torch_export"]}
    run_of(tmp_path / "run", config(feed_path, trainer={"accelerator": "cpu", **settings}, **changes)).all()
    run_of(tmp_path / "plain", config(feed_path, **changes)).all()
    found, plain = (json.loads((tmp_path / out / "metrics.json").read_text()) for out in ("run", "plain"))
    assert found["students"]["mlp"]["cost"] == plain["students"]["mlp"]["cost"]
    assert found["students"]["mlp"]["raw"]["auc"] != plain["students"]["mlp"]["raw"]["auc"]
    assert found["teacher"] == plain["teacher"]
    for out in ("mlp-raw", "mlp-distilled"):
        weights = load_weights(tmp_path / "run" / "seed-1" / out / "serving.safetensors")
        assert weights["student.dense.0.weight"].shape[0] == 8
        assert weights["main.body.0.weight"].shape == (4, 6)
