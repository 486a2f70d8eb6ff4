"""Histories that are encoded once and scored against many candidates (M-FALCON, arXiv 2402.17152, section 3.4).

A layer of a candidate needs the keys and values of the events before it and nothing else of them, so these are kept.
New events need them too, so a history grows without being encoded again, until the window that the teacher sees of it
moves on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from recdistill_hstu.attention import Attend, prepare
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layer import HSTULayer, normalise
from recdistill_hstu.layout import Layout, Span, ranges

#: Entries of each weight that :func:`weights_of` looks at, or nearly twice as many.
SAMPLE = 16
#: Attribute of a weight that :func:`weights_of` has seen: the optimiser's steps since then.
STEPS = "_hstu_steps"


@dataclass(frozen=True)
class Encoded:
    """Events of ``U`` histories in some of the layers.

    Attributes:
        start: ``[U]`` int64 place of the first event, the oldest ones aside, among those that the layers are given.
        offsets: ``[U + 1]`` int64. time: ``[E]`` int64 ms UTC.
        keys, values: of each layer, ``[E, H, d]``.
        inputs: ``[E, D]`` what the first of the layers is given; ``[E, 0]`` where nobody will ask for it.
    """

    start: Tensor
    offsets: Tensor
    time: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    inputs: Tensor

    @property
    def lengths(self) -> Tensor:
        """``[U]`` int64."""
        return self.offsets[1:] - self.offsets[:-1]

    @classmethod
    def empty(cls, histories: int, layers: int, config: HSTUConfig, like: Tensor, inputs: int) -> Encoded:
        """No event of any history, on the device and in the dtype of ``like``; ``inputs``: their width."""
        zeros = torch.zeros(histories + 1, dtype=torch.long, device=like.device)
        none = like.new_zeros(0, config.heads, config.width // config.heads)
        return cls(zeros[1:], zeros, zeros[:0], (none,) * layers, (none,) * layers, like.new_zeros(0, inputs))


@dataclass(frozen=True)
class Stack:
    """Some layers of a teacher, and how they attend. ``last``: the teacher's last layer is among them."""

    layers: Sequence[HSTULayer]
    config: HSTUConfig
    backend: str
    last: bool

    @property
    def span(self) -> Span:
        """Which events a token attends to."""
        return Span(self.config.attend_recent, self.config.attend_oldest)

    def prepare(self, layout: Layout) -> Attend:
        """Attention of the tokens that ``layout`` asks for."""
        return prepare(self.backend, layout, self.config)


@dataclass(frozen=True)
class EncodedHistories:
    """What :meth:`HSTUTeacher.encode` gives; immutable, and true of the weights that it was made with.

    Attributes:
        events: ``{name: [E]}`` all events so far. offsets: ``[U + 1]`` int64.
        whole: the layers that see whole windows. truncated: the others, or None.
        state: ``[U, D]`` newest event after the last layer; zeros where there is none.
        weights: names the state of the weights.
    """

    events: Mapping[str, Tensor]
    offsets: Tensor
    whole: Encoded
    truncated: Encoded | None
    state: Tensor
    weights: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def last_time(self) -> Tensor:
        """``[U]`` int64 ms UTC of the newest event; the lowest number where there is none."""
        lowest = torch.full_like(self.offsets[1:], torch.iinfo(torch.long).min)
        filled = self.offsets[1:] > self.offsets[:-1]
        lowest[filled] = self.events["time"][self.offsets[1:][filled] - 1]
        return lowest


def weights_of(module: nn.Module) -> tuple[int, ...]:
    """Changes whenever a weight of ``module`` is replaced or written to, by an optimiser or in place.

    A fused optimiser writes without counting up the versions of weights, hence the steps. What is written through
    ``.data``, such as a running average, counts nothing up: hence some entries from all over each weight, too. Of such
    writes those that leave all of these as they are go unseen: reading every entry of a table of a million items takes
    several times as long as scoring 100 candidates.
    """
    _count_steps()
    weights = list(module.parameters())
    for weight in weights:
        weight.__dict__.setdefault(STEPS, 0)
    spread = [weight.detach().flatten()[:: max(1, weight.numel() // SAMPLE)].double() for weight in weights]
    sample = torch.cat(spread).cpu().numpy().tobytes()
    counted = ((weight.data_ptr(), weight._version, weight.__dict__[STEPS]) for weight in weights)
    return (hash(sample), *(number for numbers in counted for number in numbers))


@functools.cache
def _count_steps() -> None:
    """From here on every optimiser's step is counted for those of its weights that :func:`weights_of` has seen."""

    def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
            if STEPS in weight.__dict__:
                weight.__dict__[STEPS] += 1

    register_optimizer_step_post_hook(count)


class Merge:
    """Entries of ``U`` histories, and new ones after those of each.

    Args:
        offsets: ``[U + 1]`` int64 of the old ones. added: ``[U + 1]`` int64 of the new ones.

    Attributes:
        offsets: ``[U + 1]`` int64 of both. old, new: where either stand among both.
    """

    def __init__(self, offsets: Tensor, added: Tensor) -> None:
        first, second = offsets[1:] - offsets[:-1], added[1:] - added[:-1]
        self.offsets = offsets + added
        self.old, self.new = ranges(self.offsets[:-1], first), ranges(self.offsets[:-1] + first, second)

    def __call__(self, old: Tensor, new: Tensor) -> Tensor:
        """``[E, *]`` and ``[M, *]`` -> ``[E + M, *]``, in the dtype of the new: under autocast it may be another."""
        both = new.new_empty(len(self.old) + len(self.new), *new.shape[1:])
        both[self.old], both[self.new] = old.to(new.dtype), new
        return both


def advance(stack: Stack, cache: Encoded, x: Tensor, time: Tensor, added: Tensor) -> tuple[Encoded, Tensor]:
    """New events through some layers.

    Args:
        stack: the layers. cache: the events that they have seen.
        x: ``[M, D]`` the new ones. time: ``[M]``. added: ``[U + 1]`` int64 offsets of them by history.

    Returns:
        all events, and ``[M, D]`` the new ones after the last of the layers; where that is the teacher's last, the
        newest one of each history that has new ones, and no other.
    """
    together = Merge(cache.offsets, added)
    new = together.new
    # an Encoded that needs no inputs has some of width 0
    times, inputs = together(cache.time, time), together(cache.inputs, x[:, : cache.inputs.shape[1]])
    none = added[:0]
    layout = Layout.build(together.offsets, times, none, none, none, stack.span)
    newest = added[1:][added[1:] > added[:-1]] - 1
    attend, keys, values = stack.prepare(layout.asking(new)), [], []
    for number, (layer, key, value) in enumerate(zip(stack.layers, cache.keys, cache.values, strict=True)):
        normal = asked = normalise(x)
        if stack.last and number == len(stack.layers) - 1:
            attend, x, asked = stack.prepare(layout.asking(new[newest])), x[newest], normal[newest]
        u, v, q, k = layer.project(normal, asked)
        keys.append(together(key, layer.split(k)))
        values.append(together(value, layer.split(v)))
        x = layer.mix(x, u, attend(layer.split(q), keys[-1], values[-1], layer.bias()))
    return Encoded(cache.start, together.offsets, times, tuple(keys), tuple(values), inputs), x


def moved_on(cache: Encoded, keep: Tensor, start: Tensor) -> Encoded:
    """``cache`` with the histories of ``keep [U]`` alone; the others have no events, and begin at ``start [U]``."""
    lengths = torch.where(keep, cache.lengths, 0)
    index = ranges(cache.offsets[:-1], lengths)
    return Encoded(
        start,
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        cache.time[index],
        tuple(key[index] for key in cache.keys),
        tuple(value[index] for value in cache.values),
        cache.inputs[index],
    )


def candidates(stack: Stack, cache: Encoded, x: Tensor, owner: Tensor, time: Tensor) -> Tensor:
    """Candidates ``x [N, D]`` of histories ``owner [N]`` at ``time [N]`` through some layers: ``[N, D]``."""
    layout = Layout.build(cache.offsets, cache.time, owner, cache.lengths[owner], time, stack.span)
    attend = stack.prepare(layout.asking(torch.arange(layout.num_events, layout.num_asked, device=owner.device)))
    for layer, key, value in zip(stack.layers, cache.keys, cache.values, strict=True):
        normal = normalise(x)
        u, v, q, k = layer.project(normal, normal)
        keys, values = torch.cat([key.to(k.dtype), layer.split(k)]), torch.cat([value.to(v.dtype), layer.split(v)])
        x = layer.mix(x, u, attend(layer.split(q), keys, values, layer.bias()))
    return x
