"""The ``labels`` verbs in this process, and small stores and datasets to use them on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_cases import impressions, log
from label_store_cases import DAY, T, open_writer, put

from recdistill_core import cli
from recdistill_core.interfaces import CaptureMode
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_limits import Limits

NO_STORE = "error: there is no label store\n  where: {}\n  to do: give the directory that labels were written to\n"


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    code: int | str | None
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


Shell = Callable[..., Done]


@contextmanager
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """``recdistill labels``, in this process, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "250")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def labels(*words: object) -> Done:
        code: int | str | None = 0
        try:
            cli.main(["labels", *map(str, words)])
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    try:
        yield labels
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def rich_store(path: Path) -> ParquetLogitStore:
    """Two versions of one teacher, the second partly revoked, with values set aside; a third of another task."""
    store = ParquetLogitStore(path, limits=Limits(max_quarantined=0.5))
    for version in ("v1", "v2"):
        with open_writer(store, version, facts={"dataset": "d" * 32, "trained_until": T}) as writer:
            for step in range(2):
                ids = range(10 * step, 10 * step + 10)
                put(writer, ids, [float("nan"), *np.linspace(-2, 2, 9)], step=step)
                writer.commit()
    with open_writer(store, "other", tasks=("like",), mode=CaptureMode.EXTERNAL, facts={}) as writer:
        put(writer, [0, 1], [-1.0, 1.0], task="like")
        writer.commit()
    with open_writer(store, "other", tasks=("like",), mode=CaptureMode.EXTERNAL, facts={}) as writer:
        put(writer, [1], [1.0], task="like")
        writer.commit()
    store.revoke("v2", reason="diverged", since=T + 1)
    return store


def six_days(path: Path) -> ParquetSource:
    """A dataset of six impressions, one a day at noon from 2023-11-15 on; ``click`` is not observed in the third."""
    noon = T - T % DAY + DAY + DAY // 2
    write_dataset(log(impressions(event_time=[noon + DAY * day for day in range(6)])), path)
    return ParquetSource(path)
