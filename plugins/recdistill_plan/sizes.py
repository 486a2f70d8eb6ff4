"""What is planned: a teacher for a schema, and the batches that it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from recdistill_core.errors import suggest
from recdistill_core.schema import Schema
from recdistill_hstu import HSTUConfig

#: Lightning's names: weights and states in float32; activations in bfloat16 besides; all of it in bfloat16.
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
STRATEGIES = ("ddp", "fsdp2")
CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True)
class Model:
    """A teacher that need not fit anywhere.

    Attributes:
        config: its settings. schema: of its dataset. tasks: one logit each.
    """

    config: HSTUConfig
    schema: Schema
    tasks: tuple[str, ...]

    @property
    def truncate_layers(self) -> int:
        """How many of the last layers compute the newest events only (``N2`` of ULTRA-HSTU)."""
        return int(getattr(self.config, "truncate_layers", 0))

    @property
    def truncate_length(self) -> int:
        """How many of the newest events those layers compute (``L'``)."""
        return int(getattr(self.config, "truncate_length", 0))

    def head_features(self) -> list[str]:
        """Vocabularies of the categorical features that the head reads, in order."""
        return [entry.vocabulary for entry in self.schema.categorical if entry.name not in self.config.leave_out]

    def head_width(self) -> int:
        """Width of the head's first input: features, numbers, candidate token and user state."""
        config = self.config
        return len(self.head_features()) * config.context_width + len(self.schema.numeric) + 2 * config.width

    def narrow_crosses(self) -> bool:
        """Whether cross layers have a low rank."""
        return 0 < self.config.cross_rank < self.head_width()


@dataclass(frozen=True)
class Workload:
    """One training batch of one GPU.

    Every history has ``length`` events and the newest ``rows`` of its prefixes are each the history of one row: so a
    history is encoded once for ``rows`` examples.

    Attributes:
        histories: >= 1. length: events of each, >= 1. rows: examples of each, >= 1.
        precision: one of ``PRECISIONS``. on_cpu: whether the steps run on a CPU, whose autocast differs.
    """

    histories: int
    length: int
    rows: int
    precision: str = "32-true"
    on_cpu: bool = False

    def __post_init__(self) -> None:
        for name in ("histories", "length", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}"
                f"{suggest(self.precision, PRECISIONS)}"
            )

    @property
    def examples(self) -> int:
        """Rows of the batch, ``N``."""
        return self.histories * self.rows

    def ends(self, length: int) -> list[int]:
        """How many events each row of one history sees, of ``length`` that are there."""
        return [max(0, length - back) for back in range(self.rows)]


class Depth(NamedTuple):
    """``layers`` equal layers over ``length`` events of each history; ``last`` is the one that the head reads."""

    layers: int
    length: int
    last: bool


def depths(model: Model, length: int) -> Iterator[Depth]:
    """The layers of ``model`` for histories of ``length`` events, from the first to the last."""
    config, cut = model.config, min(model.truncate_layers, model.config.layers)
    short = min(length, model.truncate_length) if cut and model.truncate_length else length
    whole = config.layers - cut if cut else config.layers - 1
    if whole:
        yield Depth(whole, length, last=False)
    if cut > 1:
        yield Depth(cut - 1, short, last=False)
    yield Depth(1, short if cut else length, last=True)
