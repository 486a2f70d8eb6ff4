"""Sequences before a cutoff: pieces, what is held out, counts, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from gpsd_cases import GENRES, ITEMS, MINUTE, START, Source, chains
from hypothesis import given
from hypothesis import strategies as st

from recdistill_core.errors import DataError, UsageError
from recdistill_core.schema import Schema
from recdistill_gpsd import sequences as module
from recdistill_gpsd.sequences import Sequences, read_sequences


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 2))
def test_every_event_but_the_first_is_a_target_once(counts: list[int], length: int, holdout: int) -> None:
    source = Source([[1] * count for count in counts])
    start = np.cumsum(counts) - np.array(counts)
    found = Sequences(source, START, start, np.array(counts), holdout)
    places, sizes = found.windows(length, newest=False)
    targets = [place + at for place, size in zip(places, sizes, strict=True) for at in range(1, size)]
    wanted = [int(first) + at for first, count in zip(start, counts, strict=True) for at in range(1, count - holdout)]
    assert sorted(targets) == wanted
    assert all(2 <= size <= length + 1 for size in sizes)


def test_the_newest_piece_alone() -> None:
    found = read_sequences(Source([[1] * 10, [2] * 3, [3]]), None, 1)
    places, sizes = found.windows(4, newest=True)
    assert (places.tolist(), sizes.tolist()) == ([4, 10], [5, 2])  # 10 events less one held out end at 9


def test_the_cutoff_is_strict_and_none_is_the_end_of_the_log() -> None:
    source = Source([[1, 2, 3, 4], [5, 6, 7]])
    found = read_sequences(source, START + 2 * MINUTE, 0)
    assert found.count.tolist() == [2, 2]
    assert read_sequences(source, START + 2 * MINUTE + 1, 0).count.tolist() == [3, 3]
    whole = read_sequences(source, None, 2)
    assert (whole.count.tolist(), whole.trained.tolist()) == ([4, 3], [2, 1])
    assert whole.cutoff == START + 3 * MINUTE + 1


def test_occurrences_count_what_is_trained_on_alone() -> None:
    source = Source([[1, 2, 2, 5], [3, 0, 11, 5]])
    found = read_sequences(source, START + 3 * MINUTE, 1).occurrences({"item": ITEMS, "genre": GENRES, "action": 2})
    assert found["item"].tolist() == [1, 1, 1, 1, *[0] * 8]  # neither the held-out 2 and 11, nor the 5 at the cutoff
    assert found["action"].tolist() == [2, 2]
    small = read_sequences(source, None, 0).occurrences({"item": 3})["item"]
    assert small.tolist() == [5, 1, 2]  # a value outside the vocabulary is out of vocabulary


def test_users_are_read_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_sequences(chains(), START + 5 * MINUTE, 1)
    monkeypatch.setattr(module, "CHUNK", 5)
    parts = read_sequences(chains(), START + 5 * MINUTE, 1)
    assert parts.count.tolist() == whole.count.tolist()
    sizes = {"item": ITEMS}
    assert parts.occurrences(sizes)["item"].tolist() == whole.occurrences(sizes)["item"].tolist()


def test_what_has_no_sequences_is_refused() -> None:
    with pytest.raises(UsageError, match=r"SimpleNamespace hands out no event sequences\n(.|\n)*such as parquet"):
        read_sequences(SimpleNamespace(), None, 0)
    bare = Source([[1, 2]])
    bare.schema = Schema(tasks=("click",))
    with pytest.raises(DataError, match=r"the dataset has no events(.|\n)*import the log again with actions"):
        read_sequences(bare, None, 0)
    with pytest.raises(DataError, match=r"no user has two events to train on before \d+ ms, 1 held out\n(.|\n)*0 lie"):
        read_sequences(chains(), START, 1)
    with pytest.raises(DataError, match=r"the time of an event goes backwards\n  where: user 1: \d+ after \d+ ms"):
        read_sequences(Source([[1, 2], [1, 2, 3]], [[0, 1], [0, 2, 1]]), None, 0)


def test_the_counts_in_words_add_up() -> None:
    source = Source([list(range(1, 6)), [1, 2, 3], [1, 2], [1], []])
    assert read_sequences(source, None, 1).in_words() == (
        "11 events of 4 users before the cutoff; 4 held out; 1 left alone, which tell nothing; 6 of 2 users trained on"
    )
    assert read_sequences(source, START + 4 * MINUTE, 0).in_words() == (
        "10 events of 4 users before the cutoff; 0 held out; 1 left alone, which tell nothing; 9 of 3 users trained on"
    )
    assert read_sequences(Source([[1, 2, 3]]), None, 1).in_words() == (
        "3 events of 1 users before the cutoff; 1 held out; 2 of 1 users trained on"
    )


@pytest.mark.parametrize("code", [-1, 2])
def test_an_action_code_that_the_schema_lacks_is_refused(code: int) -> None:
    source = chains()
    source.columns["action"][7] = code
    with pytest.raises(
        DataError, match=rf"action code {code} is outside \[0, 2\) of click\n  where: an event of user \d"
    ):
        read_sequences(source, None, 1)
