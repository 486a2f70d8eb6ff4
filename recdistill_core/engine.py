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
            a function that does one block and returns what is to be told of it, both picklable.
        """


class Engine(Protocol):
    """Does the blocks of a job."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Do every block, at least once.

        Args:
            job: what to do.
            blocks: what to do it on, picklable each; none is fine.

        Yields:
            ``(place in blocks, what the job returned)`` once per block, as they are finished, in any order.

        Raises:
            Exception: what a block raised, with its type and text; blocks that were finished by then stay done.
        """
