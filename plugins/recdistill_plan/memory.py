"""Memory of a training step on one GPU under a strategy: the highest of the moments of a step.

The step is Lightning's: the gradients of the step before live until the forward pass is over; AdamW has two states
per parameter. DDP adds buckets as large as all gradients. FSDP2 shards weights, gradients and states, gathers one layer
and the next, and holds what belongs to no layer (embedding tables and head) whole from the forward pass on. What an
allocator holds beyond its tensors is not counted.
"""

from __future__ import annotations

from typing import NamedTuple

from recdistill_plan.activations import Layer, casts, layer, outside, scoring
from recdistill_plan.parameters import count
from recdistill_plan.sizes import Depth, Model, Workload, depths, widths


class Memory(NamedTuple):
    """Bytes on one GPU at the fullest moment of a step.

    Attributes:
        moment: which one it is.
        weights, optimiser: as this GPU holds them between steps. gradients: those that there are then.
        gathered: what it holds for others for a while: gathered weights, buckets, casts of weights.
        activations: what autograd keeps, and the batch. workspace: what the layer at work needs besides.
    """

    moment: str
    weights: float
    optimiser: float
    gradients: float
    gathered: float
    activations: float
    workspace: float

    @property
    def peak(self) -> float:
        """All of it."""
        return sum(self[1:])


def estimate(model: Model, work: Workload, strategy: str, checkpointing: str, gpus: int) -> Memory:
    """The memory of a training step.

    Args:
        model: the teacher. work: the batch of one GPU.
        strategy: one of ``STRATEGIES``. checkpointing: one of ``CHECKPOINTING``. gpus: how many share the work.
    """
    return max(moments(model, work, strategy, checkpointing, gpus), key=lambda memory: memory.peak)


def moments(model: Model, work: Workload, strategy: str, checkpointing: str, gpus: int) -> list[Memory]:
    """The moments of a step that may be its fullest one; arguments as for :func:`estimate`."""
    parameters, state = count(model), widths(work).state
    sharded = strategy == "fsdp2" and gpus > 1
    shards = gpus if sharded else 1
    weights = state * parameters.total / shards
    cast, layer_width = casts(model, work, checkpointing, sharded=sharded), widths(work).weight
    gathered = cast
    if sharded:
        gathered += state * (parameters.head + parameters.tables) + 2 * layer_width * parameters.layer
    elif gpus > 1:
        gathered += weights
    stages = [(depth, layer(model, work, depth, checkpointing)) for depth in depths(model, work.length, work.rows)]
    beside = outside(model, work)
    everything = beside + sum(depth.layers * cost.kept for depth, cost in stages)

    def moment(name: str, gradients: float, activations: float, passing: float, extra: float = 0.0) -> Memory:
        return Memory(name, weights, 2 * weights, gradients, gathered + extra, activations, passing)

    found = [moment("end of the forward pass", weights, everything + scoring(model, work), 0.0)]
    above, finished = 0.0, state * parameters.head
    for depth, cost in reversed(stages):
        found.append(moment("forward pass", weights, everything - above - _unsaved(cost), cost.forward))
        backward = moment(
            "backward pass",
            finished / shards,
            everything - above,
            cost.again + cost.backward,
            extra=state * (parameters.layer + parameters.head) if sharded else 0.0,
        )
        found.append(backward)
        above += depth.layers * cost.kept
        finished += depth.layers * state * parameters.layer
    ends = beside + _embedded(model, work, stages[0][0])
    whole = state * (parameters.head + parameters.tables) if sharded else 0.0
    found.append(moment("end of the backward pass", weights, ends, 0.0, whole - cast))
    return found


def _unsaved(cost: Layer) -> float:
    """Of what a layer keeps, the part that is not there yet while its attention is computed: about a quarter."""
    return 0.25 * cost.kept if not cost.again else 0.0


def _embedded(model: Model, work: Workload, first: Depth) -> float:
    """Gradient of the embedded tokens."""
    return float(work.histories * (first.length + work.rows) * model.config.width * widths(work).outer)
