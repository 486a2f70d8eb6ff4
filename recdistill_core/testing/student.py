"""Checks of a student's parts; those of :mod:`leaks`, :mod:`rows`, :mod:`weights` and :mod:`served` are theirs too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch
from recdistill_core.testing.cases import Case, check, exercise
from recdistill_core.testing.compare import differences
from recdistill_core.testing.models import SEED, reason, stir


@exercise("student")
def run_student(case: Case, made: Any) -> Mapping[str, Any]:
    """Inputs, backbone and the logits of a main and an auxiliary tower, in training mode."""
    batch = case.batch(made)
    main, auxiliary = made.tower(), made.tower()
    features = made.backbone(batch)
    return {
        "inputs": made.inputs(batch),
        "backbone": features,
        "main": main(features),
        "auxiliary": auxiliary(features),
    }


@check("student")
def width_is_the_backbones(case: Case) -> None:
    """The backbone gives finite floats of shape ``[N, width]``, for many rows and for one."""
    made = case.build().eval()
    width = getattr(made, "width", None)
    case.require(isinstance(width, int), f"has the width {width!r}; set self.width to the backbone's width")
    for part in _sizes(case, made):
        features = made.backbone(part)
        shape = list(features.shape)
        case.require(
            shape == [len(part), width],
            f"has a backbone of shape {shape} for {len(part)} rows and the width {width}; they must be "
            f"[{len(part)}, width]",
        )
        case.require(features.is_floating_point(), f"has a backbone of type {features.dtype}; give floats")
        case.require(bool(torch.isfinite(features).all()), "has a backbone with NaN or infinite entries")


@check("student")
def towers_give_a_logit_per_row_and_task(case: Case) -> None:
    """A tower is a module that gives a finite float logit per row of every task, for many rows and for one."""
    made = case.build().eval()
    tower = made.tower()
    case.require(isinstance(tower, nn.Module), f"has a tower of type {type(tower).__name__}; return an nn.Module")
    tower.eval()
    for part in _sizes(case, made):
        logits = tower(made.backbone(part))
        case.require(isinstance(logits, Mapping), f"has a tower that gives {type(logits).__name__}; give {{task: [N]}}")
        for task in case.context.tasks:
            logit = logits.get(task)
            case.require(
                isinstance(logit, Tensor),
                f"has a tower without task {task!r} (it has {', '.join(logits)}); give every task of the context",
            )
            shape = list(logit.shape)
            case.require(
                shape == [len(part)],
                f"has a tower that gives shape {shape} of task {task!r} for {len(part)} rows; give [{len(part)}]",
            )
            case.require(
                logit.is_floating_point() and bool(torch.isfinite(logit).all()),
                f"has a tower that gives {logit.dtype} logits of task {task!r}, not all of them finite floats",
            )


@check("student")
def inputs_are_plain_tensors_per_row(case: Case) -> None:
    """``inputs`` gives named tensors, one entry per row and without gradient, whose widths and types never change."""
    made = case.build()
    wanted: dict[str, Any] = {}
    for part in _sizes(case, made):
        found = made.inputs(part)
        case.require(
            isinstance(found, dict) and bool(found), f"has inputs {type(found).__name__}; give a dict of tensors"
        )
        for name, value in found.items():
            case.require(
                str(name).isidentifier(), f"names an input {name!r}; a name must be an argument name of encode"
            )
            case.require(
                isinstance(value, Tensor), f"has an input {name!r} of type {type(value).__name__}; give plain tensors"
            )
            case.require(
                value.ndim >= 1 and len(value) == len(part),
                f"has an input {name!r} of shape {list(value.shape)} for {len(part)} rows; the first axis is the rows",
            )
            case.require(
                not value.requires_grad,
                f"has an input {name!r} with gradient; what has weights belongs in encode, which is served",
            )
        kinds = {name: (list(value.shape[1:]), value.dtype) for name, value in found.items()}
        wanted = wanted or kinds
        case.require(
            kinds == wanted,
            f"has inputs {kinds} for one batch and {wanted} for another; pad to a constant width, as a served model "
            "takes one",
        )


@check("student")
def encode_of_inputs_is_the_backbone(case: Case) -> None:
    """``encode(**inputs(batch))`` equals ``backbone(batch)``, bit for bit: what is served is what is trained."""
    made = stir(case.build())
    batch = case.batch(made)
    for mode in (False, True):
        made.train(mode)
        torch.manual_seed(SEED)
        features = made.backbone(batch)
        torch.manual_seed(SEED)
        try:
            encoded = made.encode(**made.inputs(batch))
        except Exception as error:  # whatever the component raises
            case.fail(f"cannot encode its own inputs: {reason(error)}; encode takes them by name")
        case.require(
            not differences({"": features}, {"": encoded}),
            f"has another backbone(batch) than encode(**inputs(batch)) in {'training' if mode else 'eval'} mode; leave "
            "backbone as it is and compute in encode, which alone is served",
        )


@check("student")
def towers_share_no_parameter(case: Case) -> None:
    """Every call of ``tower`` makes a module of its own, whose parameters neither tower nor backbone has too."""
    made = case.build()
    first, second = made.tower(), made.tower()
    case.require(first is not second, "returns one and the same tower at every call; make a new one")
    main, auxiliary = _storages(first), _storages(second)
    shared = [name for place, name in main.items() if place in auxiliary]
    case.require(
        not shared,
        f"has towers that share parameters: {', '.join(shared[:5])}; the teacher would reach the served tower through "
        "them, so make new ones at each call",
    )


def _storages(module: nn.Module) -> dict[int, str]:
    """Where each parameter with entries lies in memory, and its name."""
    return {weight.untyped_storage().data_ptr(): name for name, weight in module.named_parameters() if weight.numel()}


def _sizes(case: Case, made: Any) -> tuple[Batch, Batch]:
    """A batch of many rows and one of a single row."""
    batch = case.batch(made)
    return batch, batch.rows(torch.tensor([5]))
