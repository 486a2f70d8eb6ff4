"""A dataset with hidden states keeps the contract of a source."""

from __future__ import annotations

import numpy as np
import pytest
from test_feed import of
from wrong import wrong

from recdistill_core.schema import Schema
from recdistill_core.testing import run_check
from recdistill_core.testing.cases import Check
from recdistill_core.testing.feed import MemorySource
from recdistill_lightning import States, StateSource


def with_states(schema: Schema | None) -> StateSource:
    plain = MemorySource(schema)
    codes = np.random.default_rng(0).integers(0, 255, (plain.num_rows, 2)).astype(np.uint8)
    return StateSource(plain, 4, States(plain.column("example_id"), codes, np.zeros(plain.num_rows, np.bool_), 4))


SOURCE = wrong("", "source", lambda config, context: with_states(context.schema), "").entry


@pytest.mark.parametrize("check", of("source"), ids=lambda check: check.name)
def test_a_source_with_states_keeps_its_contract(check: Check) -> None:
    outcome = run_check(SOURCE, check)
    assert outcome.status == "passed", outcome.detail
