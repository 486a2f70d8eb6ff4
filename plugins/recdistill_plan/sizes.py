"""What is planned: a teacher for a schema, and the batches that it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from recdistill_core.errors import suggest
from recdistill_core.schema import Schema
from recdistill_hstu import HSTUConfig

#: Lightning's names: weights and states in float32; activations in bfloat16 besides; all of it in bfloat16.
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
STRATEGIES = ("ddp", "fsdp2")
FLOAT32 = 4


@dataclass(frozen=True)
class Model:
    """A teacher that need not fit anywhere.

    Attributes:
        config: its settings. schema: of its dataset. tasks: one logit each.
    """

    config: HSTUConfig
    schema: Schema
    tasks: tuple[str, ...]

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


class Bytes(NamedTuple):
    """Bytes of an element: ``state`` of a weight, its gradient or a state of the optimiser; ``weight`` of a layer's
    weight that FSDP2 has gathered; ``inner`` of what matrix products take and give; ``outer`` of the sum that runs from
    layer to layer; ``normal`` of what LayerNorm takes."""

    state: int
    weight: int
    inner: int
    outer: int
    normal: int


def widths(work: Workload) -> Bytes:
    """The element sizes of a precision. Autocast computes LayerNorm in float32, but for on a CPU."""
    if work.precision == "32-true":
        return Bytes(4, 4, 4, 4, 4)
    if work.precision == "bf16-true":
        return Bytes(2, 2, 2, 2, 2)
    return Bytes(4, 2, 2, 4, 2 if work.on_cpu else 4)


class Depth(NamedTuple):
    """Equal layers.

    Attributes:
        layers: how many, >= 1.
        length: events of each history that they attend to.
        newest: how many of the newest of these they compute, besides the rows.
        chosen: whether they pick the tokens that they compute from all, since the next layer reads no others.
    """

    layers: int
    length: int
    newest: int
    chosen: bool

    @classmethod
    def of_all(cls, layers: int, length: int) -> Depth:
        """Layers that compute every token."""
        return cls(layers, length, length, chosen=False)


def depths(model: Model, length: int, rows: int) -> list[Depth]:
    """The layers of ``model`` for histories of ``length`` events and ``rows`` examples of each, first to last.

    A truncated layer sees at most ``truncate_length`` events of a row and more than half of them, from where its window
    starts (:func:`recdistill_hstu.steps.truncation`). Here it sees the most, and all rows of a history share a window.
    """
    config = model.config
    if not config.truncate_layers:
        found = [Depth.of_all(config.layers - 1, length), Depth(1, length, min(rows, length), chosen=True)]
    else:
        short = min(length, config.truncate_length)
        found = [
            Depth.of_all(config.layers - config.truncate_layers - 1, length),
            Depth(1, length, short, chosen=True),
            Depth.of_all(config.truncate_layers - 1, short),
            Depth(1, short, min(rows, short), chosen=True),
        ]
    return [depth for depth in found if depth.layers]
