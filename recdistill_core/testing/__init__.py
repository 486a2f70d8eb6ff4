"""The conformance kit: does a component keep its contract?

A plugin's test file::

    from recdistill_core.testing import conformance

    @conformance("recdistill-fm-student")
    def test_conformance(check):
        check()

gives one test per (component, check). Without pytest: ``recdistill plugins check NAME``, or :func:`checks_for`.
"""

# the checks register themselves; those for every kind come first
from recdistill_core.testing import common as common  # isort: skip
from recdistill_core.testing import debiaser as debiaser
from recdistill_core.testing import loss as loss
from recdistill_core.testing.cases import (
    CHECKS,
    Case,
    Check,
    ConformanceError,
    NotApplicable,
    Outcome,
    checks_for,
    conformance,
    entries_of,
    run_check,
)
from recdistill_core.testing.samples import TASK, sample_batch, sample_schema, windowed

__all__ = [
    "CHECKS",
    "TASK",
    "Case",
    "Check",
    "ConformanceError",
    "NotApplicable",
    "Outcome",
    "checks_for",
    "conformance",
    "entries_of",
    "run_check",
    "sample_batch",
    "sample_schema",
    "windowed",
]
