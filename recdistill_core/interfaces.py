"""The nouns: what each kind of component must do. One kind, one interface, one hook.

Shapes use the axes of :mod:`recdistill_core.batch`. A logit is always before the sigmoid.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch, Scores
from recdistill_core.engine import Engine as Engine
from recdistill_core.engine import Job as Job
from recdistill_core.errors import UsageError
from recdistill_core.labels import CaptureMode as CaptureMode
from recdistill_core.labels import LabelVersion as LabelVersion
from recdistill_core.labels import LabelWriter as LabelWriter
from recdistill_core.labels import LogitStore as LogitStore
from recdistill_core.modes import evaluation
from recdistill_core.sampler import Candidates as Candidates
from recdistill_core.sampler import Sampler as Sampler
from recdistill_core.schema import Schema
from recdistill_core.strategy import HeadStrategy as HeadStrategy
from recdistill_core.strategy import LossParts as LossParts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recdistill_core.rawlog import RawLog


@runtime_checkable
class Teacher(Protocol):
    """Scores impressions. A black box need not be a torch module."""

    def score(self, batch: Batch) -> Scores:
        """Logits ``{task: [N]}`` in eval mode and without gradient; no label, other row or later event moves them."""

    def fingerprint(self) -> str:
        """Hex digest of weights, configuration and feature view; equal across processes."""


class TrainableTeacher(nn.Module):
    """A teacher that recdistill trains. Subclasses implement :meth:`training_scores` and :meth:`fingerprint`.

    Attributes:
        history: how much history each row needs.
    """

    history: HistoryWindow | None = None

    def training_scores(self, batch: Batch) -> Scores:
        """Logits ``{task: [N]}`` with gradient, in the current mode. These are what prequential capture stores."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """See :meth:`Teacher.fingerprint`."""
        raise NotImplementedError

    def score(self, batch: Batch) -> Scores:
        """See :meth:`Teacher.score`."""
        with evaluation(self):
            return self.training_scores(batch)

    def describe(self) -> Mapping[str, Any]:
        """Facts for the run manifest, such as the attention backend in use."""
        return {}

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write config.json and safetensors, whole or not at all; see :mod:`recdistill_core.artefact`.

        Raises:
            UsageError: if this teacher does not know how, or the folder holds something else.
        """
        raise UsageError(
            f"a {type(self).__name__} cannot be saved as an artefact",
            where=str(folder),
            fix="implement save_pretrained with recdistill_core.artefact.save_teacher",
        )

    def blocks(self) -> Sequence[nn.Module]:
        """The parts that sharded training gathers one at a time, in the order they run, such as layers.

        Each must be run by calling it, for its weights are whole only inside of that call. By default the entries of
        every outermost ``nn.ModuleList``.
        """
        return outermost_lists(self)

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        """``[M, W]`` embeddings of ``ids [M]`` int64; None where there are none of this kind.

        Args:
            kind: ``item`` for the item that a row shows, or the name of a categorical feature.
            ids: of its vocabulary.

        For embedding distillation alone (``recdistill_lightning.EmbeddingDistillation``); may be left out.
        """
        return None


def outermost_lists(module: nn.Module) -> list[nn.Module]:
    """The entries of every ``nn.ModuleList`` in ``module`` that is in no other one, in order."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in outermost_lists(child)]


class Student(nn.Module):
    """A small model. Subclasses set ``width`` and implement :meth:`inputs`, :meth:`encode` and :meth:`tower`.

    Attributes:
        width: ``D``, the width of the backbone's output.
        history: how much history each row needs, or None.
    """

    width: int
    history: HistoryWindow | None = None

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The plain tensors ``[N, ...]`` that the served model is fed, by name; only ``N`` may vary."""
        raise NotImplementedError

    def encode(self, **inputs: Tensor) -> Tensor:
        """``[N, D]`` from the tensors of :meth:`inputs`; an id outside its vocabulary, negative too, counts as 0."""
        raise NotImplementedError

    def tower(self) -> nn.Module:
        """A new tower ``[N, D] -> {task: [N]}`` that shares no parameter with any other."""
        raise NotImplementedError

    def backbone(self, batch: Batch) -> Tensor:
        """``[N, D]``, shared by all towers."""
        return self.encode(**self.inputs(batch))

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        """``[M, W]`` embeddings of ``ids [M]`` int64, with gradient; None where :meth:`encode` reads none of this kind.

        Args:
            kind: ``item`` for the item that a row shows, or the name of a categorical feature.
            ids: of its vocabulary.

        For embedding distillation alone (``recdistill_lightning.EmbeddingDistillation``); may be left out.
        """
        return None

    def serving_module(self, main: nn.Module) -> ServingModule:
        """A copy of backbone and main tower alone, on plain tensors, in eval mode."""
        return ServingModule(self, main)


class ServingModule(nn.Module):
    """What is served: ``forward(**student.inputs(batch)) -> {task: [N]}``; auxiliary towers are not part of it.

    ``torch.export`` takes it with a fixed ``N``; for any ``N`` give it
    :func:`recdistill_core.serving.with_named_inputs`.
    """

    def __init__(self, student: Student, main: nn.Module) -> None:
        super().__init__()
        self.student = copy.deepcopy(student)
        self.main = copy.deepcopy(main)
        self.eval()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Logits ``{task: [N]}``."""
        logits: dict[str, Tensor] = self.main(self.student.encode(**inputs))
        return logits


class DistillationLoss(nn.Module):
    """Distance between student and teacher, per row; the wiring reduces.

    Attributes:
        normalised: True where values are divided by weights of the request and so only the ratios of weights count;
            False: values are linear in the weights.
    """

    normalised: bool = False

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        """``[N]`` losses, already times ``weight [N]``; a row of weight 0 gives exactly 0 and no gradient.

        Args:
            student_logit: ``[N]``, with gradient.
            teacher_logit: ``[N]``, finite, gets no gradient; 0 where the teacher has no label (weight is 0 there).
            batch: the rows, for losses that group by request.
            weight: ``[N]`` >= 0, from debiasers and the validity of the teacher's label.
        """
        raise NotImplementedError


class Debiaser(nn.Module):
    """Corrects a bias of the log. Every method has a neutral default; a debiaser overrides those it is about.

    Debiasers compose in a list: weights multiply, corrections and training logits apply in order.

    Attributes:
        monotone: :meth:`correct` and :meth:`training_logit` keep the order of two logits of one row.
    """

    monotone: bool = True

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        """Estimate what must be estimated, from training rows only."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        """``[N]`` >= 0, multiplies the hard and the soft loss of a row."""
        return torch.ones(len(batch), device=batch.event_time.device)

    def correct(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        """``[N]`` logit of the corrected probability. Cross-debias applies it to student AND teacher logits."""
        return logit

    def training_offset(self, batch: Batch, task: str) -> Tensor | None:
        """``[N]`` added to the served logit in training only (position towers), or None."""
        return None

    def training_logit(self, logit: Tensor, batch: Batch, task: str) -> Tensor:
        """Served logit ``[N]`` -> logit ``[N]`` of the label as it was logged; absent when serving."""
        offset = self.training_offset(batch, task)
        return logit if offset is None else logit + offset

    def report(self) -> Mapping[str, Any]:
        """Facts for the run manifest, such as the effective sample size."""
        return {}


class Metric(Protocol):
    """A quality measure that can be resampled by user."""

    higher_is_better: bool

    def prepare(
        self, logit: NDArray[np.float64], label: NDArray[np.float64], user: NDArray[np.int64]
    ) -> Callable[[NDArray[np.float64]], float]:
        """Sort once, evaluate often.

        Args:
            logit: ``[N]`` raw logits. label: ``[N]`` of 0 and 1. user: ``[N]`` in ``[0, U)``.

        Returns:
            a function of user weights ``[U]`` (multiplicities of a bootstrap; ones for the plain value) to the
            metric, NaN where undefined.

        Raises:
            DataError: for non-finite logits, labels other than 0 and 1, or empty input.
        """


@dataclass(frozen=True)
class HistoryWindow:
    """How much history a row sees, as a function of the row alone, never of its neighbours in a batch.

    A row whose prefix has ``n`` events sees events ``[start, n)`` with ``start = 0`` while ``n <= length`` and else the
    smallest multiple of ``stride`` that is at least ``n - length``. So a row always sees its newest
    ``length - stride + 1`` events, at most ``length``, and rows of one user share one encoding per ``stride`` events.
    With ``oldest`` the places of a window that does not begin at 0 are shared out: it holds the first ``oldest`` events
    of the user, and then those of a window of ``length - oldest``.
    """

    length: int
    stride: int
    oldest: int = 0

    def __post_init__(self) -> None:
        if self.oldest < 0:
            raise ValueError(f"history needs oldest >= 0, got {self.oldest}")
        if not 1 <= self.stride <= self.length - self.oldest:
            known = "length - oldest" if self.oldest else "length"
            raise ValueError(
                f"history needs 1 <= stride <= {known}, got stride {self.stride}, {known} {self.length - self.oldest}"
            )

    def start(self, seen: Any) -> Any:
        """Place of the first event of the window, the oldest ones aside, for prefixes of ``seen`` events.

        Args:
            seen: an int, or an integer array or tensor; the answer is alike.
        """
        return -((self.length - self.oldest - seen) // self.stride) * self.stride * (seen > self.length)

    @classmethod
    def newest(cls, count: int) -> HistoryWindow:
        """A window in which every row sees at least its newest ``count`` events; rows share an encoding."""
        return cls(2 * count, count)


class SampleSource(Protocol):
    """A dataset of impressions in time order, with random access by row position."""

    schema: Schema
    snapshot_id: str
    num_rows: int

    def row_at(self, time_ms: int) -> int:
        """Position of the first row at or after a time (ms UTC); ``num_rows`` where there is none."""

    def column(self, name: str) -> NDArray[Any]:
        """One whole column ``[num_rows]``: ``example_id``, ``user_id``, ``event_time``, ``label_<task>``, ..."""

    def batch(self, rows: NDArray[np.int64], history: HistoryWindow | None = None) -> Batch:
        """The impressions at ``rows`` in that order, with their histories where ``history`` asks for them."""

    def truth(self, task: str) -> NDArray[np.float64] | None:
        """True probabilities ``[num_rows]`` where a simulator kept them aside, else None. For evaluation only."""


class Importer(Protocol):
    """Reads somebody's log as a stream; memory does not grow with the log."""

    def open(self) -> RawLog:
        """Describe the columns and hand out the record batches. Raises DataError with file, row and column."""


class Trainer(Protocol):
    """Runs a training loop over a module and a data module of its framework."""

    def fit(self, module: Any, data: Any, *, epochs: int, callbacks: Sequence[Any], out: Path, title: str) -> None:
        """Train in place for ``epochs`` passes; logs go below ``out``; ``title`` names the progress bar."""


class Exporter(Protocol):
    """Writes a served model in a format that is read without recdistill.

    Attributes:
        suffix: what a file of this format ends in, such as ``.onnx``; empty where it writes a folder.
        tolerance: the largest absolute difference of a loaded logit from the module's own that it promises.
    """

    suffix: str
    tolerance: float

    def export(self, module: ServingModule, inputs: Mapping[str, Tensor], path: Path) -> None:
        """Write one self-contained file or folder at ``path``, whole or not at all; it takes any number of rows.

        Args:
            module: in eval mode; left as it was.
            inputs: what the module takes, by name, ``[N, ...]`` with ``N >= 2``: names, types and widths to trace with.
            path: absent so far; its folder exists.
        """

    def load(self, path: Path) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[np.float32]]]:
        """What :meth:`export` wrote, as a function of the named arrays ``[N, ...]`` to logits ``{task: [N]}``."""


#: kind -> the type that ``Component.build`` must return an instance of; protocols are checked by their methods.
INTERFACES: Mapping[str, Any] = {
    "teacher": Teacher,
    "student": Student,
    "loss": DistillationLoss,
    "debiaser": Debiaser,
    "strategy": HeadStrategy,
    "metric": Metric,
    "store": LogitStore,
    "source": SampleSource,
    "importer": Importer,
    "trainer": Trainer,
    "exporter": Exporter,
    "engine": Engine,
    "sampler": Sampler,
}
