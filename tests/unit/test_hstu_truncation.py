"""Attention truncation: the last layers compute the newest events alone, whatever else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_hstu.attention import prepare
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.steps import plan_steps, truncation
from recdistill_hstu.teacher import HSTUTeacher

ROWS = [(0, 30), (0, 30), (0, 17), (0, 3), (1, 0), (2, 9), (0, 26)]


def one_row(teacher: HSTUTeacher, batch: Batch, row: int, whole: int) -> Tensor:
    """The first task's logit of one row: ``whole`` layers over its history, the others over its newest events."""
    batch = batch.rows(torch.tensor([row]))
    assert batch.history is not None
    window = truncation(teacher.config)
    assert window is not None
    begin = int(batch.history.offsets[batch.history.row_to_history[0]])
    end = int(batch.history.row_end[0])

    def shown(first: int) -> Batch:
        events = {name: column[begin + first : begin + end] for name, column in history.events.items()}
        cut = replace(
            history,
            events=events,
            offsets=torch.tensor([0, end - first]),
            row_to_history=torch.tensor([0]),
            row_end=torch.tensor([end - first]),
        )
        return replace(batch, history=cut)

    history, span = batch.history, Span(teacher.config.attend_recent, teacher.config.attend_oldest)
    x = teacher.tokens(shown(0))
    for layer in list(teacher.layers)[:whole]:
        x = layer(x, prepare("reference", Layout.of(shown(0), span), teacher.config))
    start = int(window.start(end))
    x = x[start:]
    for layer in list(teacher.layers)[whole:]:
        x = layer(x, prepare("reference", Layout.of(shown(start), span), teacher.config))
    state = x[-2:-1] if end else torch.zeros_like(x[-1:])
    return teacher.head(x[-1:], state, batch.categorical, batch.numeric)["click"]


@pytest.mark.parametrize(
    ("attention", "recent", "oldest", "layers"),
    [("silu", 0, 0, (1, 2)), ("softmax", 0, 0, (2, 1)), ("silu", 4, 2, (2, 2))],
)
def test_a_row_is_what_its_own_layers_give(attention: str, recent: int, oldest: int, layers: tuple[int, int]) -> None:
    config = small_config(
        attention=attention,
        layers=sum(layers),
        attend_recent=recent,
        attend_oldest=oldest,
        truncate_layers=layers[1],
        truncate_length=8,
    )
    teacher, batch = make_teacher(config), make_batch([30, 4, 12], ROWS)
    found = teacher.score(batch).logits["click"]
    expected = [one_row(teacher, batch, row, layers[0]).detach() for row in range(len(ROWS))]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-10, atol=1e-10)


def test_a_truncation_to_the_whole_history_changes_nothing() -> None:
    batch = make_batch([30, 4, 12], ROWS)
    whole = make_teacher(small_config(layers=3)).score(batch).logits["click"]
    cut = make_teacher(small_config(layers=3, truncate_layers=2, truncate_length=30)).score(batch).logits["click"]
    torch.testing.assert_close(cut, whole, rtol=1e-10, atol=1e-10)
    short = make_teacher(small_config(layers=3, truncate_layers=2, truncate_length=6)).score(batch).logits["click"]
    assert (~short.isclose(whole, rtol=1e-9)).tolist() == [True, True, True, False, False, True, True]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    length=st.integers(1, 12),
    data=st.data(),
)
def test_layers_compute_what_the_next_one_reads(lengths: list[int], length: int, data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    rows = [(owner, data.draw(st.integers(0, lengths[owner]))) for owner in owners]
    config = small_config(layers=4, truncate_layers=2, truncate_length=length)
    layout = Layout.of(make_batch(lengths, rows))
    steps, newest = plan_steps(layout, config)
    window = truncation(config)
    assert window is not None
    seen = {(owner, int(window.start(end))): 0 for owner, end in rows}
    for owner, end in rows:
        start = int(window.start(end))
        seen[owner, start] = max(seen[owner, start], end)
        assert min(end, length - max(1, length // 2) + 1) <= end - start <= length
    needed = {(owner, place) for (owner, start), end in seen.items() for place in range(start, end)}
    truncated = sum(end - start for (_, start), end in seen.items())
    assert [step.layout.num_asked for step in steps[:3]] == [
        sum(lengths) + len(rows),
        len(needed) + len(rows),
        truncated + len(rows),
    ]
    assert len(newest) == len(rows)
    blind = torch.tensor([end == 0 for _, end in rows], dtype=torch.bool)
    assert torch.equal(newest == steps[-1].layout.asked_events, blind)
