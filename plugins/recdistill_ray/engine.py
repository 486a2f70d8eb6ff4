"""The engine: blocks are the rows of a Ray Dataset, and workers are the actors that map them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from recdistill_core.engine import Job
from recdistill_ray import RayConfig
from recdistill_ray.session import connected, ray
from recdistill_ray.worker import Attempts, Worker

#: What keeps Ray from giving up while a worker can be replaced.
FOREVER = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}


class RayEngine:
    """Opens a job in several processes, and hands each of them block after block.

    A worker that dies is replaced, and its block done again. An exception of the job is no such death: it ends the run.

    Args:
        config: how many workers, and where.
    """

    def __init__(self, config: RayConfig) -> None:
        self.config = config

    def run(self, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See :meth:`recdistill_core.engine.Engine.run`.

        Raises:
            PluginError: if a block has ended its worker more than ``retries`` times. UsageError: if Ray cannot be
                reached or started.
        """
        if not len(blocks):
            return
        with connected(self.config):
            attempts = ray.remote(**FOREVER)(Attempts).remote()
            answers = self._answers(job, blocks, attempts)
            try:
                for answer in answers:
                    error = answer["error"][0].as_py()
                    if error is not None:
                        raise ray.cloudpickle.loads(error)
                    yield answer["place"][0].as_py(), ray.cloudpickle.loads(answer["answer"][0].as_py())
            finally:
                answers.close()  # ends the workers
                ray.kill(attempts)

    def _answers(self, job: Job, blocks: Sequence[Any], attempts: Any) -> Any:
        """A generator of tables of one row, as workers finish; nothing is done until it is read."""
        config = self.config
        workers = min(config.workers, len(blocks))
        rows = [{"place": place, "block": ray.cloudpickle.dumps(block)} for place, block in enumerate(blocks)]
        made = ray.data.from_items(rows, override_num_blocks=len(rows))
        made.context.enable_progress_bars = config.logs
        made.context.print_on_execution_start = config.logs
        limits = (config.retries + 1, config.retries + workers)
        found = made.map_batches(
            Worker,
            fn_constructor_args=(sys.path, ray.cloudpickle.dumps(job), attempts, limits),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),  # Ray Data replaces those that die
            num_cpus=config.cpus_per_worker,
        )
        return iter(found.iter_batches(batch_size=1, batch_format="pyarrow"))
