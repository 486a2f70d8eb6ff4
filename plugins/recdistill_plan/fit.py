"""How many GPUs a step needs, how long it takes, and what would help where it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from recdistill_hstu.config import CHECKPOINTING
from recdistill_plan import flops
from recdistill_plan.cluster import Cluster
from recdistill_plan.memory import Memory, estimate
from recdistill_plan.parameters import count
from recdistill_plan.sizes import STRATEGIES, Model, Workload, widths

#: The largest cluster that is looked at.
MOST_GPUS = 1 << 16
DAY = 86_400


@dataclass(frozen=True)
class Way:
    """One way to train: a strategy with or without activation checkpointing, on the cluster as it is.

    Attributes:
        strategy, checkpointing: of ``STRATEGIES`` and of the teacher's ``CHECKPOINTING``.
        memory: of one GPU. fits: whether it fits there.
        fewest: GPUs from which on it fits; None: from no number on. alone: it fits on one GPU and, for the buckets that
            more of them need, not on two.
        compute, communication: seconds of a step that each takes; they overlap, so a step takes the longer of them.
        examples, tokens: per second, of the whole cluster; tokens are events of histories.
        days: for all the examples that were asked for.
    """

    strategy: str
    checkpointing: str
    memory: Memory
    fits: bool
    fewest: int | None
    alone: bool
    compute: float
    communication: float
    examples: float
    tokens: float
    days: float


def ways(model: Model, work: Workload, cluster: Cluster, *, mfu: float, examples: float) -> list[Way]:
    """Every strategy with every kind of checkpointing.

    Args:
        model: the teacher. work: the batch of one GPU. cluster: what there is.
        mfu: share of the peak rate that the step's operations reach, in (0, 1].
        examples: how many are to be trained on.
    """
    return [
        _way(model, work, cluster, strategy, checkpointing, mfu, examples)
        for strategy in STRATEGIES
        for checkpointing in CHECKPOINTING
    ]


def _way(
    model: Model, work: Workload, cluster: Cluster, strategy: str, checkpointing: str, mfu: float, examples: float
) -> Way:
    memory = estimate(model, work, strategy, checkpointing, cluster.gpus)
    once = flops.count(model, work).training + flops.recomputed(model, work, checkpointing)
    compute = work.histories * once / (mfu * cluster.rate(work.precision))
    talk = traffic(model, work, strategy, cluster.gpus) / cluster.bandwidth(cluster.gpus)
    step = max(compute, talk)
    rate = cluster.gpus * work.examples / step
    return Way(
        strategy,
        checkpointing,
        memory,
        memory.peak <= cluster.memory,
        *fewest(model, work, cluster, strategy, checkpointing),
        compute,
        talk,
        rate,
        cluster.gpus * work.histories * work.length / step,
        examples / rate / DAY,
    )


def traffic(model: Model, work: Workload, strategy: str, gpus: int) -> float:
    """Bytes that each GPU sends in a step, by the ring algorithms: gradients twice over under DDP; weights for the
    forward pass, layers' weights once more for the backward pass, and gradients under FSDP2, whose layers' weights
    travel in bfloat16 where the precision is mixed."""
    parameters, state, weight = count(model), widths(work).state, widths(work).weight
    share = (gpus - 1) / gpus
    if strategy == "ddp":
        return 2 * share * state * parameters.total
    outside = parameters.total - parameters.layers
    return share * (state * (parameters.total + outside) + 2 * weight * parameters.layers)


def fewest(
    model: Model, work: Workload, cluster: Cluster, strategy: str, checkpointing: str
) -> tuple[int | None, bool]:
    """``(fewest, alone)`` of a :class:`Way`. One GPU alone has no buckets and gathers nothing."""

    def fits(gpus: int) -> bool:
        return estimate(model, work, strategy, checkpointing, gpus).peak <= cluster.memory

    several = _first(fits, 2, MOST_GPUS)
    if fits(1):
        return (1, False) if several == 2 else (several, several is None)
    return several, False


def _first(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number in ``[low, high]`` for which ``fits``, true from some number on, or None."""
    if not fits(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def amount(size: float) -> str:
    """``12.3 GB`` (10^9 bytes), or below one of them ``45.6 MB``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def best(found: list[Way]) -> Way:
    """The fastest of those that fit, or the one with the lowest peak where none does."""
    fitting = [way for way in found if way.fits]
    return max(fitting, key=lambda way: way.examples) if fitting else min(found, key=lambda way: way.memory.peak)


def dominant(memory: Memory) -> str:
    """The largest part of a peak."""
    parts = memory._asdict()
    del parts["moment"]
    return max(parts, key=lambda name: float(parts[name]))


def remedies(model: Model, work: Workload, cluster: Cluster, way: Way) -> Iterator[str]:
    """What would lower the peak of ``way`` by a twentieth or more, each with the peak that it would lead to."""
    changed = {
        f"{work.histories // 2} instead of {work.histories} histories per GPU": (
            model,
            replace(work, histories=work.histories // 2) if work.histories > 1 else work,
        ),
        f"histories of {work.length // 2:,} instead of {work.length:,} events": (
            model,
            replace(work, length=work.length // 2) if work.length > 1 else work,
        ),
        "precision bf16-true": (model, replace(work, precision="bf16-true")),
        f"score_budget={model.config.score_budget // 4} of the teacher": (
            replace(model, config=replace(model.config, score_budget=max(1, model.config.score_budget // 4))),
            work,
        ),
    }
    for what, (other, batch) in changed.items():
        peak = estimate(other, batch, way.strategy, way.checkpointing, cluster.gpus).peak
        if peak < 0.95 * way.memory.peak:
            yield f"{what}: {amount(peak)}{' (fits)' if peak <= cluster.memory else ''}"
    saved = tables(model, work, way.strategy, cluster.gpus)
    if saved > 0.05 * way.memory.peak:
        yield (f"smaller or row-sharded embedding tables, which recdistill does not shard: they take {amount(saved)}")


def tables(model: Model, work: Workload, strategy: str, gpus: int) -> float:
    """Bytes on one GPU that the embedding tables take: weights, gradients and states, and the copy that is gathered."""
    whole = widths(work).state * count(model).tables
    if gpus == 1:
        return 4.0 * whole
    return (4 / gpus + 1) * whole if strategy == "fsdp2" else 5.0 * whole
