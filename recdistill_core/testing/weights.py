"""What a model's weights must do: take part, and come back from a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch
from recdistill_core.testing.cases import Case, check
from recdistill_core.testing.models import SEED, Logits, moved, reason, stir, trainable, without_dropout


@check("teacher", "student")
def backward_reaches_every_parameter(case: Case) -> None:
    """A backward pass from the logits of all tasks reaches every parameter that is not frozen."""
    made = case.build()
    model = trained_parts(case, made)
    batch = case.batch(made)
    pull(case, made, model, batch)
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad and weight.numel()]
    absent = [name for name, weight in weights if weight.grad is None]
    case.require(
        not absent,
        f"has parameters that take no part in its logits: {', '.join(absent[:5])}; use them, freeze them "
        "(requires_grad_(False)) or leave them out: distributed training waits for their gradient",
    )
    still = [name for name, weight in weights if not _any(weight.grad)]
    case.require(
        not still,
        f"has parameters whose gradient is 0 in every entry: {', '.join(still[:5])}; look for a detach(), a rounding "
        "or a branch that is never taken",
    )


@check("teacher", "student")
def weights_survive_safetensors(case: Case) -> None:
    """A trained state dict, written to safetensors and loaded into a new build, gives the same logits, bit for bit."""
    import safetensors.torch  # part of recdistill; nothing else of the core reads weights

    made = case.build()
    model = trained_parts(case, made)
    batch = case.batch(made)
    pull(case, made, model, batch)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight.add_(weight.grad.to_dense(), alpha=-0.01)
    state = model.state_dict()
    plain = [name for name, value in state.items() if not isinstance(value, Tensor)]
    case.require(
        not plain,
        f"has state that is no tensor: {', '.join(plain)}; safetensors holds tensors alone, keep it in the config",
    )
    path = case.folder / "weights.safetensors"
    safetensors.torch.save_file({name: value.detach().contiguous().clone() for name, value in state.items()}, path)
    other = case.build(seed=1)
    fresh = trained_parts(case, other)
    try:
        fresh.load_state_dict(safetensors.torch.load_file(path))
    except RuntimeError as error:
        case.fail(f"cannot load its own weights into a new build: {reason(error)}")
    before, after = _answers(case, model, batch), _answers(case, fresh, batch)
    where = moved(before, after)
    case.require(
        not where,
        f"gives other logits once its weights are loaded into a new build (they move {where}); whatever moves a logit "
        "must be a parameter or a persistent buffer",
    )
    if case.entry.kind == "teacher":
        case.require(
            made.fingerprint() == other.fingerprint(),
            "has another fingerprint once its weights are loaded into a new build; hash weights, configuration and "
            "feature view alone",
        )


def trained_parts(case: Case, made: Any) -> nn.ModuleDict:
    """What training holds: the trainable teacher, or the student and its main tower; stirred, in training mode."""
    if case.entry.kind == "teacher":
        return nn.ModuleDict({"teacher": stir(trainable(made))}).train()
    return nn.ModuleDict({"student": stir(made), "main": stir(made.tower())}).train()


def logits_of(model: nn.ModuleDict, batch: Batch) -> Logits:
    """Logits ``{task: [N]}`` of :func:`trained_parts` in its current mode, with gradient."""
    if "teacher" in model:
        scores: Any = model["teacher"].training_scores(batch)  # type: ignore[operator]  # a TrainableTeacher
        return dict(scores.logits)
    features = model["student"].backbone(batch)  # type: ignore[operator]  # a Student
    return dict(model["main"](features))


def pull(case: Case, made: Any, model: nn.ModuleDict, batch: Batch) -> None:
    """A backward pass from seeded weights on every logit."""
    without_dropout(model)
    torch.manual_seed(SEED)
    logits = logits_of(model, batch)
    for task, logit in logits.items():
        case.require(
            logit.requires_grad,
            f"gives logits of task {task!r} without gradient in training; leave no_grad and detach to score",
        )
    draw = torch.Generator().manual_seed(SEED)
    total = torch.stack([(logit * torch.randn(logit.shape, generator=draw)).sum() for logit in logits.values()]).sum()
    total.backward()  # type: ignore[no-untyped-call]  # torch ships it without types


def _answers(case: Case, model: nn.ModuleDict, batch: Batch) -> Logits:
    model.eval()
    with torch.no_grad():
        found = logits_of(model, batch)
        if case.entry.kind == "teacher":
            found = dict(model["teacher"].score(batch).logits)  # type: ignore[operator]  # a TrainableTeacher
    return {task: logit.clone() for task, logit in found.items()}


def _any(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.to_dense().any())
