"""One hook per kind of component, and one for commands. A plugin implements those it has something for.

Every hook returns a list of records; nothing heavy is imported until a component is built. A complete plugin::

    # recdistill_hinge/__init__.py, with the entry point  [project.entry-points.recdistill]  hinge = "recdistill_hinge"
    from dataclasses import dataclass
    import recdistill_core as rd

    @dataclass(frozen=True)
    class HingeConfig:
        margin: float = 1.0

    def build(config, context):
        from recdistill_hinge.loss import Hinge
        return Hinge(config.margin)

    @rd.hookimpl
    def recdistill_losses():
        return [rd.Component("hinge", HingeConfig, build, "Squared hinge on the teacher's sign", api_version=1)]
"""

from __future__ import annotations

import pluggy

from recdistill_core.component import Command, Component

PROJECT = "recdistill"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

#: kind of component -> name of the hook that registers it.
HOOKS = {
    "teacher": "recdistill_teachers",
    "student": "recdistill_students",
    "loss": "recdistill_losses",
    "debiaser": "recdistill_debiasers",
    "strategy": "recdistill_strategies",
    "metric": "recdistill_metrics",
    "store": "recdistill_stores",
    "source": "recdistill_sources",
    "importer": "recdistill_importers",
    "trainer": "recdistill_trainers",
    "exporter": "recdistill_exporters",
    "engine": "recdistill_engines",
    "sampler": "recdistill_samplers",
}
COMMAND_HOOK = "recdistill_commands"


@hookspec
def recdistill_teachers() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Teachers; ``build`` returns an :class:`recdistill_core.interfaces.Teacher`."""


@hookspec
def recdistill_students() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Students; ``build`` returns an :class:`recdistill_core.interfaces.Student`."""


@hookspec
def recdistill_losses() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Distillation losses; ``build`` returns an :class:`recdistill_core.interfaces.DistillationLoss`."""


@hookspec
def recdistill_debiasers() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Debiasers; ``build`` returns an :class:`recdistill_core.interfaces.Debiaser`."""


@hookspec
def recdistill_strategies() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Head strategies; ``build`` returns an :class:`recdistill_core.strategy.HeadStrategy`."""


@hookspec
def recdistill_metrics() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Metrics; ``build`` returns an :class:`recdistill_core.interfaces.Metric`."""


@hookspec
def recdistill_stores() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Logit stores; ``build`` returns an :class:`recdistill_core.labels.LogitStore`."""


@hookspec
def recdistill_sources() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Sample sources; ``build`` returns an :class:`recdistill_core.interfaces.SampleSource`."""


@hookspec
def recdistill_importers() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Importers; ``build`` returns an :class:`recdistill_core.interfaces.Importer`."""


@hookspec
def recdistill_trainers() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Trainers; ``build`` returns an :class:`recdistill_core.interfaces.Trainer`."""


@hookspec
def recdistill_exporters() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Exporters; ``build`` returns an :class:`recdistill_core.interfaces.Exporter`."""


@hookspec
def recdistill_engines() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Engines; ``build`` returns an :class:`recdistill_core.engine.Engine`."""


@hookspec
def recdistill_samplers() -> list[Component]:  # type: ignore[empty-body]  # a hook specification has no body
    """Samplers; ``build`` returns a :class:`recdistill_core.sampler.Sampler`."""


@hookspec
def recdistill_commands() -> list[Command]:  # type: ignore[empty-body]  # a hook specification has no body
    """Verbs for the ``recdistill`` command."""
