"""What may be on the CPU beside a batch on a GPU, and what may not: the trace of devices, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recdistill_core.testing.devices import Trace

Work = Callable[[Tensor], Tensor]


def traced(work: Work) -> tuple[str, str | None]:
    """The fault found while ``work`` is done on a tensor of the batch ``[4]``, and where its result is."""
    trace, batch = Trace(), torch.linspace(0, 1, 4)
    trace.follow(batch)
    with trace:
        found = work(batch)
    return trace.fault, trace.place(found)


def counted(x: Tensor) -> Tensor:
    total = torch.zeros(2)
    total += torch.tensor([float(x.sum()), 1.0])
    return x * float(total[0])


def filled(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[torch.tensor([0, 2])] = 1.0
    return y.copy_(torch.arange(4))


def packed(x: Tensor) -> Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x[None, :, None], torch.tensor([4]), batch_first=True)
    return rows.data


LEGAL: dict[str, Work] = {
    "its device": lambda x: x + torch.zeros(4, device=x.device),
    "like it": lambda x: x + torch.ones_like(x) + x.new_zeros(4),
    "moved to it": lambda x: x + torch.arange(4).to(x),
    "moved to its device": lambda x: x + torch.arange(4).to(x.device, torch.float32),
    "its type": lambda x: x + torch.arange(4).type_as(x),
    "a number": lambda x: torch.where(x > 0, x * torch.tensor(2.0), torch.tensor(0.0)),
    "an index": lambda x: x[torch.tensor([3, 2, 1, 0])][torch.tensor([True, True, False, True])],
    "a copy": filled,
    "sums for fit": counted,
    "lengths": packed,
    "an array and back": lambda x: torch.tensor(x.cpu().numpy()).to(x),
    "to the CPU and back": lambda x: (x.cpu() + torch.arange(4)).to(x.device),
}
#: work -> what is said of it; nothing where only its result is in the wrong place.
ILLEGAL: dict[str, tuple[Work, str]] = {
    "zeros": (lambda x: x + torch.zeros(4), "from torch.zeros, in add"),
    "no device": (lambda x: x + torch.ones(4, device=None), "from torch.ones, in add"),
    "derived": (lambda x: x * torch.arange(4).float().square()[None].sum(0), "from torch.arange, in mul"),
    "in a list": (lambda x: torch.cat([x, torch.zeros(1)]), "from torch.zeros, in cat"),
    "an array": (
        lambda x: x + torch.from_numpy(x.numpy()).to(x.device),
        "call cpu() before numpy() where no gradient is needed",
    ),
    "brought to the CPU": (lambda x: x + x.to("cpu"), "from Tensor.to, in add"),
    "an answer": (lambda x: torch.randn(4).exp(), ""),
    "an answer by type": (lambda x: torch.tensor(x.tolist()).to(torch.float64), ""),
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_works_on_a_gpu_passes(name: str) -> None:
    assert traced(LEGAL[name]) == ("", "")


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_a_gpu_refuses_is_found(name: str) -> None:
    work, said = ILLEGAL[name]
    fault, place = traced(work)
    assert said in fault
    assert bool(fault) == bool(said)
    assert fault or place
