"""Features that only the teacher reads: which ones may be named, and what each tells of a label by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import ConfigError, LeakError, Problem, suggest
from recdistill_core.interfaces import SampleSource
from recdistill_core.schema import Schema
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.statistics import auc_of

#: A feature whose AUC alone reaches it is the label under another name, and refused.
IS_THE_LABEL = 0.98
#: A feature beyond it is told of.
NEAR_THE_LABEL = 0.9
#: Parts of about equal size that a numeric feature's values are cut into.
BINS = 64
READ_ROWS = 65_536
Told = dict[str, dict[str, float | None]]
Work = Callable[..., Mapping[str, Any]]


def require_privileged(plan: Plan, schema: Schema) -> None:
    """Raise ConfigError for privileged features that the dataset lacks, or that students cannot be without."""
    items = [entry.name for entry in schema.categorical if entry.vocabulary == schema.item_vocabulary]
    known = [*(entry.name for entry in schema.categorical), *schema.numeric]
    problems = []
    if plan.config.privileged and "shown" in schema.gives:
        told = "the log holds rows that were not shown, and nobody knows what would have followed their showing"
        problems.append(Problem("privileged", f"{told}; leave it empty, or import the log without these rows"))
    for at, name in enumerate(plan.config.privileged):
        if name not in known:
            found = f"the dataset has no feature {name!r}{suggest(name, known)}; it has {', '.join(known) or 'none'}"
            problems.append(Problem(f"privileged[{at}]", found))
        elif name in items:
            told = f"{name!r} is the item itself, which is known when a student serves; name what is not"
            problems.append(Problem(f"privileged[{at}]", told))
    if not problems and not schema.events and set(known) <= set(plan.config.privileged):
        problems.append(Problem("privileged", "it leaves the students no feature, and the dataset has no history"))
    if problems:
        raise ConfigError(problems)


def what_they_tell(plan: Plan, source: SampleSource, rows: tuple[int, int], say: Callable[[str], None]) -> Told:
    """``{feature: {task: AUC}}`` of each privileged feature alone, on the row positions ``[first, last + 1)``.

    Args:
        plan: names the features and tasks. source: the whole dataset. rows: the teacher's training rows.
        say: told of features that come near a label.

    Raises:
        LeakError: for a feature that is the label.
    """
    if not plan.config.privileged:
        return {}
    tasks = plan.config.all_tasks()
    columns, labels, user = _read(source, plan.config.privileged, tasks, rows)
    numeric = set(source.schema.numeric)
    found: Told = {
        name: {task: auc_alone(columns[name], label, user, numeric=name in numeric) for task, label in labels.items()}
        for name in plan.config.privileged
    }
    for name, told in found.items():
        for task, auc in told.items():
            if auc is not None and auc >= IS_THE_LABEL:
                raise LeakError(
                    f"privileged feature {name!r} alone tells the label of task {task!r} with an AUC of {auc:.3f}: it "
                    "is the label by another name, and the teacher's logits would be no more than a copy of it",
                    where=f"privileged; {rows[1] - rows[0]:,} training rows",
                    fix="import the log without this column, or coarsen it until it says less than the outcome",
                )
            if auc is not None and auc > NEAR_THE_LABEL:
                say(
                    f"privileged feature {name} alone tells the label of task {task} with an AUC of {auc:.3f}: if it "
                    "is a part of the outcome, the teacher's logits are little else, and students learn nothing new"
                )
    return found


def noting(told: Told, work: Work) -> Work:
    """``work`` of a step whose facts have ``told`` under ``privileged``, where there is any."""
    return (lambda *given, **named: {**work(*given, **named), "privileged": told}) if told else work


def auc_alone(
    value: NDArray[Any], label: NDArray[np.float64], user: NDArray[np.int64], *, numeric: bool
) -> float | None:
    """How well one feature orders the rows by their label: 0.5 for not at all, 1 for perfectly.

    The rate of positives of each value is estimated on one half of the users and scores the other half, and the other
    way round; the mean of both. For a numeric feature this is done with its values as they are and cut into parts, and
    its own order, in either direction, is taken where it tells more.

    Args:
        value: ``[N]``. label: ``[N]`` of 0 and 1, NaN where not observed. user: ``[N]`` ids.
        numeric: whether the values have an order.

    Returns:
        None where it cannot be told: one class of labels, or one user.
    """
    seen = ~np.isnan(label)
    value, label, user = value[seen], label[seen], user[seen]
    if not 0 < label.sum() < label.size:
        return None
    if not numeric:
        return _by_rate(value, label, user)
    rising = auc_of(value, label)
    edges = np.unique(np.quantile(value, np.linspace(0, 1, BINS + 1)[1:-1]))
    by_rate = _by_rate(np.searchsorted(edges, value, side="right"), label, user)
    by_value = _by_rate(value, label, user)  # codes that are stored as numbers
    return max(rising, 1.0 - rising, by_rate or 0.0, by_value or 0.0)


def _by_rate(value: NDArray[Any], label: NDArray[np.float64], user: NDArray[np.int64]) -> float | None:
    """AUC of rates by value, each half of the users scored with the rates of the other."""
    users, who = np.unique(user, return_inverse=True)
    half = (np.random.default_rng(0).permutation(users.size) % 2)[who] == 0
    values, place = np.unique(value, return_inverse=True)
    found = []
    for known in (half, ~half):
        if not (known.any() and 0 < label[~known].sum() < label[~known].size):
            continue
        count = np.bincount(place[known], minlength=values.size)
        positive = np.bincount(place[known], label[known], minlength=values.size)
        rate = (positive + label[known].mean()) / (count + 1)  # a value that this half lacks has the mean
        found.append(auc_of(rate[place[~known]], label[~known]))
    return float(np.mean(found)) if found else None


def _read(
    source: SampleSource, names: Sequence[str], tasks: Sequence[str], rows: tuple[int, int]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """``{feature: [N]}``, ``{task: [N]}`` labels with NaN where not observed, and ``[N]`` users."""
    categorical = [entry.name for entry in source.schema.categorical]
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    labels: dict[str, list[NDArray[np.float64]]] = {task: [] for task in tasks}
    user = []
    for first in range(rows[0], rows[1], READ_ROWS):
        batch = source.batch(np.arange(first, min(first + READ_ROWS, rows[1])), None)
        for name in names:
            table = batch.categorical if name in categorical else batch.numeric
            order: Sequence[str] = categorical if name in categorical else source.schema.numeric
            columns[name].append(table[:, order.index(name)].numpy())
        for task in tasks:
            label = batch.labels[task].double().numpy()
            labels[task].append(np.where(batch.observed[task].numpy(), label, np.nan))
        user.append(batch.user_id.numpy())
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return joined, {task: np.concatenate(parts) for task, parts in labels.items()}, np.concatenate(user)
