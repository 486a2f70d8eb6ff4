"""The trainers ``idea_prune`` and ``grow_prune``: ``lightning`` with a callback where a student is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recdistill_lightning.modules import StudentModule
from recdistill_lightning.trainer import LightningTrainer
from recdistill_prune import GrowPruneConfig, IdeaPruneConfig
from recdistill_prune.callbacks import GrowPrune, IdeaPrune
from recdistill_prune.schedule import OneCosine


class IdeaPruneTrainer:
    """Students start with ``enlarge`` times their hidden neurons and end as they were built; others train as ever."""

    def __init__(self, config: IdeaPruneConfig) -> None:
        self.config, self.inner = config, LightningTrainer(config)

    def fit(self, module: Any, data: Any, *, epochs: int, callbacks: Sequence[Any], out: Path, title: str) -> None:
        """See :meth:`recdistill_core.interfaces.Trainer.fit`."""
        config, added = self.config, []
        if isinstance(module, StudentModule):
            added = [IdeaPrune(enlarge=config.enlarge, begin=config.begin, end=config.end, cuts=config.cuts)]
            if config.cosine:
                module.optimisation = OneCosine(**{**asdict(module.optimisation), "decay": True})
        self.inner.fit(module, data, epochs=epochs, callbacks=[*callbacks, *added], out=out, title=title)


class GrowPruneTrainer:
    """Students train in wide and narrow phases and end at full size; others train as ever."""

    def __init__(self, config: GrowPruneConfig) -> None:
        self.config, self.inner = config, LightningTrainer(config)

    def fit(self, module: Any, data: Any, *, epochs: int, callbacks: Sequence[Any], out: Path, title: str) -> None:
        """See :meth:`recdistill_core.interfaces.Trainer.fit`."""
        config, added = self.config, []
        if isinstance(module, StudentModule):
            added = [GrowPrune(keep=config.keep, narrow=config.narrow, cycles=config.cycles)]
        self.inner.fit(module, data, epochs=epochs, callbacks=[*callbacks, *added], out=out, title=title)
