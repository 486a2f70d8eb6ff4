"""What test_hstu_leak demands of the HSTU teacher, of the ``hf`` teacher: the same tests with another teacher."""

from __future__ import annotations

import pytest
import test_hstu_leak as leak
from hf_cases import make_teacher, small_config

from recdistill_hf.teacher import HFTeacher

#: architecture, backend, score budget, recent and oldest events that are attended to
KINDS = [
    ("llama", "chunked", 200, 0, 0),
    ("qwen3", "chunked", 1 << 20, 6, 2),
    ("gpt2", "padded", 3000, 0, 0),
    ("llama", "padded", 1 << 20, 6, 2),
]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def teacher(request: pytest.FixtureRequest) -> HFTeacher:
    architecture, backend, budget, recent, oldest = request.param
    span = {"attend_recent": recent, "attend_oldest": oldest}
    return make_teacher(small_config(architecture=architecture, backend=backend, score_budget=budget, **span))


test_events_at_or_after_row_end_do_not_reach_its_logit = leak.test_events_at_or_after_row_end_do_not_reach_its_logit
test_jagged_batch_equals_rows_one_by_one = leak.test_jagged_batch_equals_rows_one_by_one
test_later_events_may_be_absent = leak.test_later_events_may_be_absent
test_no_label_reaches_a_logit = leak.test_no_label_reaches_a_logit
test_other_rows_do_not_reach_a_logit = leak.test_other_rows_do_not_reach_a_logit
test_rows_may_come_go_and_change_places = leak.test_rows_may_come_go_and_change_places
test_what_a_row_may_see_does_reach_its_logit = leak.test_what_a_row_may_see_does_reach_its_logit
