"""Engine ``ray``: a job's blocks in processes of this machine or of a cluster, through Ray Data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recdistill_core import BuildContext, Component, hookimpl


@dataclass(frozen=True)
class RayConfig:
    """Configuration of :class:`recdistill_ray.engine.RayEngine`.

    Attributes:
        workers: how many processes open the job, >= 1; no more than there are blocks.
        address: of a Ray cluster, such as ``head:6379``, or ``auto`` for one that runs on this machine; empty: the
            Ray that this process is connected to, or else one that is started here and ends with the job.
        cpus_per_worker: processor cores that Ray sets aside for each worker, > 0.
        retries: how often a block is done again after its worker has died, >= 0.
        logs: whether messages of Ray and of the workers are shown.
    """

    workers: int = 2
    address: str = ""
    cpus_per_worker: float = 1.0
    retries: int = 3
    logs: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be >= 1, got {self.workers}")
        if not self.cpus_per_worker > 0:
            raise ValueError(f"cpus_per_worker must be > 0, got {self.cpus_per_worker}")
        if self.retries < 0:
            raise ValueError(f"retries must be >= 0, got {self.retries}")


def build(config: RayConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_ray.engine.RayEngine`; raises PluginError where Ray is not installed."""
    from recdistill_ray.engine import RayEngine

    return RayEngine(config)


@hookimpl
def recdistill_engines() -> list[Component]:
    """``ray``."""
    summary = "In processes of this machine or of a cluster, through Ray Data"
    return [Component("ray", RayConfig, build, summary, example={"cpus_per_worker": 0.5}, api_version=1)]
