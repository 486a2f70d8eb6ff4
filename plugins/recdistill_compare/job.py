"""The comparison: every row's eta, paired differences against one row, and which row is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from recdistill_compare.multiple import BEST, HIGHEST, NO_RESULT, NOT_SEPARATED, Pair, holm, verdicts
from recdistill_compare.naming import differences
from recdistill_compare.read import Row, Runs, read_runs
from recdistill_core.config import make
from recdistill_core.errors import UsageError
from recdistill_core.interfaces import Metric
from recdistill_core.registry import installed
from recdistill_pipeline.evaluate import BOOTSTRAP_SEED
from recdistill_pipeline.statistics import GAIN, GAIN_DISTILL, Eta, eta_samples, summarise
from recdistill_pipeline.statistics_bootstrap import SIDES, Draws, draw
from recdistill_pipeline.statistics_ratio import p_value, quantiles

#: (what is done, resamples done, resamples in all)
Progress = Callable[[str, int, int], None]
NO_ETA = "undefined: one of the two has no interval of eta"


def compare_runs(
    paths: Sequence[Path],
    *,
    metrics: Sequence[str] = (),
    against: str = "",
    resamples: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Compare the students of finished runs.

    Users are resampled once for all runs, and seeds are weighted alike, so that what the runs share cancels.

    Args:
        paths: run directories. metrics: of the first run's ``evaluation.metrics``; empty: all of them.
        against: name of a row, or path or folder of a run with one student; empty: the first row.
        resamples: at least 100; None: as in the first run, whose confidence is used, too.

    Returns:
        JSON-able: ``rows`` (what is compared), ``metrics`` (``{name: result}``), ``verdicts`` (``{name: sentence}``).

    Raises:
        UsageError: for runs that cannot be paired, an unknown metric or row, or too few resamples.
        DataError, IntegrityError: see :func:`recdistill_compare.read.read_runs`.
    """
    runs = read_runs(paths)
    evaluation = runs.config["evaluation"]
    resamples = evaluation["resamples"] if resamples is None else resamples
    if resamples < 100:
        raise UsageError(f"resamples must be at least 100, got {resamples}", where="--resamples", fix="1000 is usual")
    chosen = _metrics(evaluation["metrics"], metrics)
    reference = _place(runs.rows, against)
    found = {
        name: _of_metric(runs, metric, reference, resamples, evaluation["confidence"], partial(progress, name))
        for name, metric in chosen.items()
    }
    return {
        "task": runs.task,
        "seeds": runs.seeds,
        "test_rows": len(runs.label),
        "test_users": len(np.unique(runs.user)),
        "confidence": evaluation["confidence"],
        "resamples": resamples,
        "against": runs.rows[reference].name,
        "rows": [
            {
                "name": row.name,
                "run": str(row.run),
                "student": row.student,
                "capture": row.capture,
                "channel": row.channel,
                "embeddings": row.embeddings,
                "sizes": dict(row.sizes),
                "differs": differs,
            }
            for row, differs in zip(runs.rows, differences([row.settings for row in runs.rows]), strict=True)
        ],
        "metrics": found,
        "verdicts": {name: _sentence(name, result) for name, result in found.items()},
    }


def _metrics(specs: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> dict[str, Metric]:
    """The metrics of a configuration that are wanted, by their short names."""
    known = {str(spec["name"]).rpartition(":")[2]: spec for spec in specs}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(
            f"the first run has no eta of metric {unknown[0]!r}",
            where="--metric",
            fix=f"one of its evaluation.metrics: {', '.join(known)}",
        )
    return {name: make(installed(), "metric", known[name]) for name in wanted or known}


def _place(rows: Sequence[Row], wanted: str) -> int:
    if not wanted:
        return 0
    named = [at for at, row in enumerate(rows) if row.name == wanted]
    named = named or [at for at, row in enumerate(rows) if wanted in (str(row.run), row.run.resolve().name)]
    if len(named) != 1:
        raise UsageError(
            f"{len(named) or 'no'} rows are meant by {wanted!r}",
            where="--against",
            fix=f"name one of: {'; '.join(row.name for row in rows)}",
        )
    return named[0]


def _of_metric(
    runs: Runs, metric: Metric, reference: int, resamples: int, confidence: float, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    models = [row.logits[side] for row in runs.rows for side in SIDES]
    draws = draw(metric, runs.label, runs.user, models, resamples, BOOTSTRAP_SEED, True, tell)
    sign = 1.0 if metric.higher_is_better else -1.0
    etas = [summarise(draws.of(_models(at)), sign, confidence) for at in range(len(runs.rows))]
    values = [None if eta.distilled.value is None else sign * eta.distilled.value for eta in etas]
    values = [value if row.is_result else None for value, row in zip(values, runs.rows, strict=True)]
    defined = [at for at, value in enumerate(values) if value is not None]
    pairs = {pair: _difference(draws, sign, *pair, confidence) for pair in combinations(defined, 2)}
    adjusted = _adjusted(pairs)
    said = verdicts(values, adjusted, 1 - confidence)
    said = [word if row.is_result else NO_RESULT for word, row in zip(said, runs.rows, strict=True)]
    held = {at: _against(draws, sign, at, reference, etas, confidence) for at in range(len(etas)) if at != reference}
    # the comparisons with one row are a question of their own, with fewer comparisons than all pairs
    corrected = dict(zip(held, holm([_p(entry["distilled"]) for entry in held.values()]), strict=True))
    rows = [
        {
            "name": row.name,
            **{key: asdict(eta)[key] for key in (*SIDES, "gain", "gain_distill", "fieller")},
            "eta": {"value": eta.value, "low": eta.low, "high": eta.high, "note": eta.note},
            "against": None if at == reference else {**held[at], "p_holm": corrected[at]},
            "verdict": said[at],
        }
        for at, (row, eta) in enumerate(zip(runs.rows, etas, strict=True))
    ]
    return {
        "higher_is_better": bool(metric.higher_is_better),
        "undefined_resamples": draws.undefined,
        "rows": rows,
        "pairs": [
            {"row": runs.rows[a].name, "other": runs.rows[b].name, **entry, "p_holm": adjusted[a, b]}
            for (a, b), entry in pairs.items()
        ],
        "best": next((runs.rows[at].name for at, word in enumerate(said) if word == BEST), None),
    }


def _models(row: int) -> list[int]:
    return [len(SIDES) * row + side for side in range(len(SIDES))]


def _p(entry: Mapping[str, Any]) -> float:
    return 1.0 if entry["p"] is None else float(entry["p"])


def _adjusted(pairs: Mapping[Pair, Mapping[str, Any]]) -> dict[Pair, float]:
    return dict(zip(pairs, holm([_p(entry) for entry in pairs.values()]), strict=True))


def _difference(draws: Draws, sign: float, one: int, two: int, confidence: float) -> dict[str, float | None]:
    """How much better the distilled student of one row is than that of another: interval and p-value, uncorrected."""
    two_models = draws.of([_models(one)[2], _models(two)[2]])
    contrast = sign * np.array([1.0, -1.0])
    value = float(contrast @ two_models.values())
    if not np.isfinite(value) or len(two_models.samples) < 2:
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None, "p": None}
    spread = two_models.spread(contrast)
    low, high = quantiles(two_models.means(spread.share) @ contrast, confidence)
    p = p_value(value, spread.users, spread.seeds, draws.seeds - 1)
    return {"value": value, "low": low, "high": high, "p": p}


def _against(
    draws: Draws, sign: float, at: int, reference: int, etas: Sequence[Eta], confidence: float
) -> dict[str, Any]:
    return {
        "distilled": _difference(draws, sign, at, reference, confidence),
        "eta": _eta_difference(draws, sign, at, reference, etas, confidence),
    }


def _eta_difference(
    draws: Draws, sign: float, at: int, reference: int, etas: Sequence[Eta], confidence: float
) -> dict[str, Any]:
    one, two = etas[at], etas[reference]
    if one.value is None or two.value is None or one.low is None or two.low is None:
        return {"value": None, "low": None, "high": None, "note": NO_ETA}
    both = draws.of([*_models(at), *_models(reference)])
    # the difference of the ratios to first order: its spread tells how much of the users' variance to keep
    slopes = [
        sign * (GAIN_DISTILL - eta * GAIN) / gain
        for eta, gain in ((one.value, one.gain.value), (two.value, two.gain.value))
        if gain is not None
    ]
    share = both.spread(np.concatenate([slopes[0], -slopes[1]])).share
    with np.errstate(invalid="ignore"):
        samples = eta_samples(both.of([0, 1, 2]), sign, share) - eta_samples(both.of([3, 4, 5]), sign, share)
    samples = samples[~np.isnan(samples)]  # both beyond any bound on one side: they say nothing
    low, high = quantiles(samples, confidence)
    if not np.isfinite([low, high]).all():
        return {"value": one.value - two.value, "low": None, "high": None, "note": NO_ETA}
    return {"value": one.value - two.value, "low": low, "high": high, "note": ""}


def _sentence(name: str, result: Mapping[str, Any]) -> str:
    rows = {row["name"]: row["verdict"] for row in result["rows"] if row["verdict"] != NO_RESULT}
    if result["best"] is not None:
        return f"{name.upper()}: {result['best']} is best; it beats every other row after Holm's correction"
    top = next((row for row, word in rows.items() if word == HIGHEST), None)
    if top is None:
        return f"{name.upper()}: there is nothing to choose between"
    count = sum(word == NOT_SEPARATED for word in rows.values())
    return f"{name.upper()}: no row is best; {top} is highest, {count} of {len(rows) - 1} others not separated from it"
