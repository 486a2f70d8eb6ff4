"""The training loop: sequences in seeded order, one draw of negatives per step, the same bits for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from recdistill_core.errors import DataError
from recdistill_gpsd.leave_one_out import rank_held_out
from recdistill_gpsd.model import NextEvent
from recdistill_gpsd.negatives import Drawing, popularity
from recdistill_gpsd.progress import Epoch, Progress
from recdistill_gpsd.ranking import as_plain, summarise
from recdistill_gpsd.sequences import Ints, Sequences

Tell = Callable[[str, int, int], None]


def train(
    model: NextEvent,
    sequences: Sequences,
    occurrences: Mapping[str, Ints],
    tell: Tell = lambda what, done, of: None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Epoch]:
    """Train in place, on the device where the model is, and return what each pass gave.

    Args:
        model: to be trained. sequences: of the events before the cutoff.
        occurrences: ``{field: [size]}`` of the predicted fields, for drawing by popularity.
        tell: told how far an epoch is.
        progress: where to note each epoch; what it holds of this job already is taken up. None: nowhere.
        say: told where an interrupted training goes on.

    Raises:
        UsageError: if ``progress`` is of another job.
        DataError: if the loss is NaN or infinite.
    """
    config, device = model.config, model.tokens.table.weight.device
    drawing = {field: _drawing(model, field, occurrences) for field in model.fields}
    places, counts = sequences.windows(model.teacher.max_length, config.windows == "newest")
    steps = -(-len(places) // config.batch_users)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    draws = torch.Generator().manual_seed(config.seed)
    found = progress.restore(model, optimiser, draws) if progress else []
    if found:
        say(f"going on after epoch {len(found)} of {config.epochs}")
    model.train()
    for number in range(len(found) + 1, config.epochs + 1):
        total: dict[str, float] = dict.fromkeys(model.fields, 0.0)
        targets = dict.fromkeys(model.fields, 0)
        for step, chosen in enumerate(_order(len(places), config.batch_users, config.seed, number)):
            rise = ((number - 1) * steps + step + 1) / max(1, config.warmup_steps)
            optimiser.param_groups[0]["lr"] = config.lr * min(1.0, rise)
            losses = _losses(model, sequences, places[chosen], counts[chosen], drawing, draws, device)
            loss = _reduced(losses, config.field_weight)
            if not math.isfinite(float(loss.detach())):
                raise DataError(
                    f"the loss is NaN or infinite in epoch {number}, step {step + 1}",
                    where="teacher pretrain",
                    fix="lower pretrain.lr, or raise pretrain.temperature",
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it without types
            optimiser.step()
            for field, values in losses.items():
                total[field] += float(values.detach().sum())
                targets[field] += len(values)
            tell(f"epoch {number} of {config.epochs}", step + 1, steps)
        mean = {field: total[field] / max(1, targets[field]) for field in model.fields}
        due = config.holdout and config.evaluate_every and number % config.evaluate_every == 0
        ranked = as_plain(summarise(rank_held_out(model, sequences, config.holdout).rank)) if due else None
        found.append(Epoch(number, mean, ranked))
        if progress and number < config.epochs:
            progress.save(model, optimiser, draws, found)
    return found


def _order(count: int, size: int, seed: int, epoch: int) -> Iterator[Ints]:
    """Positions of the pieces of each batch, in an order of the seed and the epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for first in range(0, count, size):
        yield order[first : first + size]


def _losses(
    model: NextEvent,
    sequences: Sequences,
    places: Ints,
    counts: Ints,
    drawing: Mapping[str, Drawing],
    draws: torch.Generator,
    device: torch.device,
) -> dict[str, Tensor]:
    """``{field: [M]}``: every event but a piece's first is a target, every event but its last an input."""
    events = sequences.source.events(places, counts)
    ends = np.cumsum(counts)
    newest, first = np.zeros(len(events["time"]), np.bool_), np.zeros(len(events["time"]), np.bool_)
    newest[ends - 1], first[ends - counts] = True, True
    inputs = {name: torch.from_numpy(column[~newest]).to(device) for name, column in events.items()}
    target = {name: torch.from_numpy(events[name][~first]).to(device) for name in model.fields}
    state = model(inputs, torch.from_numpy(counts - 1).to(device))
    count = model.config.negatives
    shape = (count,) if model.config.negatives_per == "batch" else (len(target["item"]), count)
    negative = {field: drawing[field].draw(shape, draws).to(device) for field in model.fields}
    return model.losses(state, target, negative, drawing)


def _reduced(losses: Mapping[str, Tensor], weight: float) -> Tensor:
    """Scalar: the mean over targets of the item's loss, and of each further field's times ``weight``."""
    parts = [
        values.sum() / max(1, len(values)) * (1.0 if at == 0 else weight) for at, values in enumerate(losses.values())
    ]
    return torch.stack(parts).sum()


def _drawing(model: NextEvent, field: str, occurrences: Mapping[str, Ints]) -> Drawing:
    size = len(model.table(field))
    if size - 1 <= model.config.negatives:
        return Drawing(size, every=True)
    if model.config.negatives_from == "popularity":
        return popularity(torch.from_numpy(occurrences[field]))
    return Drawing(size)
