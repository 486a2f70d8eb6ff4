"""The engine that needs nothing: what a job does is done here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from recdistill_core.engine import Job


class LocalEngine:
    """Opens the job in this process and does its blocks in order; nothing is pickled."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See :meth:`recdistill_core.engine.Engine.run`; answers come in the order of the blocks."""
        if not len(blocks):
            return
        do = job.open()
        for place, block in enumerate(blocks):
            yield place, do(block)
