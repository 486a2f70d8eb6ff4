"""Models, batches and counts for the tests of the plan."""

from __future__ import annotations

from hstu_cases import SCHEMA, make_batch, small_config

from recdistill_core.batch import Batch
from recdistill_plan.sizes import Model, Workload


def model_of(**changes: object) -> Model:
    """A small teacher."""
    return Model(small_config(**changes), SCHEMA, SCHEMA.tasks)


def truncated(**changes: object) -> Model:
    """A small teacher whose last layers compute the newest events."""
    plain: dict[str, object] = {"max_length": 40, "layers": 6, "truncate_layers": 4, "truncate_length": 10}
    return model_of(**{**plain, **changes})


def batch_of(work: Workload) -> Batch:
    """The batch that ``work`` describes."""
    rows = [(history, end) for history in range(work.histories) for end in work.ends(work.length)]
    return make_batch([work.length] * work.histories, rows)
