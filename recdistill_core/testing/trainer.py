"""Checks for trainers. They train a small student of the kit on data in memory, as a run trains its own."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recdistill_core.interfaces import Trainer
from recdistill_core.objective import Objective
from recdistill_core.testing.cases import Case, check, exercise
from recdistill_core.testing.compare import differences
from recdistill_core.testing.feed import MemorySource, SampleStudent

ROWS, BATCH, EPOCHS = 96, 16, 3


def job(case: Case, epochs: int = 1) -> tuple[Any, Any]:
    """A ``StudentModule`` and a ``DistillationDataModule`` of ``ROWS`` rows, always the same."""
    lightning = importlib.import_module("recdistill_lightning")
    torch.manual_seed(11)
    student = SampleStudent(case.schema, case.schema.tasks)
    module = lightning.StudentModule(student, {task: Objective(task) for task in case.schema.tasks})
    order = lightning.ReadOrder(batch_size=BATCH, window_hours=0.0)
    source = MemorySource(case.schema, ROWS)
    return module, lightning.DistillationDataModule(source, order, batch_epochs=epochs, history=module.history)


def fit(case: Case, made: Trainer, module: Any, data: Any, callbacks: Sequence[Any] = ()) -> Path:
    """Train under a fixed seed; the folder for logs."""
    out = case.folder / "out"
    torch.manual_seed(12)
    with _quiet():
        made.fit(module, data, epochs=data.epochs, callbacks=callbacks, out=out, title="the kit's student")
    return out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the hints that a framework gives on how to train faster, which are no faults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def weights(module: Any) -> dict[str, Tensor]:
    """Copies of the module's weights, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def watcher() -> Any:
    """A callback that notes what it is told: ``seen`` holds the names of hooks, ``rows`` the example ids by epoch."""
    base = importlib.import_module("lightning").Callback

    class Watcher(base):  # type: ignore[misc, valid-type]  # Lightning is imported when the check runs
        def __init__(self) -> None:
            self.seen: list[str] = []
            self.rows: list[list[int]] = []

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            self.seen.append("on_fit_start")

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.rows.append([])

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, place: int) -> None:
            self.seen.append("on_train_batch_end")
            self.rows[-1] += batch.example_id.tolist()

        def on_fit_end(self, trainer: Any, module: Any) -> None:
            self.seen.append("on_fit_end")

    return Watcher()


@exercise("trainer")
def run_trainer(case: Case, made: Trainer) -> Mapping[str, Any]:
    """One pass over the data."""
    module, data = job(case)
    fit(case, made, module, data)
    return weights(module)


@check("trainer")
def the_modules_own_parameters_move(case: Case) -> None:
    """After ``fit`` every parameter of the module itself, not of a copy, has moved, and is finite."""
    module, data = job(case)
    before = weights(module)
    fit(case, case.build(), module, data)
    after = weights(module)
    still = [name for name, _ in module.named_parameters() if torch.equal(before[name], after[name])]
    case.require(not still, f"leaves parameters as they were: {', '.join(still[:5])}; train the module in place")
    finite = all(bool(torch.isfinite(value).all()) for value in after.values())
    case.require(finite, "makes parameters NaN or infinite on a task that plain Adam learns")


@check("trainer")
def every_epoch_is_run(case: Case) -> None:
    """``fit`` makes ``epochs`` passes, and each reads every row of the data once."""
    module, data = job(case, EPOCHS)
    watch = watcher()
    fit(case, case.build(), module, data, [watch])
    case.require(len(watch.rows) == EPOCHS, f"makes {len(watch.rows)} passes; {EPOCHS} were asked for")
    wanted = sorted(data.source.column("example_id").tolist())
    for number, rows in enumerate(watch.rows):
        case.require(sorted(rows) == wanted, f"reads {len(rows)} rows in pass {number + 1}; the data has {len(wanted)}")


@check("trainer")
def callbacks_are_run(case: Case) -> None:
    """The callbacks that are given hear of the start, of every batch and of the end; capture lives by that."""
    module, data = job(case)
    watch = watcher()
    fit(case, case.build(), module, data, [watch])
    batches = -(-ROWS // BATCH)
    for hook, count in (("on_fit_start", 1), ("on_train_batch_end", batches), ("on_fit_end", 1)):
        found = watch.seen.count(hook)
        case.require(found == count, f"calls {hook} of a callback {found} times; {count} were due")


@check("trainer")
def it_writes_only_below_out(case: Case) -> None:
    """Nothing appears in the current folder or beside ``out``."""
    module, data = job(case)
    here, made = case.folder / "here", case.build()
    here.mkdir()
    before = {entry.name for entry in case.folder.iterdir()}
    with contextlib.chdir(here):
        fit(case, made, module, data)
    strays = sorted(entry.name for entry in here.rglob("*"))
    strays += sorted({entry.name for entry in case.folder.iterdir()} - before - {"out"})
    case.require(not strays, f"writes {', '.join(strays[:5])} outside the folder that it was given")


@check("trainer")
def one_seed_gives_one_set_of_weights(case: Case) -> None:
    """Two fits from equal weights under one seed end in equal weights, bit for bit."""
    found = []
    for name in ("first", "second"):
        module, data = job(case, EPOCHS)
        fit(case.again(name), case.build(), module, data)
        found.append(weights(module))
    changed = differences(*found)
    case.require(not changed, f"ends in other weights under one seed: {', '.join(changed[:5])}")


class _Stop(Exception):
    """What the kit's callback raises."""


@check("trainer")
def an_exception_reaches_the_caller(case: Case) -> None:
    """An exception in a training step comes out of ``fit``: a run that failed must not look finished."""
    module, data = job(case)
    watch = watcher()

    def stop(*arguments: Any) -> None:
        raise _Stop("raised by the kit in the first step")

    watch.on_train_batch_end = stop
    try:
        fit(case, case.build(), module, data, [watch])
    except Exception as error:
        chain: BaseException | None = error
        while chain is not None and not isinstance(chain, _Stop):
            chain = chain.__cause__ or chain.__context__
        case.require(chain is not None, f"raises {type(error).__name__} for a step that failed, without its cause")
    else:
        case.fail("swallows an exception of a training step")
