"""Training: it learns, gives the same bits again, and no event at or after the cutoff moves a single one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpsd_cases import ITEMS, MINUTE, SCHEMA, START, TEACHER, Source, chains, small
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.errors import DataError, UsageError
from recdistill_gpsd import leave_one_out
from recdistill_gpsd.config import PretrainConfig
from recdistill_gpsd.leave_one_out import rank_held_out
from recdistill_gpsd.model import NextEvent
from recdistill_gpsd.progress import Epoch, Progress
from recdistill_gpsd.sequences import Sequences, read_sequences
from recdistill_gpsd.train import train

KINDS: list[dict[str, Any]] = [
    {},
    {"architecture": "sasrec", "input_positions": True, "input_dropout": 0.2},
    {"negatives_from": "popularity", "negatives_per": "target", "windows": "newest"},
]


def fit(source: Source, cutoff: int | None, config: PretrainConfig) -> tuple[NextEvent, Sequences, list[Epoch]]:
    sequences = read_sequences(source, cutoff, config.holdout)
    torch.manual_seed(config.seed)
    model = NextEvent(TEACHER, config, SCHEMA)
    sizes = {name: int(model.tokens.event_rows[1, at]) for at, name in enumerate(model.tokens.fields)}
    return model, sequences, train(model, sequences, sequences.occurrences(sizes))


def bits(model: NextEvent) -> dict[str, bytes]:
    return {name: part.detach().numpy().tobytes() for name, part in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_which_item_follows(kind: dict[str, Any]) -> None:
    config = small(**kind, epochs=60, lr=0.02, evaluate_every=30)
    model, sequences, epochs = fit(chains(), None, config)
    assert [epoch.number for epoch in epochs] == list(range(1, 61))
    assert epochs[-1].loss["item"] < 0.5 * epochs[0].loss["item"]
    assert epochs[-1].loss["genre"] < 0.5 * epochs[0].loss["genre"]
    found = rank_held_out(model, sequences)
    assert found.user.tolist() == list(range(12))
    assert np.mean(found.rank == 1) > 0.8
    assert [epoch.number for epoch in epochs if epoch.ranking] == [30, 60]
    assert epochs[-1].ranking is not None
    assert epochs[-1].ranking["mrr"]["value"] == np.mean(1 / found.rank)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits(kind: dict[str, Any]) -> None:
    one, two = (bits(fit(chains(), None, small(**kind))[0]) for _ in range(2))
    assert one == two
    other = bits(fit(chains(), None, small(**kind, seed=2))[0])
    assert all(other[name] != one[name] for name in ("tokens.table.weight",))


def interrupted(progress: Progress, config: PretrainConfig, after: int) -> None:
    """A fit that somebody stops in the epoch after ``after``."""
    sequences = read_sequences(chains(), None, config.holdout)
    torch.manual_seed(config.seed)
    model = NextEvent(TEACHER, config, SCHEMA)
    sizes = {name: int(model.tokens.event_rows[1, at]) for at, name in enumerate(model.tokens.fields)}

    def stop(what: str, done: int, of: int) -> None:
        if what.startswith(f"epoch {after + 1} ") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, sequences, sequences.occurrences(sizes), stop, progress)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_fit_goes_on_to_the_same_bits(kind: dict[str, Any], tmp_path: Path) -> None:
    config = small(**kind, epochs=4, warmup_steps=10, evaluate_every=2)
    whole, sequences, epochs = fit(chains(), None, config)
    progress = Progress(tmp_path / "deep" / ".out.progress", "job")
    interrupted(progress, config, after=2)
    (tmp_path / "other").touch()  # no other user is kept from reading it
    assert progress.path.stat().st_mode == (tmp_path / "other").stat().st_mode
    torch.manual_seed(99)  # whatever another process starts from
    model = NextEvent(TEACHER, config, SCHEMA)
    sizes = {name: int(model.tokens.event_rows[1, at]) for at, name in enumerate(model.tokens.fields)}
    heard, said = set[str](), list[str]()
    occurrences = sequences.occurrences(sizes)
    again = train(model, sequences, occurrences, lambda what, done, of: heard.add(what), progress, said.append)
    assert said == ["going on after epoch 2 of 4"]
    assert heard == {"epoch 3 of 4", "epoch 4 of 4"}
    assert bits(model) == bits(whole)
    assert again == epochs


def test_progress_of_another_job_or_a_damaged_file_is_not_taken_up(tmp_path: Path) -> None:
    config = small(epochs=3)
    path = tmp_path / "progress"
    interrupted(Progress(path, "another job"), config, after=1)
    model, _, _ = fit(chains(), None, config)
    fresh = NextEvent(TEACHER, config, SCHEMA)
    optimiser = torch.optim.AdamW(fresh.parameters())
    before = bits(fresh)
    theirs = path.read_bytes()
    with pytest.raises(UsageError) as caught:
        Progress(path, "job").restore(fresh, optimiser, torch.Generator())
    assert str(caught.value).splitlines() == [
        "an interrupted pre-training with other settings, data, threads or code has left its progress here, after "
        "epoch 1",
        f"  where: {path}",
        "  to do: give its own command to go on with it; or delete it, or give another --out",
    ]
    assert path.read_bytes() == theirs
    for content in (b"damaged", b""):
        path.write_bytes(content)
        assert Progress(path, "job").restore(fresh, optimiser, torch.Generator()) == []
    Progress(path, "job").forget()
    assert Progress(path, "job").restore(fresh, optimiser, torch.Generator()) == []
    assert bits(fresh) == before != bits(model)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(4, 8), st.integers(1, ITEMS - 1)), min_size=1, max_size=8),
    st.sampled_from(KINDS),
    st.integers(0, 3),
)
def test_no_event_at_or_after_the_cutoff_moves_a_bit(
    changes: list[tuple[int, int, int]], kind: dict[str, Any], more: int
) -> None:
    plain = chains()
    items = [list(row) for row in np.split(plain.columns["item"], 12)]
    for user, place, item in changes:
        items[user][place] = item
    longer = [[*row, *range(1, more + 1)] for row in items]
    cutoff, config = START + 4 * MINUTE, small(**kind, epochs=1)
    assert bits(fit(Source(longer), cutoff, config)[0]) == bits(fit(plain, cutoff, config)[0])


def test_an_event_before_the_cutoff_does() -> None:
    items = [list(row) for row in np.split(chains().columns["item"], 12)]
    items[5][1] = 1
    cutoff, config = START + 4 * MINUTE, small(epochs=1)
    assert bits(fit(Source(items), cutoff, config)[0]) != bits(fit(chains(), cutoff, config)[0])


def test_held_out_events_are_ranked_and_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [list(row) for row in np.split(chains().columns["item"], 12)]
    config = small(holdout=2, epochs=1)
    plain, sequences, _ = fit(Source(items), None, config)
    for row in items:
        row[-2:] = [3, 4]
    other, _, _ = fit(Source(items), None, config)
    assert bits(plain) == bits(other)
    whole = [rank_held_out(plain, sequences, back).rank.tolist() for back in (1, 2)]
    assert whole[0] != whole[1]
    monkeypatch.setattr(leave_one_out, "SCORES", 3 * ITEMS)
    assert [rank_held_out(plain, sequences, back).rank.tolist() for back in (1, 2)] == whole
    with pytest.raises(ValueError, match=r"back must lie in \[1, holdout = 2\], got 3"):
        rank_held_out(plain, sequences, 3)


def ranked_by_hand(model: NextEvent, source: Source, user: int, seen: str) -> float:
    """The rank of a user's last item, one user and one item at a time."""
    start = int(source.counts[:user].sum())
    count = int(source.counts[user])
    events = source.events(np.array([start]), np.array([count]))
    shown = {name: torch.from_numpy(column[:-1][-TEACHER.max_length :]) for name, column in events.items()}
    target = int(events["item"][-1])
    left_out = {"none": [], "window": shown["item"].tolist(), "all": events["item"][:-1].tolist()}[seen]
    with torch.no_grad():
        state = model.eval()(shown, torch.tensor([len(shown["item"])]))[-1]
        score = torch.cosine_similarity(state[None], model.table("item"), dim=1).double()
    others = [item for item in range(1, ITEMS) if item != target and item not in left_out]
    return 1.0 + sum(float(score[item] > score[target] - 1e-7) for item in others)


@pytest.mark.parametrize("seen", ["none", "window", "all"])
def test_ranks_equal_those_of_one_user_at_a_time(seen: str) -> None:
    # histories of 8 events, of which the model is shown 6; items 1 and 2 come in the two that it is not shown
    source = Source([[1, 2, 5, 6, 7, 8, 9, 10, 4], [2, 1, 9, 8, 7, 6, 5, 4, 3], [3, 4], [5], []])
    model, sequences, _ = fit(source, None, small(filter_seen=seen, epochs=3, lr=0.01))
    found = rank_held_out(model, sequences)
    assert found.user.tolist() == [0, 1, 2]  # nothing is known of the others
    assert found.rank.tolist() == [ranked_by_hand(model, source, user, seen) for user in (0, 1, 2)]


def test_the_yardstick_ranks_by_how_often_an_item_occurs() -> None:
    source = Source([[1, 2, 1, 3], [1, 2, 3, 1], [2, 4, 5, 9]])
    model, sequences, _ = fit(source, None, small(filter_seen="none"))
    count = sequences.occurrences({"item": ITEMS})["item"]
    assert count[:6].tolist() == [0, 3, 3, 1, 1, 1]
    # item 3 is behind 1 and 2 and ties with 4 and 5; item 1 ties with 2; item 9 never occurs, like 5 others
    assert rank_held_out(model, sequences, popularity=count).rank.tolist() == [5.0, 2.0, 11.0]


def test_targets_out_of_vocabulary_are_left_out_and_counted() -> None:
    model, sequences, _ = fit(Source([[1, 2, 3], [1, 2, 0], [4, 5, ITEMS]]), None, small())
    found = rank_held_out(model, sequences)
    assert (found.user.tolist(), found.out_of_vocabulary) == ([0], 2)


def test_a_loss_that_is_nan_is_an_error() -> None:
    with pytest.raises(DataError, match=r"the loss is NaN or infinite in epoch \d, step \d\n(.|\n)*lower pretrain.lr"):
        fit(chains(), None, small(lr=1e30, epochs=5))
