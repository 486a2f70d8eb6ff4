"""Simulated logs with a known bias and a known truth, for the checks of debiasers. Everything is seeded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.schema import Schema
from recdistill_core.testing.samples import sample_batch

#: P(seen | position) where clicks are seen times liked; its logarithm is the bias where effects add up in the logit.
SEEN = torch.tensor([1.0, 0.45, 0.25, 0.15, 0.1], dtype=torch.float64)
#: Rows per batch that ``fit`` is handed.
PART = 2048


@dataclass(frozen=True)
class Log:
    """Rows of a biased log, every label observed.

    Attributes:
        batch: the rows; ``item_id`` counts from 1.
        item: ``[N]`` int64 in ``[0, items)``. label: ``[N]`` float32 of 0 and 1.
        truth: what an unbiased estimate comes to: the population's rate ``[]``, or logits ``[items]``.
    """

    batch: Batch
    item: Tensor
    label: Tensor
    truth: Tensor

    def parts(self) -> list[Batch]:
        """The rows in batches."""
        count = len(self.batch)
        return [self.batch.rows(torch.arange(at, min(at + PART, count))) for at in range(0, count, PART)]


def _log(schema: Schema, item: Tensor, label: Tensor, truth: Tensor) -> Log:
    batch = sample_batch(schema, rows=len(item))
    batch = replace(
        batch,
        item_id=item + 1,
        labels=dict.fromkeys(schema.tasks, label.float()),
        observed=dict.fromkeys(schema.tasks, torch.ones(len(item), dtype=torch.bool)),
    )
    return Log(batch, item, label.float(), truth)


def _happens(probability: Tensor, draw: torch.Generator) -> Tensor:
    return torch.rand(probability.shape, generator=draw, dtype=torch.float64) < probability


def shown_by_relevance(schema: Schema, candidates: int = 30_000) -> Log:
    """Of ``candidates``, those that are liked more are shown more often, with known propensities of 0.25 to 0.95."""
    draw = torch.Generator().manual_seed(3)
    liked = torch.sigmoid(torch.randn(candidates, generator=draw, dtype=torch.float64) - 1.0)
    propensity = (0.15 + 0.9 * liked).clamp(0.25, 0.95)
    label = _happens(liked, draw)
    shown = _happens(propensity, draw)
    log = _log(schema, torch.arange(candidates)[shown] % 8, label[shown], liked.mean())
    return replace(log, batch=replace(log.batch, propensity=propensity[shown].float()))


def sampled(schema: Schema, task: str, *, fake_negatives: bool, impressions: int = 8_000) -> Log:
    """``impressions`` of each of 6 items, of which positives and negatives are kept with the schema's rates.

    Args:
        schema: gives the keep rates. task: whose rates.
        fake_negatives: every impression is logged as a negative and each positive again as a positive, and then kept
            or not; else each is logged once.
        impressions: per item.
    """
    draw = torch.Generator().manual_seed(4)
    truth = torch.linspace(-3.0, 0.5, 6, dtype=torch.float64)
    item = torch.arange(6).repeat_interleave(impressions)
    click = _happens(torch.sigmoid(truth)[item], draw)
    rates = schema.keep_rates[task]
    positive = click & _happens(torch.full(item.shape, rates.positive), draw)
    negative = (~click | fake_negatives) & _happens(torch.full(item.shape, rates.negative), draw)
    items = torch.cat([item[positive], item[negative]])
    label = torch.cat([torch.ones(int(positive.sum())), torch.zeros(int(negative.sum()))])
    order = torch.randperm(len(items), generator=draw)
    return _log(schema, items[order], label[order], truth)


def placed(schema: Schema, *, product: bool, rows: int = 16_000) -> Log:
    """Items that are liked more stand higher; what stands lower is clicked less, whoever it is.

    Args:
        schema: of the rows. product: P(click) = P(seen | position) * P(liked); else the position adds to the logit.
        rows: how many.
    """
    draw = torch.Generator().manual_seed(5)
    truth = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
    item = torch.arange(rows) % 8
    home = (7 - item) * len(SEEN) // 8
    near = torch.softmax(-(torch.arange(len(SEEN)) - home[:, None]).abs().double(), dim=1)
    position = torch.multinomial(near, 1, generator=draw)[:, 0]
    label = _happens(click_rate(truth, SEEN.log(), product)[item, position], draw)
    log = _log(schema, item, label, truth)
    return replace(log, batch=replace(log.batch, position=position))


def click_rate(logit: Tensor, bias: Tensor, product: bool) -> Tensor:
    """``[items, positions]`` click probabilities of item logits ``[items]`` and position effects ``[positions]``."""
    if product:
        return torch.sigmoid(logit)[:, None] * bias.exp()
    return torch.sigmoid(logit[:, None] + bias)


def gap_error(log: Log, product: bool) -> float:
    """Standard error of the best estimate of :func:`gap` from this log, by the Fisher information at the truth."""
    items, places = len(log.truth), len(SEEN)
    assert log.batch.position is not None
    cell = log.item * places + log.batch.position
    count = torch.bincount(cell, minlength=items * places).double()

    def rates(unknown: Tensor) -> Tensor:
        bias = torch.cat([torch.zeros(1, dtype=torch.float64), unknown[items:]])  # that of the top is 0 by convention
        return click_rate(unknown[:items], bias, product).flatten()

    known = torch.cat([log.truth, SEEN[1:].log()])
    slope, rate = torch.func.jacrev(rates)(known), rates(known)
    information = slope.T @ (slope * (count / (rate * (1 - rate)))[:, None])
    covariance = torch.linalg.inv(information)[:items, :items]
    contrast = gap(torch.eye(items, dtype=torch.float64))
    return math.sqrt(float(contrast @ covariance @ contrast))


def gap(logit: Tensor) -> Tensor:
    """Mean of the better half's logits minus that of the worse half, over the last axis; levels cancel."""
    half = logit.shape[-1] // 2
    return logit[..., half:].mean(-1) - logit[..., :half].mean(-1)
