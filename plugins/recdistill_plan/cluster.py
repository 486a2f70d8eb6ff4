"""Accelerators and clusters of them: what a plan must know of the machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recdistill_core.config import fill_or_raise, load_yaml
from recdistill_core.errors import ConfigError, Problem, suggest

#: Names that stand for hardware which only the user knows.
UNNAMED = ("cpu", "custom")
GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        memory_gb: 10^9 bytes. tflops, fp32_tflops: 10^12 dense operations per second in bfloat16 and in float32.
        link_gbs: 10^9 bytes per second, in one direction, to the others of its node. network_gbs: to other nodes.
    """

    memory_gb: float
    tflops: float
    fp32_tflops: float
    link_gbs: float
    network_gbs: float


#: SXM cards in nodes of eight, dense rates (the sparse ones are twice as high). Memory, rates and NVLink (half of the
#: printed figure, which counts both directions) are of NVIDIA's data sheets: A100 (40 and 80 GB), H100, H200, and HGX
#: B200 (1,000 W), with the 1,440 GB of eight cards in the DGX B200 user guide. Between nodes each card has one adapter
#: of its node: 200 Gb/s in a DGX A100, 400 Gb/s in DGX H100, H200 and B200 (their user guides).
CARDS: Mapping[str, Card] = {
    "a100-40": Card(40, 312, 19.5, 300, 25),
    "a100-80": Card(80, 312, 19.5, 300, 25),
    "h100": Card(80, 989, 67, 450, 50),
    "h200": Card(141, 989, 67, 450, 50),
    "b200": Card(180, 2250, 80, 900, 50),
}


@dataclass(frozen=True)
class Cluster:
    """Equal accelerators in equal nodes.

    Attributes:
        gpu: a name of ``CARDS``, or ``cpu`` or ``custom``, for which memory, rate and links must be given.
        gpus: how many there are, >= 1.
        gpus_per_node: how many of them share the fast link, >= 1.
        memory_gb: 10^9 bytes of one, > 0. None, here and below: as ``CARDS`` has it.
        tflops: dense 10^12 operations per second of one at the planned precision, > 0.
        link_gbs: 10^9 bytes per second, one direction, inside a node, > 0. network_gbs: between nodes; default: as
            inside.
        usable: share of the memory that a plan may fill, in (0, 1]; the rest is for the driver's context, buffers of
            the communication library and fragmentation.
    """

    gpu: str = "h100"
    gpus: int = 8
    gpus_per_node: int = 8
    memory_gb: float | None = None
    tflops: float | None = None
    link_gbs: float | None = None
    network_gbs: float | None = None
    usable: float = 0.9

    def __post_init__(self) -> None:
        if self.gpu not in (*CARDS, *UNNAMED):
            known = (*CARDS, *UNNAMED)
            sizes = " or ".join(repr(name) for name in CARDS if name.startswith(f"{self.gpu}-"))
            near = f" (did you mean {sizes}?)" if sizes else suggest(self.gpu, known)
            raise ValueError(f"gpu must be one of {', '.join(known)}; got {self.gpu!r}{near}")
        for name in ("gpus", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("memory_gb", "tflops", "link_gbs", "network_gbs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a number above 0, got {value}")
        if not 0.0 < self.usable <= 1.0:
            raise ValueError(f"usable must lie in (0, 1], got {self.usable}")
        missing = [name for name in ("memory_gb", "tflops", "link_gbs") if getattr(self, name) is None]
        if self.gpu in UNNAMED and missing:
            raise ValueError(f"gpu {self.gpu!r} says nothing of itself: give {', '.join(missing)}")

    @property
    def memory(self) -> float:
        """Bytes of one accelerator that a plan may fill."""
        gigabytes = self.memory_gb if self.memory_gb is not None else CARDS[self.gpu].memory_gb
        return gigabytes * GIGA * self.usable

    def rate(self, precision: str) -> float:
        """Dense operations per second of one; ``precision`` is one of :data:`recdistill_plan.sizes.PRECISIONS`."""
        if self.tflops is not None:
            return self.tflops * TERA
        card = CARDS[self.gpu]
        return (card.fp32_tflops if precision == "32-true" else card.tflops) * TERA

    def bandwidth(self, gpus: int) -> float:
        """Bytes per second that each of ``gpus`` sends at the narrowest place between them."""
        card = CARDS.get(self.gpu)
        link = self.link_gbs if self.link_gbs is not None else card.link_gbs if card else 0.0
        network = self.network_gbs if self.network_gbs is not None else card.network_gbs if card else link
        if self.link_gbs is not None and self.network_gbs is None:
            network = min(network, link)
        return (link if gpus <= self.gpus_per_node else network) * GIGA


def cluster_of(path: Path | None, options: Mapping[str, Any]) -> Cluster:
    """The cluster of a YAML file, if any, changed by those ``options`` that are not None.

    Raises:
        ConfigError: for a key that no cluster has, or a value that no cluster can have. UsageError: for a bad file.
    """
    given = {key: value for key, value in options.items() if value is not None}
    settings = {**(load_yaml(path) if path is not None else {}), **given}
    try:
        return fill_or_raise(Cluster, settings)
    except ConfigError as error:
        place = str(path) if path is not None else "--gpu and the other options of the cluster"
        named = [f"{place}: {entry.path}" if entry.path else place for entry in error.problems]
        problems = [Problem(name, entry.message) for name, entry in zip(named, error.problems, strict=True)]
        raise ConfigError(problems) from None  # the same faults, told once
