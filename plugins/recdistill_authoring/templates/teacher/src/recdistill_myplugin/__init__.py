"""Registers the teacher ``my-plugin``; torch is imported in ``build`` and not before."""

from __future__ import annotations

from dataclasses import dataclass

import recdistill_core as rd


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.teacher.MyPluginTeacher`.

    Attributes:
        embedding: width of each embedding, >= 1.
        hidden: width of the dense layer, >= 1.
        recent: newest events of a row that are averaged, >= 1.
    """

    embedding: int = 16
    hidden: int = 64
    recent: int = 50

    def __post_init__(self) -> None:
        if min(self.embedding, self.hidden, self.recent) < 1:
            found = f"embedding {self.embedding}, hidden {self.hidden}, recent {self.recent}"
            raise ValueError(f"embedding, hidden and recent must be >= 1, got {found}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> rd.Teacher:
    """The teacher :class:`recdistill_myplugin.teacher.MyPluginTeacher`."""
    from recdistill_myplugin.teacher import MyPluginTeacher

    return MyPluginTeacher(config, context.require_schema(), context.tasks)


@rd.hookimpl
def recdistill_teachers() -> list[rd.Component]:
    """The teacher ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Mean of the newest events and the row's features, under dense layers",
            example={"embedding": 4, "hidden": 8, "recent": 3},
            needs=frozenset({"history"}),
            api_version=1,
        )
    ]
