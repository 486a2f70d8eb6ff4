"""The conformance kit: does a component keep its contract?

A plugin's test file::

    from recdistill_core.testing import conformance

    @conformance("recdistill-fm-student")
    def test_conformance(check):
        check()

gives one test per (component, check). Without pytest: ``recdistill plugins check NAME``, or :func:`checks_for`.
"""

# the checks register themselves; those for every kind come first, then what would be taken for another fault later
from recdistill_core.testing import common as common  # isort: skip
from recdistill_core.testing import arguments as arguments  # isort: skip
from recdistill_core.testing import columns as columns
from recdistill_core.testing import debiaser as debiaser
from recdistill_core.testing import debiaser_bias as debiaser_bias
from recdistill_core.testing import embeddings as embeddings
from recdistill_core.testing import engine as engine
from recdistill_core.testing import exporter as exporter
from recdistill_core.testing import fingerprints as fingerprints
from recdistill_core.testing import importer as importer
from recdistill_core.testing import leaks as leaks
from recdistill_core.testing import loss as loss
from recdistill_core.testing import loss_gradient as loss_gradient
from recdistill_core.testing import loss_target as loss_target
from recdistill_core.testing import metric as metric
from recdistill_core.testing import rows as rows
from recdistill_core.testing import sampler as sampler
from recdistill_core.testing import served as served
from recdistill_core.testing import source as source
from recdistill_core.testing import store as store
from recdistill_core.testing import strategy as strategy
from recdistill_core.testing import strategy_labels as strategy_labels
from recdistill_core.testing import student as student
from recdistill_core.testing import teacher as teacher
from recdistill_core.testing import trainer as trainer
from recdistill_core.testing import weights as weights
from recdistill_core.testing.cases import (
    CHECKS,
    Case,
    Check,
    ConformanceError,
    NotApplicable,
    Outcome,
    checks_for,
    run_check,
)
from recdistill_core.testing.collect import conformance, entries_of
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
