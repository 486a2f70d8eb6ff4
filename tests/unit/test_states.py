"""Hidden states: their codes, their file, the compressor, and which of them a row reads."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.schema import Schema
from recdistill_core.testing.feed import MemorySource
from recdistill_lightning import StateCompressor, States, StateSource, read_states, write_states
from recdistill_lightning.states import joined, largest_code, pack, prefixes, unpack

# ------------------------------------------------------------------------------------------------------------ codes


@given(st.integers(2, 8), st.sampled_from([2, 4, 6, 12, 16, 64]), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_codes_are_packed_and_unpacked(bits: int, width: int, count: int, seed: int) -> None:
    most = largest_code(bits)
    codes = np.random.default_rng(seed).integers(-most, most + 1, (count, width))
    packed = pack(codes, bits)
    assert packed.shape == (count, -(-width * bits // 8))
    for part in prefixes(width):
        assert np.array_equal(unpack(packed, part, bits), codes[:, :part])
        assert np.array_equal(unpack(packed[:, : -(-part * bits // 8)], part, bits), codes[:, :part])


def some_states(ids: Any = (5, 3, 9), width: int = 8, bits: int = 4, **facts: Any) -> States:
    ids = np.asarray(ids, np.int64)
    most = largest_code(bits)
    codes = np.random.default_rng(0).integers(-most, most + 1, (len(ids), width))
    return States(ids, pack(codes, bits), np.arange(len(ids)) > 1, width, bits, facts)


def test_values_lie_on_evenly_spaced_levels_from_minus_one_to_one() -> None:
    codes = np.array([[-7, 0], [7, 1]])
    states = States(np.array([1, 2]), pack(codes, 4), np.zeros(2, np.bool_), 2)
    assert states.values() == pytest.approx(np.array([[-1, 0], [1, 1 / 7]]))
    assert prefixes(12) == [12, 6, 3]
    assert [largest_code(bits) for bits in (2, 4, 8)] == [1, 7, 127]


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"width": 7}, ValueError, "width must be even and >= 2, got 7"),
        ({"width": 0}, ValueError, "width must be even and >= 2, got 0"),
        ({"bits": 1}, ValueError, r"bits must lie in \[2, 8\], got 1"),
        ({"bits": 9}, ValueError, r"bits must lie in \[2, 8\], got 9"),
        ({"width": 16}, DataError, r"codes of shape \[3, 4\] do not hold 3 states of 16 numbers of 4 bits"),
        ({"example_id": np.array([1, 1, 2])}, DataError, "an example has two states"),
    ],
)
def test_states_that_cannot_be(values: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        replace(some_states(), **values)


# ------------------------------------------------------------------------------------------------------------- file


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_what_is_written_is_read(count: int, bits: int, tmp_path: Path) -> None:
    states = some_states(range(count), bits=bits, dataset="d", seed=1)
    write_states(states, tmp_path / "states.parquet")
    found = read_states(tmp_path / "states.parquet")
    assert (found.width, found.bits, found.facts) == (8, bits, {"dataset": "d", "seed": 1})
    for name in ("example_id", "packed", "after_training"):
        assert np.array_equal(getattr(found, name), getattr(states, name)), name
    assert [path.name for path in tmp_path.iterdir()] == ["states.parquet"]


def test_a_reader_may_be_narrower_than_what_is_stored(tmp_path: Path) -> None:
    states = some_states(range(40))
    write_states(states, tmp_path / "states.parquet")
    narrow = read_states(tmp_path / "states.parquet", width=4)
    assert np.array_equal(narrow.values(), states.values()[:, :4])
    assert narrow.packed.shape == (40, 2)
    for width in (3, 0, 10):
        with pytest.raises(UsageError, match=f"states of 8 numbers were asked for the first {width}") as caught:
            read_states(tmp_path / "states.parquet", width=width)
        assert "the trained ones are 8, 4, 2" in str(caught.value)


def test_parts_are_joined_with_the_facts_of_the_first() -> None:
    one, other = some_states([1, 2], dataset="d"), some_states([3], dataset="e")
    both = joined([one, other])
    assert both.facts == {"dataset": "d"}
    assert len(both) == 3
    assert np.array_equal(both.values(), np.concatenate([one.values(), other.values()]))


def test_a_damaged_file_and_one_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "states.parquet"
    with pytest.raises(IntegrityError, match="the states cannot be read") as caught:
        read_states(path)
    assert "train the teacher again, or restore the file" in str(caught.value)
    write_states(some_states(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match="the states cannot be read"):
        read_states(path)
    pq.write_table(pa.table({"example_id": [1]}), path)
    with pytest.raises(DataError, match="this is no file of hidden states"):
        read_states(path)


# ------------------------------------------------------------------------------------------------------- compressor


def learnt(hidden: torch.Tensor, steps: int, **settings: Any) -> tuple[StateCompressor, list[float]]:
    made = StateCompressor(hidden.shape[1], 8, **settings)
    return made, [float(made.learn(hidden)) for _ in range(steps)]


def low_rank(count: int = 256) -> torch.Tensor:
    """Activations of a few dimensions, one of which carries most."""
    generator = torch.Generator().manual_seed(3)
    parts = torch.randn(count, 4, generator=generator) * torch.tensor([4.0, 1.0, 0.5, 0.2])
    return parts @ torch.randn(4, 24, generator=generator)


def test_the_compressor_learns_to_reconstruct_and_every_prefix_says_something() -> None:
    hidden = low_rank()
    made, losses = learnt(hidden, 400, lr=1e-2)
    assert losses[-1] < 0.4 * losses[0]
    wanted = torch.nn.functional.layer_norm(hidden, (24,))
    values = made.codes(hidden).float() / made.levels
    errors = [
        float((values[:, :width] @ decoder.T + bias - wanted).detach().square().mean())
        for width, decoder, bias in zip(made.prefixes, made.decoders, made.decoder_bias, strict=True)
    ]
    assert made.prefixes == [8, 4, 2]
    assert errors[0] <= errors[1] <= errors[2] < 0.5 * float(wanted.square().mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_rounded_to_the_levels(bits: int) -> None:
    made = StateCompressor(24, 4, bits)
    hidden = low_rank()
    codes = made.codes(hidden)
    assert codes.dtype == torch.int16
    assert codes.abs().max() <= largest_code(bits)
    assert (codes / largest_code(bits) - made(hidden)).abs().max() <= 0.5 / largest_code(bits) + 1e-6


def test_the_seed_alone_decides_and_no_global_generator_is_moved() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, losses = learnt(low_rank(), 5, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, again = learnt(low_rank(), 5, seed=7)
    assert losses == again
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(StateCompressor(24, 8, seed=8).encoder, StateCompressor(24, 8, seed=7).encoder)


def test_learning_reaches_nothing_that_the_activation_came_from() -> None:
    source = torch.randn(6, 24, requires_grad=True)
    made = StateCompressor(24, 4)
    made.learn(source * 2)
    assert source.grad is None


@pytest.mark.parametrize(
    ("hidden", "message"),
    [(torch.ones(2, 5), r"is of shape \[2, 5\]; \[N, 24\] finite"), (torch.full((2, 24), torch.inf), "is NaN or inf")],
)
def test_activations_that_cannot_be_compressed(hidden: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        StateCompressor(24, 4).codes(hidden)


def test_settings_of_a_compressor_out_of_range() -> None:
    with pytest.raises(ValueError, match="width must be even and >= 2, got 5"):
        StateCompressor(24, 5)
    with pytest.raises(ValueError, match="lr must be > 0, got 0"):
        StateCompressor(24, 4, lr=0)


# ----------------------------------------------------------------------------------------------------- which are read


class Log:
    """Users and times of rows in time order; ids that do not tell the row."""

    snapshot_id, schema = "log", Schema(("click",))

    def __init__(self, user: list[int], time: list[int]) -> None:
        self.columns = {"user_id": np.array(user, np.int64), "event_time": np.array(time, np.int64)}
        self.num_rows = len(user)
        self.columns["example_id"] = (np.arange(self.num_rows) * 7919) % 100_003 + 50

    def column(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def first(self, count: int) -> Log:
        return Log(*(self.columns[name][:count].tolist() for name in ("user_id", "event_time")))


Case = tuple[Log, NDArray[np.int64], NDArray[np.bool_], dict[str, int]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A log with ties, codes ``[rows, width]``, which rows have a state, and how it is read."""
    rows = draw(st.integers(1, 24))
    user = draw(st.lists(st.sampled_from([3, 4, 900]), min_size=rows, max_size=rows))
    time = sorted(draw(st.lists(st.integers(0, 12), min_size=rows, max_size=rows)))
    there = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    bits = draw(st.integers(2, 8))
    codes = drawn_codes(draw(st.integers(0, 2**31)), rows, bits)
    read = {"bits": bits, "recent": draw(st.integers(1, 4)), "delay_ms": draw(st.integers(0, 4))}
    return Log(user, time), codes, there, read


def drawn_codes(seed: int, rows: int, bits: int) -> NDArray[np.int64]:
    most = largest_code(bits)
    return np.random.default_rng(seed).integers(-most, most + 1, (rows, 4))


def source_of(case: Case) -> StateSource:
    log, codes, there, read = case
    places = np.random.default_rng(1).permutation(np.flatnonzero(there))  # a file need not be in row order
    ids, packed = log.column("example_id")[places], pack(codes[places], read["bits"])
    states = States(ids, packed, np.zeros(len(ids), np.bool_), 4, read["bits"], {"dataset": "log"})
    made: Any = log
    return StateSource(made, 4, states, recent=read["recent"], delay_ms=read["delay_ms"])


def all_features(case: Case) -> NDArray[np.float32]:
    log = case[0]
    return source_of(case).features(log.column("user_id"), log.column("event_time"))


@given(cases())
def test_features_are_those_of_a_plain_loop(case: Case) -> None:
    log, codes, there, read = case
    user, time = log.column("user_id"), log.column("event_time")
    found = all_features(case)
    for row in range(log.num_rows):
        past = [
            other
            for other in range(log.num_rows)
            if there[other] and user[other] == user[row] and time[other] < time[row] - read["delay_ms"]
        ][-read["recent"] :]
        mean = sum((codes[other] for other in past), np.zeros(4)) / max(len(past), 1) / largest_code(read["bits"])
        wanted = [*mean, len(past) / read["recent"]]
        assert np.array_equal(found[row], np.array(wanted, np.float32)), row


@given(cases(), st.data())
def test_no_state_but_those_of_the_users_own_past_reaches_a_row(case: Case, data: st.DataObject) -> None:
    log, codes, there, read = case
    row = data.draw(st.integers(0, log.num_rows - 1))
    user, time = log.column("user_id"), log.column("event_time")
    # the row itself, its moment, everything within the delay and later, and other users
    free = (time >= time[row] - read["delay_ms"]) | (user != user[row])
    others = drawn_codes(data.draw(st.integers(0, 2**31)), log.num_rows, read["bits"])
    changed = np.where(free[:, None], others, codes)
    present = np.where(
        free, np.array(data.draw(st.lists(st.booleans(), min_size=len(free), max_size=len(free)))), there
    )
    before, after = all_features(case), all_features((log, changed, present, read))
    assert np.array_equal(before[row], after[row])


@given(cases(), st.data())
def test_what_comes_later_in_the_log_reaches_no_row(case: Case, data: st.DataObject) -> None:
    log, codes, there, read = case
    count = data.draw(st.integers(1, log.num_rows))
    then = all_features((log.first(count), codes[:count], there[:count], read))
    assert np.array_equal(all_features(case)[:count], then)


def with_states(width: int = 4, states: bool = True) -> tuple[MemorySource, StateSource]:
    plain = MemorySource(rows=60)
    kept = some_states(plain.column("example_id")[:50], width=8, dataset=plain.snapshot_id)
    return plain, StateSource(plain, width, kept if states else None, recent=3)


def test_a_batch_has_the_features_appended_and_all_else_is_the_sources() -> None:
    plain, source = with_states()
    rows = np.array([40, 3, 59, 59])
    mine, theirs = source.batch(rows), plain.batch(rows)
    mine.validate(schema=source.schema)
    assert torch.equal(mine.numeric[:, : theirs.numeric.shape[1]], theirs.numeric)
    assert torch.equal(mine.item_id, theirs.item_id)
    assert source.schema.numeric[-5:] == (*(f"teacher_state_{at}" for at in range(4)), "teacher_state_known")
    assert [source.schema.numeric_sides[name] for name in source.schema.numeric[-5:]] == ["user"] * 5
    assert source.schema.view_hash() != plain.schema.view_hash()
    assert (source.snapshot_id, source.num_rows, len(source)) == (plain.snapshot_id, 60, 60)
    assert source.row_at(int(plain.column("event_time")[7])) == plain.row_at(int(plain.column("event_time")[7]))
    assert source.truth("click") is None


def test_a_feature_is_a_column_too() -> None:
    plain, source = with_states()
    numeric = source.batch(np.arange(60)).numeric.numpy()
    assert (numeric[:, -1] > 0).any()
    for at, name in ((-5, "teacher_state_0"), (-2, "feature/teacher_state_3"), (-1, "teacher_state_known")):
        assert np.array_equal(source.column(name), numeric[:, at])
    assert np.array_equal(source.column("user_id"), plain.column("user_id"))


def test_a_raw_student_sees_the_same_columns_and_nothing_in_them() -> None:
    _, source = with_states()
    _, raw = with_states(states=False)
    assert raw.schema == source.schema
    assert not raw.batch(np.arange(60)).numeric[:, -5:].any()
    assert not raw.column("teacher_state_known").any()


def test_a_request_of_a_user_or_a_time_that_the_log_has_not() -> None:
    _, source = with_states()
    user, time = source.column("user_id"), source.column("event_time")
    nobody = int(user.max()) + 1
    asked = source.features(np.array([nobody, user[0], user[0]]), np.array([time[-1] + 1, time[-1] + 1, 0]))
    assert not asked[0].any()
    assert asked[1].any()
    assert not asked[2].any()


def test_a_source_with_states_pickles() -> None:
    _, source = with_states()
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.batch(np.arange(60)).numeric, source.batch(np.arange(60)).numeric)


def test_states_of_another_dataset_or_of_examples_that_it_has_not_are_refused() -> None:
    plain = MemorySource(rows=60)
    with pytest.raises(IntegrityError, match="the hidden states are of dataset other, and this is"):
        StateSource(plain, 4, some_states(dataset="other"))
    unknown = int(plain.column("example_id").max()) + 1
    with pytest.raises(IntegrityError, match="there are hidden states of examples that this dataset has not") as caught:
        StateSource(plain, 4, some_states([unknown]))
    assert "read the dataset whose rows the teacher was trained on" in str(caught.value)


def test_a_feature_of_that_name_is_not_overwritten() -> None:
    schema = replace(MemorySource().schema, numeric=("teacher_state_1",), numeric_sides={})
    with pytest.raises(DataError, match="the dataset has a feature 'teacher_state_1' of its own"):
        StateSource(MemorySource(schema), 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 3}, "width must be even and >= 2, got 3"),
        ({"recent": 0}, "recent must be >= 1 and delay_ms >= 0, got 0 and 0"),
        ({"delay_ms": -1}, "recent must be >= 1 and delay_ms >= 0, got 8 and -1"),
    ],
)
def test_settings_of_a_source_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StateSource(MemorySource(), **{"width": 4, **values})


def test_a_source_wider_than_the_states_is_refused() -> None:
    plain = MemorySource(rows=60)
    with pytest.raises(UsageError, match="states of 8 numbers were asked for the first 16"):
        StateSource(plain, 16, some_states(plain.column("example_id")[:3]))
