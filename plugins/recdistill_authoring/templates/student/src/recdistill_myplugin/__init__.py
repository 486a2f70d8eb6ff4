"""Registers the student ``my-plugin``; torch is imported in ``build`` and not before."""

from __future__ import annotations

from dataclasses import dataclass

import recdistill_core as rd


@dataclass(frozen=True)
class MyPluginConfig:
    """Settings of :class:`recdistill_myplugin.student.MyPluginStudent`.

    Attributes:
        embedding: width of each categorical feature's embedding, >= 1.
    """

    embedding: int = 8

    def __post_init__(self) -> None:
        if self.embedding < 1:
            raise ValueError(f"embedding must be >= 1, got {self.embedding}")


def build(config: MyPluginConfig, context: rd.BuildContext) -> rd.Student:
    """The student :class:`recdistill_myplugin.student.MyPluginStudent`."""
    from recdistill_myplugin.student import MyPluginStudent

    return MyPluginStudent(config, context.require_schema(), context.tasks)


@rd.hookimpl
def recdistill_students() -> list[rd.Component]:
    """The student ``my-plugin``."""
    return [
        rd.Component(
            "my-plugin",
            MyPluginConfig,
            build,
            "Embeddings and numeric features under linear towers",
            example={"embedding": 4},
            api_version=1,
        )
    ]
