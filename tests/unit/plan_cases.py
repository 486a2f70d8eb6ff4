"""Models, batches and counts for the tests of the plan."""

from __future__ import annotations

from dataclasses import dataclass

from hstu_cases import SCHEMA, make_batch, small_config

from recdistill_core.batch import Batch
from recdistill_hstu import HSTUConfig
from recdistill_plan.sizes import Model, Workload


@dataclass(frozen=True)
class Truncated(HSTUConfig):
    """A configuration with ULTRA-HSTU's truncation, whatever the teacher's own says of it."""

    truncate_layers: int = 0
    truncate_length: int = 0


def model_of(**changes: object) -> Model:
    """A small teacher."""
    return Model(small_config(**changes), SCHEMA, SCHEMA.tasks)


def truncated(**changes: object) -> Model:
    """A small teacher whose last layers compute the newest events."""
    plain = {"width": 16, "heads": 2, "max_length": 40, "history_stride": 8, "layers": 6}
    return Model(Truncated(**{**plain, **changes}), SCHEMA, SCHEMA.tasks)  # type: ignore[arg-type]  # a table of cases


def batch_of(work: Workload) -> Batch:
    """The batch that ``work`` describes."""
    rows = [(history, end) for history in range(work.histories) for end in work.ends(work.length)]
    return make_batch([work.length] * work.histories, rows)
