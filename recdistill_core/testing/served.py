"""What is served of a student, and that nothing of an auxiliary tower gets there but through the backbone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core.serving import with_named_inputs
from recdistill_core.testing.cases import Case, NotApplicable, check
from recdistill_core.testing.models import ROUNDING, Logits, moved, reason, stir

#: A number that no weight has by chance.
MARK = 12345.0


@check("student")
def serving_module_equals_the_main_tower(case: Case) -> None:
    """The serving module is a copy in eval mode that gives the main tower's logits, bit for bit, ever after."""
    made, main = _with_tower(case)
    batch = case.batch(made)
    serving = made.serving_module(main)
    training = [name or "itself" for name, part in serving.named_modules() if part.training]
    case.require(not training, f"has a serving module in training mode: {', '.join(training[:5])}; call eval()")
    case.require(
        made.training and main.training, "is in eval mode once serving_module was called; copy it and leave it alone"
    )
    made.eval(), main.eval()
    with torch.no_grad():
        wanted = _clones(main(made.backbone(batch)))
        found = _clones(serving(**made.inputs(batch)))
        where = moved(wanted, found)
        case.require(not where, f"has a serving module that gives other logits than the main tower: it moves {where}")
        for weight in [*made.parameters(), *main.parameters()]:
            weight.add_(1.0)
        where = moved(found, _clones(serving(**made.inputs(batch))))
    case.require(
        not where, f"has a serving module that changes when training goes on (it moves {where}); copy the weights"
    )


@check("student")
def serving_module_holds_no_auxiliary_tower(case: Case) -> None:
    """Weights of auxiliary towers, which exist in training only, are nowhere in the serving module."""
    made, main = _with_tower(case)
    auxiliary = made.tower()
    if not any(weight.numel() for weight in auxiliary.parameters()):
        raise NotApplicable("its towers have no parameter")
    with torch.no_grad():
        for weight in auxiliary.parameters():
            weight.fill_(MARK)
    held = [name for name, value in _tensors(made.serving_module(main)) if bool((value == MARK).any())]
    case.require(
        not held,
        f"has a serving module that holds an auxiliary tower: {', '.join(held[:5])}; do not keep the towers that "
        "tower() returns",
    )


@check("student")
def auxiliary_tower_is_isolated(case: Case) -> None:
    """What an auxiliary tower learns reaches the served one through the backbone's output alone."""
    made, main = _with_tower(case)
    auxiliary = stir(made.tower().train())
    batch = case.batch(made)
    features = made.backbone(batch)
    loss = _loss(auxiliary(features.detach().requires_grad_()))
    loss.backward()  # type: ignore[no-untyped-call]  # torch ships it without types
    own = {id(weight) for weight in auxiliary.parameters()}
    reached = [name for name, weight in _named(made, main) if id(weight) not in own and weight.grad is not None]
    case.require(
        not reached,
        f"has a tower that uses weights which are not its own: an auxiliary tower trains {', '.join(reached[:5])}; "
        "make them in tower(), or what the teacher says reaches the served logit directly",
    )
    _loss(auxiliary(features)).backward()  # type: ignore[no-untyped-call]  # as above
    touched = [name for name, weight in main.named_parameters() if weight.grad is not None]
    case.require(not touched, f"lets an auxiliary tower's loss reach the main tower: {', '.join(touched[:5])}")
    trained = [weight for weight in made.parameters() if weight.requires_grad]
    case.require(
        not trained or any(weight.grad is not None for weight in trained),
        "cuts its backbone off from the towers: an auxiliary tower's loss reaches no weight of it, so no teacher can "
        "help; leave out detach() and no_grad()",
    )
    before = _answers(made, main, batch)
    made.train(), main.train(), auxiliary.train()
    with torch.no_grad():
        for weight in auxiliary.parameters():
            weight.add_(1.0)
        auxiliary(features.detach())
    where = moved(before, _answers(made, main, batch))
    case.require(not where, f"lets an auxiliary tower move the served logits while the backbone stands: {where}")


@check("student")
def serving_module_exports(case: Case) -> None:
    """``torch.export`` takes the serving module for any number of rows, with equal logits (3 s: it traces)."""
    made, main = _with_tower(case)
    serving = made.serving_module(main)
    batch = case.batch(made)
    inputs = made.inputs(batch)
    rows = {name: {0: torch.export.Dim("rows")} for name in inputs}
    named = with_named_inputs(serving, inputs)
    try:
        program = torch.export.export(named, (), dict(inputs), dynamic_shapes=rows).module()
    except Exception as error:  # torch raises many kinds
        case.fail(
            f"cannot be exported by torch.export for any number of rows: {reason(error)}; encode and tower must not "
            "branch on values or on the number of rows, and must use torch operations alone"
        )
    other = case.batch(made, seed=1)
    for part in (other, other.rows(torch.tensor([5])), other.rows(torch.arange(24).repeat(3))):
        served = made.inputs(part)
        with torch.no_grad():
            where = moved(_clones(serving(**served)), _clones(program(**served)), tolerance=ROUNDING)
        case.require(
            not where,
            f"gives other logits once exported: {len(part)} rows move {where}; something that depends on the rows is a "
            "constant in the graph",
        )


def _with_tower(case: Case) -> tuple[Any, nn.Module]:
    """A student and its main tower, stirred, in training mode."""
    made = stir(case.build())
    main: nn.Module = stir(made.tower())
    return made.train(), main.train()


def _loss(logits: Any) -> Tensor:
    return torch.stack([logit.square().sum() for logit in logits.values()]).sum()


def _named(made: nn.Module, main: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    yield from ((f"backbone {name}", weight) for name, weight in made.named_parameters())
    yield from ((f"main tower {name}", weight) for name, weight in main.named_parameters())


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _answers(made: Any, main: nn.Module, batch: Any) -> Logits:
    made.eval(), main.eval()
    with torch.no_grad():
        return _clones(main(made.backbone(batch)))


def _clones(logits: Any) -> Logits:
    return {task: logit.detach().clone() for task, logit in logits.items()}
