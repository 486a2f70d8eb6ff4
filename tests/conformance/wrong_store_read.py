"""Stores that break their contract in what they answer: values, masks and versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from store_cases import Changed, Store, Writer, store

from recdistill_core.batch import TeacherSignal


def logits(signal: TeacherSignal, act: Callable[[Any], Any]) -> TeacherSignal:
    return replace(signal, logits={task: act(logit) for task, logit in signal.logits.items()})


def valid(signal: TeacherSignal, act: Callable[[Any], Any]) -> TeacherSignal:
    return replace(signal, valid={task: act(mask) for task, mask in signal.valid.items()})


class Halved(Changed):
    """Keeps float16."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return logits(signal, lambda logit: logit.half().float())


class Doubled(Changed):
    """Gives float64."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return logits(signal, lambda logit: logit.double())


class Unsigned(Changed):
    """Loses the sign of zero, as a detour through text may."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return logits(signal, lambda logit: logit + 0.0)


class Sorted(Store):
    """Gives labels in the order of their ids."""

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        return super().read(version, np.sort(example_id))


class Column(Changed):
    """Gives a column."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return logits(signal, lambda logit: logit[:, None])


class OneTask(Changed):
    """Forgets a task."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return replace(signal, logits={"click": signal.logits["click"]})


class HalfWriter(Writer):
    """Takes the first append of each two."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        if step == 0:
            super().append(example_id, logits, step=step, scored_at=scored_at)


class Half(Store):
    """Forgets half of what it is given."""

    writes = HalfWriter


class AllValid(Changed):
    """Has a label for everything."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return valid(signal, torch.ones_like)


class NoneValid(Changed):
    """Has a label for nothing."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return valid(signal, torch.zeros_like)


class Counting(Changed):
    """Gives a mask of numbers."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return valid(signal, lambda mask: mask.long())


class Lenient(Store):
    """Answers for the newest version where it does not know one."""

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        known = [entry.version for entry in self.versions()]
        return super().read(version if version in known else known[-1], example_id)


class Careless(Store):
    """Refuses with whatever comes."""

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        if version not in [entry.version for entry in self.versions()]:
            raise KeyError(version)
        return super().read(version, example_id)


class Newest(Store):
    """Answers for the newest version, under the name asked for."""

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        found = super().read(version, example_id)
        newest = super().read(self.versions()[-1].version, example_id)
        return replace(newest, version=found.version)


class Nameless(Changed):
    """Does not say which version answers."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return replace(signal, version="")


PUT = "what_is_put_is_got_back"
MASK = "examples_without_a_label_are_not_valid"
MISS = "another_version_is_a_miss"
WRONG = [
    store(PUT, Halved, "'wrong' gives 2.9765625 for example 231, task 'click', in shuffled order; 2.976"),
    store(PUT, Unsigned, "in shuffled order; -0.0 was put"),
    store(PUT, Doubled, "gives torch.float64 logits, not torch.float32"),
    store(PUT, Column, "gives other shapes than one entry per example in shuffled order"),
    store(PUT, Sorted, "in shuffled order; "),
    store(PUT, OneTask, "gives logits of ['click'], not of ['click', 'like']"),
    store(PUT, Half, "has lost 43 of 85 labels in shuffled order"),
    store(MASK, AllValid, "invents a label of example "),
    store(MASK, NoneValid, "hides the label of example "),
    store(MASK, Counting, "gives a mask of torch.int64, not torch.bool"),
    store(MISS, Lenient, "does not refuse a teacher version that it does not have"),
    store(MISS, Careless, "does not refuse a teacher version that it does not have: it raises KeyError, not DataError"),
    store(MISS, Newest, "mixes the labels of two versions: version 'v1' is not as it was put"),
    store(MISS, Nameless, "answers for version '', 'v1' was asked for"),
]
