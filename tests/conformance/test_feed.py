"""What the kit itself gives to exporters and trainers keeps the contracts that the kit checks."""

from __future__ import annotations

import pytest
from wrong import wrong

from recdistill_core import Student
from recdistill_core.errors import DataError
from recdistill_core.testing import run_check
from recdistill_core.testing.cases import CHECKS, Check
from recdistill_core.testing.feed import MemorySource, SampleStudent

SOURCE = wrong("", "source", lambda config, context: MemorySource(context.schema), "").entry
STUDENT = wrong("", "student", lambda config, context: SampleStudent(context.require_schema(), context.tasks), "").entry
NAMELESS = ("importing_its_hooks_is_cheap",)  # they come from no entry point


def of(kind: str) -> list[Check]:
    return [check for check in CHECKS if check.about(kind) and check.name not in NAMELESS]


@pytest.mark.parametrize("check", of("source"), ids=lambda check: check.name)
def test_the_source_in_memory_keeps_its_contract(check: Check) -> None:
    outcome = run_check(SOURCE, check)
    assert outcome.status == "passed", outcome.detail


@pytest.mark.parametrize("check", of("student"), ids=lambda check: check.name)
def test_the_sample_student_keeps_its_contract(check: Check) -> None:
    assert issubclass(SampleStudent, Student)
    outcome = run_check(STUDENT, check)
    assert outcome.status == "passed", outcome.detail


def test_the_source_in_memory_has_the_columns_of_a_batch_and_no_other() -> None:
    source = MemorySource(rows=40)
    assert len(source.column("position")) == source.num_rows == 40
    with pytest.raises(DataError, match="the sample has no column 'histroy'") as error:
        source.column("histroy")
    assert "to do: use a field of Batch, or label_<task>" in str(error.value)
    assert MemorySource(rows=40, seed=1).snapshot_id != source.snapshot_id
