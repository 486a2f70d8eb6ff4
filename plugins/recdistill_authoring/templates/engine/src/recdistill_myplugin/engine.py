"""The engine itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from recdistill_core.interfaces import Job

from recdistill_myplugin import MyPluginConfig


class MyPluginEngine:
    """Does blocks in threads, each of which opens the job once; for work that waits, such as for a service.

    Args:
        config: holds ``workers``.
    """

    def __init__(self, config: MyPluginConfig) -> None:
        self.workers = config.workers

    def run(self, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Do every block.

        Args:
            job: opened once per thread. blocks: no more are in work than there are threads, so that a close stops soon.

        Yields:
            ``(place in blocks, what the job returned)``, as blocks are finished.

        Raises:
            Exception: what the job raised, as it is.
        """
        if not len(blocks):
            return
        own = threading.local()

        def do(place: int) -> tuple[int, Any]:
            if not hasattr(own, "do"):
                own.do = job.open()
            return place, own.do(blocks[place])

        places = iter(range(len(blocks)))
        with ThreadPoolExecutor(min(self.workers, len(blocks))) as pool:  # waits for what is in flight when it is left
            running = {pool.submit(do, place) for place in islice(places, self.workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    running |= {pool.submit(do, place) for place in islice(places, 1)}
