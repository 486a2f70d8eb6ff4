"""Teachers whose fingerprint does not name what they say. This module is also the plugin of one of them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from model_cases import GoodTeacher
from torch import Tensor
from wrong import Wrong, wrong

import recdistill_core as rd
from recdistill_core.fingerprint import digest, module_fingerprint


@dataclass(frozen=True)
class Temperature:
    """``temperature`` by which logits are divided."""

    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")


class Cooled(GoodTeacher):
    """Divides by a temperature."""

    def logits(self, batch: rd.Batch) -> dict[str, Tensor]:
        return {task: logit / self.config.temperature for task, logit in super().logits(batch).items()}


class NewEachTime(Cooled):
    """Has a new fingerprint at each call."""

    def fingerprint(self) -> str:
        return uuid.uuid4().hex


class NewEachBuild(Cooled):
    """Has the fingerprint of the object."""

    def __init__(self, config: Any, context: rd.BuildContext) -> None:
        super().__init__(config, context)
        self.id = uuid.uuid4().hex

    def fingerprint(self) -> str:
        return self.id


class Named(Cooled):
    """Has a name."""

    def fingerprint(self) -> str:
        return "teacher-v1"


class ByMode(Cooled):
    """Includes whether it is training."""

    def fingerprint(self) -> str:
        return digest([super().fingerprint(), self.training])


class PythonHash(Cooled):
    """Hashes names with hash(), which differs between processes."""

    def fingerprint(self) -> str:
        salt = sum(hash(name) for name in self.state_dict())
        return module_fingerprint(self, self.config, f"{self.view}:{salt}")


class ShapesOnly(Cooled):
    """Hashes the shapes of the weights."""

    def fingerprint(self) -> str:
        shapes = {name: list(value.shape) for name, value in self.state_dict().items()}
        return digest([shapes, self.config.temperature, self.view])


class HeadOnly(Cooled):
    """Hashes the weights of the head."""

    def fingerprint(self) -> str:
        return module_fingerprint(self.head, self.config, self.view)


class WithoutConfig(Cooled):
    """Hashes the weights and the view."""

    def fingerprint(self) -> str:
        return module_fingerprint(self, None, self.view)


class WithoutTasks(Cooled):
    """Hashes weights, settings and features."""

    def fingerprint(self) -> str:
        return module_fingerprint(self, self.config, self.view.partition(":")[0])


class WithoutView(Cooled):
    """Hashes weights, settings and tasks."""

    def fingerprint(self) -> str:
        return module_fingerprint(self, self.config, ",".join(self.tasks))


def fails(check: str, made: type[GoodTeacher], fault: str, module: str = "") -> Wrong:
    return wrong(check, "teacher", made, fault, config=Temperature, module=module)


DIGEST = "fingerprint_is_a_repeatable_digest"
EVERYWHERE = "fingerprint_is_the_same_in_every_process"
SETTINGS = "fingerprint_follows_settings"

WRONG = [
    fails(DIGEST, Named, "has the fingerprint 'teacher-v1'"),
    fails(DIGEST, NewEachTime, "has a new fingerprint at each call"),
    fails(DIGEST, ByMode, "has another fingerprint in eval mode"),
    fails(DIGEST, NewEachBuild, "has two fingerprints for two equal builds"),
    fails(EVERYWHERE, PythonHash, "no hash() of strings", module="wrong_fingerprints"),
    fails(EVERYWHERE, Cooled, "comes from no entry point"),
    fails(EVERYWHERE, Cooled, "cannot be built from its entry point in another process", module="no_such_module"),
    fails("fingerprint_follows_weights", ShapesOnly, "keeps its fingerprint when these weights change: features"),
    fails("fingerprint_follows_weights", HeadOnly, "keeps its fingerprint when these weights change: features"),
    fails(SETTINGS, WithoutConfig, "has one fingerprint for temperature = 2.0 and for 1.0"),
    fails(SETTINGS, WithoutTasks, "has one fingerprint for the tasks click, like and like, click"),
    fails("fingerprint_follows_the_feature_view", WithoutView, "has one fingerprint for two schemas"),
]


@rd.hookimpl
def recdistill_teachers() -> list[rd.Component]:
    """The one whose fingerprint differs between processes."""
    return [entry.entry.component for entry in WRONG if entry.entry.plugin.module == "wrong_fingerprints"]
