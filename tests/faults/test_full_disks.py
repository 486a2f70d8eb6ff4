"""Disks that are full or fill up: what was committed stays, and gc makes room."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage_cases import COUNT, IDS, append, logit

from recdistill_core.labels import CaptureMode
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Severity
from recdistill_parquet.labels_writer import ParquetLabelWriter


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte; where none may be mounted, the test says so by the name of its folder."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        yield tmp_path / "limited"
        return
    try:
        yield place / "store"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


class _Rationed:
    """``os.write`` on a disk with so many bytes left; for where no small file system can be mounted."""

    def __init__(self, left: int) -> None:
        self.left, self.real = left, os.write

    def __call__(self, handle: int, content: Any) -> int:
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self.real(handle, bytes(content)[: self.left])
        self.left -= done
        return done


def test_a_full_disk_loses_nothing_and_gc_makes_room(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ParquetLogitStore(full_disk, 2000)
    append(store, "v1", 0, COUNT)
    rng = np.random.default_rng(0)
    writer = store.writer("v1", tasks=["click"], mode=CaptureMode.PREQUENTIAL, view="v", facts={"x": 1})
    if full_disk.name == "limited":
        monkeypatch.setattr(os, "write", _Rationed(300_000))

    def fill(writer: ParquetLabelWriter) -> None:
        for _ in range(100):
            ids = torch.from_numpy(rng.integers(2**40, 2**60, 2000))
            writer.append(ids, {"click": torch.from_numpy(rng.normal(size=2000))}, step=1, scored_at=1)

    with pytest.raises(OSError, match="No space left on device"):
        fill(writer)
    del writer  # its process died of it
    monkeypatch.undo()
    assert store.versions()[0].count == COUNT
    assert ParquetLogitStore(full_disk).read("v1", IDS).logits["click"].tolist() == [logit(key) for key in range(COUNT)]
    assert [finding for finding in store.verify() if finding.severity is Severity.ERROR] == []
    assert store.gc(0).bytes > 200_000
    assert append(store, "v1", COUNT, COUNT + 50).count == COUNT + 50


def test_a_disk_that_fills_at_any_moment_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may write so many bytes to a file and no more: at each limit it fails, or commits everything."""
    outcomes = set()
    for limit in (0, 50, 150, 500, 1000, 1500, 2000, 5000):
        place = tmp_path / str(limit)
        append(ParquetLogitStore(place, 100), "v1", 0, 25)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code = 2
            try:
                append(ParquetLogitStore(place, 100), "v1", 25, COUNT)
                code = 0
            except OSError as error:
                code = 3 if error.errno == errno.EFBIG else 4
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        outcomes.add(os.WEXITSTATUS(status))
        assert os.WEXITSTATUS(status) in (0, 3)
        count = COUNT if os.WEXITSTATUS(status) == 0 else 25
        assert ParquetLogitStore(place).read("v1", IDS).valid["click"].sum() == count
        assert append(ParquetLogitStore(place, 100), "v1", 0, COUNT).count == COUNT
    assert outcomes == {0, 3}
