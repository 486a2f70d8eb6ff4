"""Where a component's tensors would be if the batch were on a GPU; told on the CPU, by who made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from recdistill_core.batch import Batch
from recdistill_core.testing.cases import EXERCISES, Case
from recdistill_core.testing.compare import leaves

T = TypeVar("T")

#: They make tensors on the CPU unless told a device.
FACTORIES = frozenset({"arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "scalar_tensor"})
FACTORIES |= {"rand", "randint", "randn", "randperm", "tensor", "tril_indices", "triu_indices", "zeros"}
#: They take tensors of the CPU beside those of a GPU: as indices, lengths or the source of a copy.
LENIENT = frozenset({"__getitem__", "__setitem__", "__get__", "__set__", "copy_", "index_put", "index_put_"})
LENIENT |= {"tensor_split", "_pack_padded_sequence", "_pad_packed_sequence", "lstm", "gru", "rnn_tanh", "rnn_relu"}
#: The place of a tensor that goes where the batch goes.
WITH_BATCH = ""
ADVICE = (
    "on a GPU the batch is elsewhere; make tensors with device=batch.event_time.device or zeros_like, and keep "
    "constants in buffers"
)


class Trace(TorchFunctionMode):
    """Follows tensors through torch: those of the batch, those that were made on the CPU, and what comes of them.

    Of a tensor that comes from neither it says nothing. ``fault`` is the first operation that a GPU would refuse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fault = ""
        self._places: dict[int, tuple[Tensor, str]] = {}  # with the tensor, so that its id is not given away
        self._off = 0

    def follow(self, value: Any, place: str = WITH_BATCH) -> Any:
        """``value``, from now on known to be at ``place``: with the batch, or on the CPU with the name of its maker."""
        for tensor in _tensors(value):
            self._places[id(tensor)] = tensor, place
        return value

    def place(self, tensor: Tensor) -> str | None:
        """Where it is; None where that is not known."""
        return self._places.get(id(tensor), (tensor, None))[1]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Calls in this block are not looked at."""
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func``, and note where its result is."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._off:
            return result
        name = getattr(func, "__name__", str(func))
        if name in FACTORIES and not _tensors(args[:1]):
            device = kwargs.get("device")
            return self.follow(result, WITH_BATCH if isinstance(device, torch.device) else f"torch.{name}")
        if name == "cpu" or (name == "to" and "cpu" in (*args[1:], kwargs.get("device"))):
            return self.follow(result.view_as(result), f"Tensor.{name}")  # here it is the tensor itself: mark another
        if name in ("numpy", "__array__") and self.place(args[0]) == WITH_BATCH and not self.fault:
            self.fault = (
                "turns a tensor of the batch into an array: numpy has no gradient and cannot read from a GPU; stay "
                "with tensors, or call cpu() before numpy() where no gradient is needed"
            )
        moved = name in ("to", "type_as") and any(
            isinstance(to, torch.device | Tensor) for to in _targets(args, kwargs)
        )
        given = _tensors((args[:1], kwargs.get("input")) if name in LENIENT else (args, kwargs))
        place = WITH_BATCH if moved else self._meet(name, given)
        return result if place is None else self.follow(result, place)

    def _meet(self, name: str, given: Sequence[Tensor]) -> str | None:
        """Where the result of ``name`` on these tensors is; notes a fault where a GPU would refuse them."""
        places = [place for tensor in given if (place := self.place(tensor)) is not None]
        if WITH_BATCH not in places:
            return max(places, default=None)
        strays = [self.place(tensor) for tensor in given if tensor.ndim and self.place(tensor)]
        if strays and not self.fault and not name.startswith("_foreach"):
            self.fault = f"combines the batch's tensors with one on the CPU, from {strays[0]}, in {name}; {ADVICE}"
        return WITH_BATCH


def cpu_bound(case: Case) -> str:
    """What of the component's work would stay on the CPU if the batch were on a GPU; empty where nothing would."""
    trace, made = Trace(), case.build()
    if isinstance(made, nn.Module):
        trace.follow([*made.parameters(), *made.buffers()])

    class Followed(Case):
        def batch(self, made: Any = None, seed: int = 0) -> Batch:
            with trace.off():
                batch = super().batch(made, seed)
            trace.follow(list(leaves(batch).values()))
            return batch

    def unseen(call: Callable[..., T]) -> Callable[..., T]:
        """A call that makes modules, which are moved to the batch as a whole."""

        def run(*args: Any) -> T:
            with trace.off():
                return call(*args)

        return run

    if hasattr(made, "tower"):
        object.__setattr__(made, "tower", unseen(made.tower))
    read = torch.from_numpy  # the one maker of tensors that torch lets no mode see
    with mock.patch.object(torch, "from_numpy", lambda array: trace.follow(read(array), "torch.from_numpy")), trace:
        answers = leaves(EXERCISES[case.entry.kind](Followed(**vars(case)), made))
    if trace.fault:
        return trace.fault
    for path, value in answers.items():
        if isinstance(value, Tensor) and value.ndim and trace.place(value):
            return f"answers {path} with a tensor on the CPU, from {trace.place(value)}; {ADVICE}"
    return ""


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested sequences and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for entry in value for tensor in _tensors(entry)] if isinstance(value, list | tuple) else []


def _targets(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return [*args[1:], kwargs.get("device"), kwargs.get("other")]
