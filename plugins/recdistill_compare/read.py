"""Finished runs as rows of a table: predictions of every model on the same test examples, and what a row came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_compare.naming import names, settings_of
from recdistill_core.config import load_yaml, make
from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.interfaces import SampleSource
from recdistill_core.registry import installed
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.report import LOGITS_ALONE
from recdistill_pipeline.rundir import config_of, read_json
from recdistill_pipeline.shared import dataset_home
from recdistill_pipeline.statistics_bootstrap import SIDES

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A student of a run.

    Attributes:
        name: unlike that of any other row. run: its directory. student: its label in the run.
        settings: ``{key.path: value}`` of what it came from. capture: how its labels came to be.
        logits: ``{side: [one [N] array per seed]}`` in the order of :attr:`Runs.example_id`.
        sizes: parameters of ``teacher`` (None where it was not trained here) and ``student``, and label ``coverage``.
        channel: what passed from the teacher to it.
        embeddings: when the teacher's embeddings that it learnt from were taken; empty: it learnt from none.
    """

    name: str
    run: Path
    student: str
    settings: Mapping[str, Any]
    capture: str
    logits: Mapping[str, list[Floats]]
    sizes: Mapping[str, float | None]
    channel: str = LOGITS_ALONE
    embeddings: str = ""

    @property
    def is_result(self) -> bool:
        """False where labels of its rows had reached what was distilled."""
        return self.capture != "leaky" and self.embeddings != "end"


@dataclass(frozen=True)
class Runs:
    """What is compared.

    Attributes:
        rows: in the order of the runs. seeds: of every run.
        example_id: ``[N]`` test examples, rising. label: ``[N]`` of 0 and 1. user: ``[N]`` ids.
        task: that is evaluated. config: of the first run.
    """

    rows: list[Row]
    seeds: list[int]
    example_id: NDArray[np.int64]
    label: Floats
    user: NDArray[np.int64]
    task: str
    config: Mapping[str, Any]


@dataclass
class _Reader:
    """Reads predictions; equal ones, such as those of one teacher in many runs, are kept once."""

    example_id: NDArray[np.int64] | None = None
    first: Path | None = None
    kept: dict[bytes, Floats] = field(default_factory=dict)

    def logits(self, run: Path, name: str) -> Floats:
        path = run / "predictions" / f"{name}.parquet"
        if not path.exists():
            raise IntegrityError("a run's predictions are absent", where=str(path), fix=f"recdistill evaluate {run}")
        table = pq.read_table(path)
        ids, logit = table["example_id"].to_numpy(), table["logit"].to_numpy().astype(np.float64)
        order = np.argsort(ids, kind="stable")
        ids, logit = ids[order], logit[order]
        if self.example_id is None or self.first is None:
            self.example_id, self.first = ids, run
        _require_same_rows(self.first, self.example_id, run, ids)
        return self.kept.setdefault(logit.tobytes(), logit)


def read_runs(paths: Sequence[Path]) -> Runs:
    """Read finished runs and make sure that they can be paired.

    Raises:
        UsageError: for a directory that is no evaluated run, one named twice, or runs with other tasks, seeds,
            datasets or test rows. DataError: if the dataset is gone. IntegrityError: for damaged or absent files.
    """
    for at, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:at]]:
            raise UsageError("a run is named twice", where=str(path), fix="name every run once")
    configs = [load_yaml(config_of(path)) for path in paths]
    for path in paths:
        if not (path / "metrics.json").exists():
            raise UsageError("the run is not evaluated yet", where=str(path), fix=f"recdistill evaluate {path}")
    results = [read_json(path / "metrics.json") for path in paths]
    manifests = [read_json(path / "manifest.json") for path in paths]
    first = configs[0]
    for path, config, manifest in zip(paths[1:], configs[1:], manifests[1:], strict=True):
        _require_same("task", first["task"], config["task"], paths[0], path)
        _require_same("seeds", sorted(first["seeds"]), sorted(config["seeds"]), paths[0], path)
        _require_same("dataset", manifests[0]["dataset"], manifest["dataset"], paths[0], path)
    reader = _Reader()
    found = [
        (path, at, label, config, result, _sides(reader, path, label, first["seeds"]))
        for path, config, result in zip(paths, configs, results, strict=True)
        for at, label in enumerate(result["students"])
    ]
    settings = [settings_of(config, at) for _, at, _, config, _, _ in found]
    several = any(len(result["students"]) > 1 for result in results)
    places = [f"{place}, {label}" if several else place for place, label in _places(paths, found)]
    rows = [
        Row(
            name,
            path,
            label,
            plain,
            result["capture"],
            logits,
            _sizes(result, label),
            _channel(result),
            result.get("embeddings", ""),
        )
        for name, plain, (path, _, label, _, result, logits) in zip(
            names(settings, places), settings, found, strict=True
        )
    ]
    assert reader.example_id is not None
    label, user = _outcomes(paths, configs, manifests[0]["dataset"], first["task"], reader.example_id)
    return Runs(rows, list(first["seeds"]), reader.example_id, label, user, first["task"], first)


def _channel(result: Mapping[str, Any]) -> str:
    return str(result.get("channel", LOGITS_ALONE))  # earlier runs do not say it


def _places(paths: Sequence[Path], found: Sequence[Any]) -> list[tuple[str, str]]:
    """``(folder, student)`` of each row; the whole path where two runs lie in folders of one name."""
    last = [path.resolve().name for path in paths]
    shown = dict(zip(paths, last if len(set(last)) == len(last) else map(str, paths), strict=True))
    return [(shown[path], label) for path, _, label, *_ in found]


def _sides(reader: _Reader, run: Path, label: str, seeds: Sequence[int]) -> dict[str, list[Floats]]:
    steps = {"raw": f"{label}-raw", "teacher": "teacher", "distilled": f"{label}-distilled"}
    return {side: [reader.logits(run, f"seed-{seed}-{steps[side]}") for seed in seeds] for side in SIDES}


def _sizes(result: Mapping[str, Any], label: str) -> dict[str, float | None]:
    cost = result["students"][label]["cost"]
    return {
        "teacher": cost["teacher"]["parameters"],
        "student": cost["student"]["parameters"],
        "coverage": result["data"]["coverage"].get(label),
    }


def _home(path: Path, config: Mapping[str, Any]) -> Path:
    """Where a run's dataset is; that of a sweep is shared."""
    if config.get("shared"):
        return dataset_home(make_plan(config, installed()), path)
    return Path(config["dataset"]["path"] or path / "dataset")


def _outcomes(
    paths: Sequence[Path],
    configs: Sequence[Mapping[str, Any]],
    snapshot: str,
    task: str,
    example_id: NDArray[np.int64],
) -> tuple[Floats, NDArray[np.int64]]:
    """Labels and users of the test examples, from the first of the runs' datasets that is still there."""
    homes = [_home(path, config) for path, config in zip(paths, configs, strict=True)]
    for home, config in zip(homes, configs, strict=True):
        if (home / "manifest.json").exists():
            spec = {**config["dataset"]["source"], "path": str(home)}
            source: SampleSource = make(installed(), "source", spec)
            if source.snapshot_id != snapshot:
                raise UsageError(
                    f"the dataset is another one than the runs were made from: {snapshot} -> {source.snapshot_id}",
                    where=str(home),
                    fix="bring the earlier dataset back",
                )
            place = _rows_of(source.column("example_id"), example_id, home)
            return source.column(f"label_{task}")[place].astype(np.float64), source.column("user_id")[place]
    raise DataError(
        "the dataset of the runs is gone, and with it the labels of the test rows",
        where=", ".join(str(home) for home in dict.fromkeys(homes)),
        fix="bring it back, or start in the folder that relative paths in config.yaml start from",
    )


def _rows_of(ids: NDArray[np.int64], wanted: NDArray[np.int64], home: Path) -> NDArray[np.intp]:
    order = np.argsort(ids, kind="stable")
    place = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    if not np.array_equal(ids[place], wanted):
        raise IntegrityError(
            f"{int((ids[place] != wanted).sum())} of {len(wanted)} predicted examples are not in the dataset",
            where=str(home),
            fix="evaluate the run again",
        )
    return place


def _require_same(what: str, first: Any, other: Any, one: Path, two: Path) -> None:
    if first != other:
        raise UsageError(
            f"the runs cannot be paired, their {what} differ{'' if what.endswith('s') else 's'}: {first} and {other}",
            where=f"{one} and {two}",
            fix="compare runs of one dataset, task, split and the same seeds",
        )


def _require_same_rows(first: Path, one: NDArray[np.int64], run: Path, two: NDArray[np.int64]) -> None:
    if np.array_equal(one, two):
        return
    both = len(np.intersect1d(one, two))
    raise UsageError(
        f"the runs cannot be paired, their test rows differ: {len(one):,} and {len(two):,} examples, {both:,} in both",
        where=f"{first} and {run}",
        fix="compare runs with the same split.test_from and split.test_until",
    )
