"""What carries out a long job: a sequence of blocks of work, in this process or spread over others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol


class Job(Protocol):
    """Work that can be cut into blocks; picklable, so that an engine may send it to another process.

    A block may be done more than once (its worker died after the work and before the answer), so doing it again must
    change nothing.
    """

    def open(self) -> Callable[[Any], Any]:
        """Get ready, once per worker: load models, open stores.

        Returns:
            a function that does one block and returns what is to be told of it, both picklable. The function itself
            stays in the worker, and in the thread that opened the job.
        """


class Engine(Protocol):
    """Does the blocks of a job; one object may do several jobs, one after the other."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Do every block, at least once. A generator: closing it stops the work, and leaves no worker behind.

        Args:
            job: what to do; left as it was. It is opened at most as often as there are blocks.
            blocks: what to do it on, picklable each; none is fine, and opens nothing.

        Yields:
            ``(place in blocks, what the job returned)`` once per block, as they are finished, in any order.

        Raises:
            Exception: what ``open`` or a block raised, with its type and text; blocks that were finished by then stay
                done.
        """
