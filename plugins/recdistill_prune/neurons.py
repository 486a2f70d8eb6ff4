"""The hidden neurons of a student: find them, make them more, erase them, grow them again, cut them out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recdistill_core.errors import UsageError
from recdistill_core.features import Tower

#: What may stand between two linear maps: it gives every neuron an answer of its own.
ELEMENTWISE = (
    nn.SiLU,
    nn.ReLU,
    nn.GELU,
    nn.LeakyReLU,
    nn.ELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Dropout,
    nn.Identity,
)


@dataclass(frozen=True)
class HiddenLayer:
    """``W`` neurons between two linear maps: row ``j`` of one and column ``j`` of the other are neuron ``j``.

    Attributes:
        before: ``[W, in]``, what the neurons read. after: ``[out, W]``, what reads them.
    """

    before: nn.Linear
    after: nn.Linear

    @property
    def width(self) -> int:
        """``W``."""
        return self.before.out_features

    def parts(self) -> Iterator[tuple[Tensor, int]]:
        """The parameters that hold the neurons, each with the dimension of length ``W``."""
        yield self.before.weight, 0
        if self.before.bias is not None:
            yield self.before.bias, 0
        yield self.after.weight, 1


def hidden_layers(module: nn.Module) -> dict[str, HiddenLayer]:
    """``{name of the linear map before the neurons: layer}``, of a ``StudentModule`` or a ``ServingModule``.

    The layers are those of its ``student`` and of its ``main`` tower: linear maps of one ``nn.Sequential`` with nothing
    but activations and dropout between them, and the hidden layer of a :class:`recdistill_core.features.Tower`. The
    output of such a stack is no hidden layer: every tower reads it, and in ``dcn`` it stands beside the cross layers'.
    Auxiliary towers are left as they are: nobody serves them.

    Raises:
        UsageError: if there are none.
    """
    names = {id(part): name for name, part in module.named_modules()}
    found: dict[str, HiddenLayer] = {}
    for root in (module.get_submodule("student"), module.get_submodule("main")):
        for part in root.modules():
            for layer in _pairs(_chain(part)):
                found.setdefault(names[id(layer.before)], layer)
    if not found:
        student = type(module.get_submodule("student"))
        raise UsageError(
            f"{student.__name__} and its tower have no hidden layer to prune",
            where=student.__module__,
            fix="use a student with two or more dense layers, such as mlp with hidden: [64, 32], or a tower with a "
            "hidden layer; recdistill_core.features.dense_layers makes what can be pruned",
        )
    return found


def _chain(part: nn.Module) -> Sequence[nn.Module]:
    """The modules that ``part`` runs one after another."""
    if isinstance(part, nn.Sequential):
        return list(part)
    if isinstance(part, Tower):
        return [*(part.body if isinstance(part.body, nn.Sequential) else []), part.out]
    return []


def _pairs(chain: Iterable[nn.Module]) -> Iterator[HiddenLayer]:
    """Consecutive linear maps with nothing but elementwise modules between them."""
    before: nn.Linear | None = None
    for part in chain:
        if isinstance(part, nn.Linear):
            if before is not None:
                yield HiddenLayer(before, part)
            before = part
        elif not isinstance(part, ELEMENTWISE):
            before = None


def widen(module: nn.Module, widths: Mapping[str, int], draw: torch.Generator) -> None:
    """Give hidden layers other widths, in place; every linear map that changes starts anew, as ``nn.Linear`` does.

    Args:
        module: see :func:`hidden_layers`. widths: ``{name: W}``. draw: what the new weights are drawn from.
    """
    layers = hidden_layers(module)
    changed: list[nn.Linear] = []
    for name, width in widths.items():
        before, after = layers[name].before, layers[name].after
        before.out_features = after.in_features = width
        changed += [linear for linear in (before, after) if linear not in changed]
    for linear in changed:
        weight = torch.empty(linear.out_features, linear.in_features)
        _set(linear, "weight", _as_linear(weight, linear.in_features, draw))
        if linear.bias is not None:
            _set(linear, "bias", _as_linear(torch.empty(linear.out_features), linear.in_features, draw))


def shrink(module: nn.Module, live: Mapping[str, Tensor]) -> None:
    """Cut erased neurons out of a module, in place: fewer rows and columns, and with them fewer FLOPs.

    Args:
        module: see :func:`hidden_layers`. live: ``{name: [W] bool}``, False where a neuron goes. One that was erased by
            :func:`erase` changes no logit by going.
    """
    for name, layer in hidden_layers(module).items():
        kept = live[name].nonzero()[:, 0]
        for owner, part, dimension in (
            (layer.before, "weight", 0),
            (layer.before, "bias", 0),
            (layer.after, "weight", 1),
        ):
            value = getattr(owner, part)
            if value is not None:
                _set(owner, part, value.detach().index_select(dimension, kept.to(value.device)).contiguous())
        layer.before.out_features = layer.after.in_features = len(kept)


def erase(layer: HiddenLayer, dead: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
    """Set all weights of some neurons to 0, and with them what optimisers remember of these weights.

    Args:
        layer: whose neurons. dead: ``[W]`` bool. optimizers: those that train the layer.
    """
    gone = dead.nonzero()[:, 0]
    with torch.no_grad():
        for part, dimension in layer.parts():
            part.index_fill_(dimension, gone.to(part.device), 0.0)
            for optimizer in optimizers:
                for value in optimizer.state.get(part, {}).values():
                    if isinstance(value, Tensor) and value.shape == part.shape:
                        value.index_fill_(dimension, gone.to(value.device), 0.0)


def regrow(layer: HiddenLayer, new: Tensor, draw: torch.Generator) -> None:
    """Bring erased neurons back: incoming weights as ``nn.Linear`` draws them, outgoing weights 0.

    So the layer's function stays what it was; the first gradient reaches the outgoing weights.

    Args:
        layer: whose neurons. new: ``[W]`` bool. draw: what the weights are drawn from.
    """
    rows = new.nonzero()[:, 0]
    fan_in = layer.before.in_features
    with torch.no_grad():
        for part, dimension in layer.parts():
            if dimension == 0:
                drawn = _as_linear(torch.empty(len(rows), *part.shape[1:]), fan_in, draw)
                part.index_copy_(0, rows.to(part.device), drawn.to(part))


def mask_gradients(layer: HiddenLayer, live: Tensor) -> None:
    """Let no gradient reach erased neurons; an activation that is not 0 at 0 would bring them back."""
    dead = (~live).nonzero()[:, 0]
    for part, dimension in layer.parts():
        if part.grad is not None:
            part.grad.index_fill_(dimension, dead.to(part.grad.device), 0.0)


def _as_linear(empty: Tensor, fan_in: int, draw: torch.Generator) -> Tensor:
    """``empty`` filled from the distribution from which ``nn.Linear`` draws weights and biases alike."""
    bound = 1.0 / math.sqrt(fan_in)
    return empty.uniform_(-bound, bound, generator=draw)


def _set(owner: nn.Linear, name: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter, with its type, device and need of a gradient."""
    old: nn.Parameter = getattr(owner, name)
    setattr(owner, name, nn.Parameter(value.to(old), requires_grad=old.requires_grad))
