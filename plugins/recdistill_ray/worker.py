"""What runs in Ray's processes: workers with an opened job, and a count of what was begun that outlives them.

Answers come back as bytes, failures included: Ray would wrap an exception in its own, and log it.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from recdistill_core.engine import Job
from recdistill_core.errors import PluginError
from recdistill_ray.session import ray

SCHEMA = pa.schema([("place", pa.int64()), ("answer", pa.binary()), ("error", pa.binary())])
OPEN = -1


class Attempts:
    """How often each block was begun, and the job opened; a block that ends its worker each time is told by it."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, place: int) -> int:
        """Count one more beginning of a block, or of :data:`OPEN`; the number of them."""
        self.begun[place] += 1
        return self.begun[place]

    def opened(self) -> None:
        """A job was opened, so what ended those before it was no fault of opening."""
        self.begun[OPEN] = 0


class Worker:
    """An opened job; Ray makes one per process, and another where one has died.

    Args:
        path: the caller's ``sys.path``, so that what it could import can be imported here.
        job: the job, pickled.
        attempts: a handle of :class:`Attempts`.
        limits: how often a block may be begun, and how often the job may be begun to be opened in a row.
    """

    def __init__(self, path: list[str], job: bytes, attempts: Any, limits: tuple[int, int]) -> None:
        sys.path.extend(place for place in path if place not in sys.path)
        self.attempts, self.failure, self.most = attempts, b"", limits[0]
        self.thread = ThreadPoolExecutor(1)  # Ray would open here and do blocks in another thread
        if self._begun(OPEN) > limits[1]:
            self.failure = packed(died(f"opening the job has ended its worker {limits[1]} times"))
            return
        try:
            opened: Job = ray.cloudpickle.loads(job)
            self.do: Callable[[Any], Any] = self.thread.submit(opened.open).result()
        except Exception as error:
            self.failure = packed(noted(error))
        ray.get(attempts.opened.remote())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``place``, ``block`` of one row -> ``place``, and ``answer`` or ``error``."""
        place, answer, failure = batch["place"][0].as_py(), None, self.failure
        if not failure and self._begun(place) > self.most:
            failure = packed(died(f"block {place} has ended its worker {self.most} times"))
        if not failure:
            try:
                block = ray.cloudpickle.loads(batch["block"][0].as_py())
                answer = ray.cloudpickle.dumps(self.thread.submit(self.do, block).result())
            except Exception as error:
                failure = packed(noted(error))
        return pa.table({"place": [place], "answer": [answer], "error": [failure or None]}, schema=SCHEMA)

    def _begun(self, place: int) -> int:
        return int(ray.get(self.attempts.begin.remote(place)))


def died(what: str) -> PluginError:
    """The error for work that nobody survives."""
    return PluginError(
        what,
        where="engine 'ray'",
        fix="look for what ends it, such as memory: fewer workers or smaller blocks; what was finished stays done",
    )


def noted(error: Exception) -> Exception:
    """``error``, with where it was raised as a note."""
    error.add_note(f"in a worker of engine 'ray':\n{''.join(traceback.format_exception(error))}")
    return error


def packed(error: Exception) -> bytes:
    """An exception, pickled; one that would come out otherwise than it went in is a RuntimeError with type and text."""
    try:
        found: bytes = ray.cloudpickle.dumps(error)
        again = ray.cloudpickle.loads(found)
        if type(again) is type(error) and str(again) == str(error):
            return found
    except Exception:  # whatever its class does with arguments that it was not made for
        pass
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    plain.__notes__ = getattr(error, "__notes__", [])
    return bytes(ray.cloudpickle.dumps(plain))
