"""The HSTU teacher as a whole: registration, configuration, batches at the edge, fingerprints, training."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hstu_cases import SCHEMA, make_batch, make_teacher, small_config
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_core.component import BuildContext
from recdistill_core.errors import ConfigError, DataError
from recdistill_core.interfaces import HistoryWindow, Teacher, TrainableTeacher
from recdistill_hstu import HSTUConfig, recdistill_teachers
from recdistill_hstu.teacher import HSTUTeacher
from recdistill_hstu.tokens import TokenEmbedding

ROWS = [(0, 5), (2, 9), (2, 3), (1, 0), (2, 0)]


@pytest.fixture
def batch() -> Batch:
    return make_batch([5, 0, 9], ROWS)


def run_python(code: str) -> str:
    here = str(Path(__file__).parent)
    program = f"import sys; sys.path.insert(0, {here!r})\n{code}"
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def test_component_builds_from_its_example() -> None:
    (component,) = recdistill_teachers()
    assert component.needs_of(HSTUConfig()) == {"history"}
    teacher = component.build(component.config(**component.example), BuildContext(SCHEMA, ("like",)))
    assert isinstance(teacher, TrainableTeacher)
    assert isinstance(teacher, Teacher)
    assert teacher.history == HistoryWindow(64, 16)
    assert list(teacher.score(make_batch([3], [(0, 2)])).logits) == ["like"]
    assert component.build(HSTUConfig(), BuildContext(SCHEMA)).head.tasks == SCHEMA.tasks


def test_hook_module_imports_no_torch() -> None:
    assert (
        run_python("import recdistill_hstu; print('torch' in sys.modules, 'xformers' in sys.modules)") == "False False"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"heads": -1}, "heads must be at least 1, got -1"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"context_width": 0}, "context_width must be at least 1, got 0"),
        ({"score_budget": 0}, "score_budget must be at least 1, got 0"),
        ({"cross_layers": -1}, "cross_layers must be at least 0, got -1"),
        ({"cross_rank": -2}, "cross_rank must be at least 0, got -2"),
        ({"width": 30, "heads": 4}, "width must be a multiple of heads, got width 30 and heads 4"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"stochastic_length": 1.0}, "stochastic_length must be 0 or lie in (1, 2], got 1.0"),
        ({"stochastic_length": 2.5}, "stochastic_length must be 0 or lie in (1, 2], got 2.5"),
        ({"attend_recent": -1}, "attend_recent must be at least 0, got -1"),
        ({"keep_oldest": -1}, "keep_oldest must be at least 0, got -1"),
        (
            {"keep_oldest": 200, "history_stride": 64},
            "history_stride must lie in [1, max_length - keep_oldest = 56], got 64",
        ),
        ({"truncate_layers": 2}, "truncate_layers must lie in [0, layers = 2), got 2"),
        ({"truncate_layers": -1}, "truncate_layers must lie in [0, layers = 2), got -1"),
        (
            {"truncate_layers": 1},
            "truncate_length must lie in [1, 256] with truncate_layers 1 and max_length 256, got 0",
        ),
        (
            {"truncate_length": 8},
            "truncate_length must lie in [0, 0] with truncate_layers 0 and max_length 256, got 8",
        ),
        ({"stochastic_balance": True}, "stochastic_balance needs stochastic_length, got stochastic_length 0"),
        (
            {"checkpointing": "all"},
            "checkpointing must be one of none, selective, full; got 'all' (did you mean 'full'?)",
        ),
        ({"attend_oldest": 4}, "attend_oldest needs attend_recent, without which all events are attended to; got 4"),
        ({"history_stride": 0}, "history_stride must lie in [1, max_length = 256], got 0"),
        ({"history_stride": 257}, "history_stride must lie in [1, max_length = 256], got 257"),
        ({"hidden": (8, 0)}, "hidden must hold widths of at least 1, got [8, 0]"),
        ({"attention": "silo"}, "attention must be one of silu, softmax; got 'silo' (did you mean 'silu'?)"),
        (
            {"backend": "chunk"},
            "backend must be one of auto, reference, chunked, sdpa, triton, xformers; got 'chunk' "
            "(did you mean 'chunked'?)",
        ),
    ],
)
def test_ranges_of_the_configuration(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        HSTUConfig(**changes)
    assert str(caught.value) == message


def test_schema_without_events_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        HSTUTeacher(small_config(), replace(SCHEMA, events=()), SCHEMA.tasks)
    assert caught.value.problems == (
        "teacher: hstu needs history, and the dataset has no events; import the log with events",
    )


def test_history_longer_than_max_length_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        make_teacher(small_config(max_length=8)).score(make_batch([9], [(0, 2)]))
    assert str(caught.value).splitlines() == [
        "a history of 9 events reached a teacher of max_length 8",
        "  where: Batch.history.offsets",
        "  to do: ask the source for batches with teacher.history, or raise max_length",
    ]


def test_events_without_a_field_of_the_schema_are_refused(batch: Batch) -> None:
    assert batch.history is not None
    events = {name: column for name, column in batch.history.events.items() if name not in ("tab", "action")}
    with pytest.raises(DataError) as caught:
        make_teacher(small_config()).score(replace(batch, history=replace(batch.history, events=events)))
    assert str(caught.value).splitlines() == [
        "the batch's events lack tab, action",
        "  where: Batch.history.events: item, author, time",
        "  to do: build batches with the source of the dataset whose schema the teacher was built with",
    ]


def test_rows_without_any_history(batch: Batch) -> None:
    teacher = make_teacher(small_config())
    blind = make_batch([0, 0, 0], [(owner, 0) for owner, _ in ROWS])
    blind = replace(batch, history=blind.history)
    none = replace(batch, history=None)
    found = torch.stack(list(teacher.score(blind).logits.values()))
    torch.testing.assert_close(torch.stack(list(teacher.score(none).logits.values())), found)
    assert bool(torch.isfinite(found).all())
    assert teacher.score(batch.rows(torch.arange(0))).logits["click"].shape == (0,)
    sum(value.sum() for value in teacher.training_scores(none).logits.values()).backward()


def test_history_is_encoded_once_however_many_rows_refer_to_it() -> None:
    teacher = make_teacher(small_config(layers=3))
    seen: list[tuple[int, int]] = []
    for layer in teacher.layers:
        layer.project.register_forward_hook(lambda _, given, __: seen.append((len(given[0]), len(given[1]))))
    teacher.score(make_batch([20, 30], [(1, 30)] * 500 + [(1, 12)] * 500))
    assert seen == [(50 + 1000, 50 + 1000)] * 2 + [(50 + 1000, 2 + 1000)]


def test_ids_outside_their_vocabulary_read_row_0() -> None:
    embed = TokenEmbedding(SCHEMA, 8, added_action=True)
    known = make_batch([4], [(0, 4)])
    assert known.history is not None
    zero = {name: column * 0 for name, column in known.history.events.items()}
    for wrong in (-1, 10**6):
        bad = {name: column * 0 + wrong for name, column in known.history.events.items()}
        tokens = [
            embed(
                replace(
                    known,
                    item_id=known.item_id * 0 + value,
                    categorical=known.categorical * 0 + value,
                    history=replace(known.history, events=events),
                )
            )
            for value, events in ((0, zero), (wrong, bad))
        ]
        torch.testing.assert_close(*tokens)


def test_tokens_share_tables_and_candidates_have_no_action() -> None:
    embed = TokenEmbedding(SCHEMA, 8, added_action=True)
    batch = make_batch([1], [(0, 1)])
    assert batch.history is not None
    events = {**batch.history.events, "item": torch.tensor([7]), "author": torch.tensor([3]), "tab": torch.tensor([2])}
    batch = replace(
        batch,
        item_id=torch.tensor([7]),
        categorical=torch.tensor([[3, 4, 2, 5]]),
        history=replace(batch.history, events={**events, "action": torch.tensor([6])}),
    )
    event, candidate = embed(batch)
    table = embed.table.weight
    category, action = 50 + 11 + 4 + 5, 50 + 11 + 4 + 6 + 6
    torch.testing.assert_close(event - table[action], table[7] + table[50 + 3] + table[50 + 11 + 2])
    torch.testing.assert_close(candidate - table[category], event - table[action])
    plain = TokenEmbedding(SCHEMA, 8, added_action=False)
    assert "action" not in plain.fields


def test_dropout_acts_in_training_only(batch: Batch) -> None:
    teacher = make_teacher(small_config(dropout=0.5))
    first, second = (teacher.training_scores(batch).logits["click"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(teacher.score(batch).logits["click"], teacher.score(batch).logits["click"])


@pytest.mark.parametrize("training", [True, False])
def test_score_has_no_gradient_and_restores_the_mode(batch: Batch, training: bool) -> None:
    teacher = make_teacher(small_config(dropout=0.5)).train(training)
    assert not teacher.score(batch).logits["click"].requires_grad
    assert teacher.training is training
    assert teacher.layers[0].dropout.training is training
    assert teacher.training_scores(batch).logits["click"].requires_grad


def test_fingerprint_is_equal_across_processes_and_changes_with_any_part() -> None:
    teacher = make_teacher(small_config())
    code = "import hstu_cases as c; print(c.make_teacher(c.small_config()).fingerprint())"
    assert run_python(code) == teacher.fingerprint()
    torch.manual_seed(0)
    prints = {
        teacher.fingerprint(),
        make_teacher(small_config(), seed=1).fingerprint(),
        make_teacher(small_config(dropout=0.1)).fingerprint(),
    }
    view = replace(SCHEMA, actions=("like", "click", "share"))
    same_weights = HSTUTeacher(small_config(), view, SCHEMA.tasks).double()
    same_weights.load_state_dict(teacher.state_dict())
    prints.add(same_weights.fingerprint())
    with torch.no_grad():
        teacher.layers[0].output.weight[0, 0] += 1e-9
    assert len(prints | {teacher.fingerprint()}) == 5


@pytest.mark.parametrize("attention", ["silu", "softmax"])
def test_training_learns_from_the_history_and_repeats_under_a_seed(attention: str) -> None:
    lengths = [6] * 40
    batch = make_batch(lengths, [(history, 6) for history in range(40)], seed=3)
    assert batch.history is not None
    target = (batch.history.events["action"].view(40, 6)[:, -3] % 2).float()

    def train() -> torch.Tensor:
        teacher = make_teacher(small_config(attention=attention), double=False)
        optimiser = torch.optim.Adam(teacher.parameters(), lr=0.03)
        for _ in range(20):
            loss = functional.binary_cross_entropy_with_logits(teacher.training_scores(batch).logits["click"], target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert all(weight.grad is not None for name, weight in teacher.named_parameters())
        assert float(loss.detach()) < 0.3
        return loss.detach()

    assert torch.equal(train(), train())


def test_left_out_feature_moves_no_logit_and_an_unknown_one_is_refused(batch: Batch) -> None:
    column = [feature.name for feature in SCHEMA.categorical].index("user_segment")
    other = replace(batch, categorical=batch.categorical.clone())
    other.categorical[:, column] = (other.categorical[:, column] + 1) % 2
    for leave_out, same in (((), False), (("user_segment",), True)):
        teacher = make_teacher(small_config(leave_out=leave_out))
        task = teacher.head.tasks[0]
        assert torch.equal(teacher.score(batch).logits[task], teacher.score(other).logits[task]) is same
    with pytest.raises(ConfigError, match=re.escape("unknown feature 'user_segmen' (did you mean 'user_segment'?)")):
        make_teacher(small_config(leave_out=("user_segmen",)))


@pytest.mark.parametrize("attention", ["silu", "softmax"])
def test_a_span_as_long_as_the_history_changes_nothing_and_a_shorter_one_forgets_the_middle(attention: str) -> None:
    batch = make_batch([30], [(0, 30), (0, 17)])
    whole = make_teacher(small_config(attention=attention, layers=1)).score(batch).logits["click"]
    long = make_teacher(small_config(attention=attention, layers=1, attend_recent=40)).score(batch).logits["click"]
    assert torch.allclose(long, whole, rtol=1e-12)
    short = make_teacher(small_config(attention=attention, layers=1, attend_recent=5, attend_oldest=2))
    before = short.score(batch).logits["click"]
    assert not torch.allclose(before, whole)
    assert batch.history is not None
    events = {name: column.clone() for name, column in batch.history.events.items()}
    events["item"][2:12] = (events["item"][2:12] + 7) % 50  # 17 - 5 = 12: forgotten by both rows
    middle = replace(batch, history=replace(batch.history, events=events))
    assert torch.equal(short.score(middle).logits["click"], before)
    for place, moved in ((1, [True, True]), (12, [False, True]), (25, [True, False])):
        events = {name: column.clone() for name, column in batch.history.events.items()}
        events["item"][place] = (events["item"][place] + 7) % 50
        after = short.score(replace(batch, history=replace(batch.history, events=events))).logits["click"]
        assert (after != before).tolist() == moved, place


def test_a_candidate_with_a_nan_is_refused(batch: Batch) -> None:
    teacher = make_teacher(small_config())
    assert batch.history is not None
    encoded = teacher.encode(batch.history.events, batch.history.offsets)
    late = batch.event_time + 10**9
    numeric = torch.zeros_like(batch.numeric)
    owner = batch.history.row_to_history
    teacher.score_candidates(encoded, replace(batch, event_time=late, numeric=numeric), owner)
    numeric[1, 0] = torch.nan
    with pytest.raises(DataError, match="numeric feature is NaN or infinite\n  where: candidates, row 1"):
        teacher.score_candidates(encoded, replace(batch, event_time=late, numeric=numeric), owner)
