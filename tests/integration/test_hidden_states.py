"""The hidden-state channel: what is captured when, what no label reaches, and runs whose students read it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline_cases import (
    FLIPPED,
    TEACHER,
    Before,
    Verb,
    answer,
    config,
    data_module,
    fit,
    run_of,
    teacher_module,
    write_config,
)
from safetensors.torch import load_file

from recdistill_compare.job import compare_runs
from recdistill_compare.report import summary as comparison
from recdistill_compare.report import value_rows
from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import ConfigError, IntegrityError, LeakError, PluginError, UsageError
from recdistill_core.objective import Objective
from recdistill_core.registry import installed
from recdistill_lightning import (
    LogitCapture,
    ReadOrder,
    StateCapture,
    StateCompressor,
    States,
    StateSource,
    StudentModule,
    TrainedExamples,
    read_states,
    states_after_training,
    states_with_later,
)
from recdistill_lightning.states import pack
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.fit import fit_student
from recdistill_pipeline.scoring import rows_by_user
from recdistill_select.candidates import raw_student
from recdistill_select.jobs import _seen

ROWS = np.arange(1500)
QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1]}
WIDTH = {"states": {"width": 4}}


class Compressors(L.Callback):
    """A copy of the compressor before each step; None before the first."""

    def __init__(self, capture: StateCapture) -> None:
        self.capture, self.steps = capture, list[StateCompressor | None]()

    def on_train_batch_start(self, *given: Any) -> None:
        self.steps.append(copy.deepcopy(self.capture.compressor))


class Hidden(L.Callback):
    """The activation of every row as the module hands it out, before anything is rounded."""

    def __init__(self) -> None:
        self.rows: dict[int, torch.Tensor] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert not outputs["hidden"].requires_grad
        self.rows.update(zip(batch.example_id.tolist(), outputs["hidden"], strict=True))


def captured(source: ParquetSource, *others: L.Callback, **settings: Any) -> StateCapture:
    """Fit the small teacher on the first rows; ``of``, ``warmup_steps`` and ``order`` as given."""
    order = {"order": settings.pop("order")} if "order" in settings else {}
    teacher = settings.pop("teacher", {})
    module = teacher_module(source, **teacher)
    callback = StateCapture(4, **settings)
    fit(module, data_module(source, module, **order), *others, callback)
    assert module.hands_out == ""
    return callback


def found(capture: StateCapture) -> States:
    assert capture.states is not None
    return capture.states


def in_row_order(states: States, source: ParquetSource) -> np.ndarray[Any, Any]:
    """``[1500, bytes]``; every row must have one."""
    order = np.argsort(states.example_id)
    ids = source.column("example_id")[:1500]
    place = order[np.searchsorted(states.example_id[order], ids)]
    assert np.array_equal(states.example_id[place], ids)
    return states.packed[place]


# ---------------------------------------------------------------------------------------------------------- capture


@pytest.mark.parametrize("of", ["state", "token", "head"])
def test_a_state_is_of_teacher_and_compressor_before_the_update(feed: ParquetSource, of: str) -> None:
    before = Before()
    callback = StateCapture(4, of=of)
    copies = Compressors(callback)
    module = teacher_module(feed)
    fit(module, data_module(feed, module), before, copies, callback)
    states = found(callback)
    assert len(states) == 1500
    assert not states.after_training.any()
    packed = dict(zip(states.example_id.tolist(), states.packed, strict=True))
    for (batch, teacher), compressor in list(zip(before.steps, copies.steps, strict=True))[1::3]:
        hidden = teacher.training_scores(batch.without_outcomes()).hidden[of]
        assert compressor is not None
        wanted = pack(compressor.codes(hidden).numpy(), 4)
        assert np.array_equal(wanted, np.stack([packed[row] for row in batch.example_id.tolist()]))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_teacher_and_its_labels_are_what_they_are_without(
    feed: ParquetSource, tmp_path: Path, dropout: float
) -> None:
    weights, labels = [], []
    for with_states in (False, True):
        module = teacher_module(feed, dropout=dropout)
        capture = LogitCapture(ParquetLogitStore(tmp_path / str(with_states)))
        fit(module, data_module(feed, module), capture, *([StateCapture(4)] if with_states else []))
        weights.append(module.state_dict())
        store = ParquetLogitStore(tmp_path / str(with_states))
        labels.append(store.read(capture.version, feed.column("example_id")[:1500]).logits["click"])
    assert torch.equal(*labels)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "order", [ReadOrder(128, 48, "user"), ReadOrder(128, 0, "time")], ids=["windows by user", "strict time"]
)
def test_a_label_reaches_no_state_that_its_row_or_an_earlier_one_reads(
    feed: ParquetSource, twin: ParquetSource, order: ReadOrder
) -> None:
    exact, packed, features, steps = [], [], [], []
    user, time = feed.column("user_id")[:1500], feed.column("event_time")[:1500]
    for source in (feed, twin):
        before, hidden = Before(), Hidden()
        states = found(captured(source, before, hidden, order=order, bits=8))
        exact.append(torch.stack([hidden.rows[row] for row in source.column("example_id")[:1500].tolist()]).numpy())
        packed.append(in_row_order(states, source))
        features.append(StateSource(source, 4, states, recent=4).features(user, time))
        steps.append({int(row): at for at, (batch, _) in enumerate(before.steps) for row in batch.example_id})
    assert steps[0] == steps[1]
    step = np.array([steps[0][row] for row in feed.column("example_id")[:1500].tolist()])
    bits, same, alike = ((two[0] == two[1]).all(axis=1) for two in (exact, packed, features))
    later_of_user = (user == user[FLIPPED]) & (time > time[FLIPPED])
    known = features[0][:, -1] > 0
    # states: of everything that is trained on no later than the flipped row, its own included
    assert bits[(step <= step[FLIPPED]) & ~later_of_user].all()
    assert same[(step <= step[FLIPPED]) & ~later_of_user].all()
    assert bits[step > step[FLIPPED]].mean() < 0.1
    assert same[step > step[FLIPPED]].mean() < 0.9
    # features: of all rows that are read no later, and of its user's rows up to its own moment whatever the order
    assert alike[(step <= step[FLIPPED]) & ~later_of_user].all()
    assert alike[(user == user[FLIPPED]) & (time <= time[FLIPPED])].all()
    assert known[FLIPPED]
    assert alike[(step > step[FLIPPED]) & known].mean() < 0.9
    if order.window_hours == 0:
        assert alike[time <= time[FLIPPED]].all()


def test_the_first_steps_are_left_out_and_the_compressor_learns_from_them(feed: ParquetSource) -> None:
    everything, warm = captured(feed), captured(feed, warmup_steps=3)
    left_out = len(found(everything)) - len(found(warm))
    assert 2 * 128 < left_out <= 3 * 128  # windows end with smaller batches
    assert np.array_equal(found(everything).packed[left_out:], found(warm).packed)


def test_later_passes_are_not_kept(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    callback = StateCapture(4)
    fit(module, data_module(feed, module, batch_epochs=2), callback)
    assert np.array_equal(found(callback).packed, found(captured(feed)).packed)


def test_rows_after_the_fit_get_the_trained_teachers_state_and_trained_ones_are_refused(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    callback = StateCapture(4)
    fit(module, data_module(feed, module), callback)
    later = list(rows_by_user(feed, np.arange(1500, 1900), module.history, 200))
    both = states_with_later(callback, module, later, feed, {"seed": 5})
    assert both.facts == {"dataset": feed.snapshot_id, "of": "state", "seed": 5}
    assert both.after_training.sum() == 400
    assert np.array_equal(both.packed[:1500], found(callback).packed)
    assert callback.compressor is not None
    batch = later[1]
    wanted = pack(callback.compressor.codes(module.scores(batch).hidden["state"]).numpy(), 4)  # type: ignore[index]  # this teacher has hidden activations
    assert np.array_equal(both.packed[1700:], wanted)
    early = rows_by_user(feed, np.arange(1490, 1510), module.history, 20)
    with pytest.raises(LeakError, match="10 of 20 examples of a batch, or later rows of their users, were trained on"):
        states_after_training(module, early, feed, callback.compressor)
    with pytest.raises(UsageError, match="the capture has kept no states"):
        states_with_later(StateCapture(4), module, [], feed, {})


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_fit_that_goes_on_keeps_the_rest(feed: ParquetSource, tmp_path: Path) -> None:
    whole, rest = StateCapture(4), StateCapture(4)
    for callback, checkpoint in ((whole, None), (rest, tmp_path / "step=4.ckpt")):
        module = teacher_module(feed)
        save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        fit(module, data_module(feed, module), save, callback, enable_checkpointing=True, checkpoint=checkpoint)
    count = len(found(rest))
    assert 0 < count < 1500
    assert np.array_equal(found(rest).example_id, found(whole).example_id[-count:])


def test_rows_that_an_earlier_fit_has_seen_are_refused(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    module.trained.add(TrainedExamples(feed.column("example_id")[:10]).ids())
    with pytest.raises(LeakError, match="examples of this batch were trained on in an earlier fit"):
        fit(module, data_module(feed, module), StateCapture(4))
    assert module.hands_out == ""


def test_shuffled_rows_are_refused(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    with pytest.raises(LeakError, match="in a shuffled window the teacher could be trained on a later row"):
        fit(module, data_module(feed, module, order=ReadOrder(128, 48, "shuffle")), StateCapture(4))


def test_an_activation_that_the_teacher_has_not_is_told_with_those_it_has(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    message = (
        r"HSTUTeacher gives no hidden activation 'mind' of 128 rows; it gives state \[128, 16\], token \[128, 16\]"
    )
    with pytest.raises(PluginError, match=message) as caught:
        fit(module, data_module(feed, module), StateCapture(4, of="mind"))
    assert "name one that it gives (states.of in a run)" in str(caught.value)


def test_a_student_and_several_processes_are_refused(feed: ParquetSource) -> None:
    student = make(installed(), "student", "mlp", BuildContext(feed.schema, ("click",)))
    module = StudentModule(student, {"click": Objective("click")})
    with pytest.raises(UsageError, match="StateCapture needs a TeacherModule, got StudentModule"):
        fit(module, data_module(feed, module), StateCapture(4))

    class Several:
        world_size = 2

    several: Any = Several()
    with pytest.raises(UsageError, match="hidden states are kept in one process"):
        StateCapture(4).on_train_start(several, teacher_module(feed))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 5}, "width must be even and >= 2, got 5"),
        ({"width": 4, "bits": 1}, r"bits must lie in \[2, 8\], got 1"),
        ({"width": 4, "lr": 0.0}, "lr must be > 0, warmup_steps >= 0 and of a name; got 0.0, 0 and 'state'"),
    ],
)
def test_settings_of_a_capture_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StateCapture(**values)


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def whole_run(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with states, exports and candidates; read-only."""
    out = tmp_path_factory.mktemp("states") / "run"
    run_of(out, config(feed_path, **QUICK, **WIDTH, **BESIDE)).all()
    return out


BESIDE: dict[str, Any] = {"candidates": {"per_row": 1}, "exporters": ["torch_export"]}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = load_file(one), load_file(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_says_what_its_students_read(whole_run: Path, feed: ParquetSource) -> None:
    teacher, student = (read(whole_run / f"seed-1/{step}/manifest.json") for step in ("teacher", "mlp-distilled"))
    facts = {"width": 4, "bits": 4, "of": "state"}
    assert teacher["states"] == {**facts, "in_training": 2250, "after_training": 750}
    told = student["states"]
    assert told.pop("sha256") == teacher["files"]["states.parquet"]
    states = read_states(whole_run / "seed-1/teacher/states.parquet")
    view = StateSource(feed, 4, states)
    known = view.column("teacher_state_known")[:2250] > 0
    assert told == {**facts, "recent": 8, "delay_minutes": 0, "rows_with_one": known.mean()}
    assert 0.5 < known.mean() < 1
    assert states.facts == {
        "dataset": feed.snapshot_id,
        "of": "state",
        "seed": 1,
        "labels": teacher["labels"]["version"],
    }
    assert "states" not in read(whole_run / "seed-1/mlp-raw/manifest.json")
    assert "compressor.safetensors" in teacher["files"]
    assert read(whole_run / "metrics.json")["channel"] == "logits and hidden states"
    assert "> **Hidden states.** Beside the teacher's logits" in (whole_run / "summary.md").read_text()


def test_what_is_served_takes_the_states_as_numbers(whole_run: Path, feed: ParquetSource) -> None:
    export = read(whole_run / "seed-1/mlp-distilled/export/torch_export/manifest.json")
    assert export["largest_difference"] <= export["tolerance"]
    loaded = torch.export.load(whole_run / "seed-1/mlp-distilled/export/torch_export/model.pt2").module()
    view = StateSource(feed, 4, read_states(whole_run / "seed-1/teacher/states.parquet"))
    torch.manual_seed(1)
    student = make(installed(), "student", "mlp", BuildContext(view.schema, ("click",)))
    inputs = student.inputs(view.batch(np.arange(2900, 3000), student.history))
    assert inputs["numeric"].shape[1] == len(feed.schema.numeric) + 5
    blind = {**inputs, "numeric": inputs["numeric"].clone()}
    blind["numeric"][:, -5:] = 0
    assert not torch.equal(loaded(**inputs)["click"], loaded(**blind)["click"])


def test_the_same_seed_gives_the_same_bits_and_an_interrupted_run_goes_on(
    whole_run: Path, feed_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, out = config(feed_path, **QUICK, **WIDTH, **BESIDE), tmp_path / "run"

    def breaks(*given: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:  # the labels are committed by then
        patch.setattr("recdistill_pipeline.states.write_states", breaks)
        with pytest.raises(RuntimeError, match="broken"):
            run_of(out, plain).teachers()
    assert not (out / "seed-1/teacher").exists()
    run_of(out, plain).teachers()
    run_of(out, plain).students()
    run_of(out, plain).evaluate()
    assert (out / "metrics.json").read_bytes() == (whole_run / "metrics.json").read_bytes()
    for file in ("teacher/states.parquet", "teacher/compressor.safetensors", "mlp-distilled/serving.safetensors"):
        assert (out / "seed-1" / file).read_bytes() == (whole_run / "seed-1" / file).read_bytes(), file


def test_with_and_without_states_the_teacher_is_the_same(whole_run: Path, feed_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_of(out, config(feed_path, **QUICK)).all()
    assert same_weights(*(run / "seed-1/teacher/model.safetensors" for run in (out, whole_run)))
    labels = [read(run / "seed-1/teacher/manifest.json")["labels"] for run in (out, whole_run)]
    assert labels[0] == labels[1]
    results = read(out / "metrics.json")
    assert results["channel"] == "logits"
    assert "Hidden states" not in (out / "summary.md").read_text()
    compared = compare_runs([out, whole_run], resamples=100)
    assert [row["channel"] for row in compared["rows"]] == ["logits", "logits and hidden states"]
    cells = [row[0] for row in value_rows(compared, "auc")]
    assert not cells[0].endswith(")")
    assert cells[1].endswith("(logits and hidden states)")
    assert "states.width" in comparison(compared)


def test_runs_share_teachers_and_raw_students_that_do_not_depend_on_how_states_are_read(
    feed_path: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    reads = {"a": {"width": 4}, "b": {"width": 4, "recent": 2, "delay_minutes": 30}, "c": {"width": 4, "of": "token"}}
    for name, states in reads.items():
        plain = config(feed_path, **QUICK, states=states, shared=str(tmp_path / "shared"))
        run_of(tmp_path / name, plain, said.append).all()
    taken = [line.split(" is there already")[0] for line in said if "is there already" in line]
    assert taken == ["seed-1/teacher", "seed-1/mlp-raw", "seed-1/mlp-raw"]
    one, other = (tmp_path / name / "seed-1/teacher/states.parquet" for name in "ab")
    assert one.samefile(other)
    names = [row["name"] for row in compare_runs([tmp_path / name for name in reads], resamples=100)["rows"]]
    assert names == ["recent=8, delay_minutes=0, of=state", "recent=2, delay_minutes=30, of=state",
                     "recent=8, delay_minutes=0, of=token"]  # fmt: skip
    distilled = [tmp_path / name / "seed-1/mlp-distilled/model.safetensors" for name in reads]
    assert not same_weights(distilled[0], distilled[1])


@pytest.mark.slow
def test_a_sweep_over_ways_to_read_states_trains_one_teacher_and_one_raw_student(
    feed_path: Path, recdistill: Verb, tmp_path: Path
) -> None:
    plain = {"run": config(feed_path, **QUICK, **WIDTH), "grid": {"states.recent": [2, 4]}}
    file = write_config(tmp_path / "sweep.yaml", plain)
    out = tmp_path / "out"
    done = answer(recdistill("sweep", file, "--out", out, "--workers", 1, "--json"))
    assert [entry["status"] for entry in done["runs"].values()] == ["finished", "finished"]
    assert len(list((out / "shared/steps").iterdir())) == 2
    told = [read(path)["states"]["recent"] for path in sorted(out.glob("runs/*/seed-1/mlp-distilled/manifest.json"))]
    assert told == [2, 4]


def test_a_transformers_teacher_has_states_too(feed_path: Path, tmp_path: Path) -> None:
    teacher = {**TEACHER, "name": "hf", "kv_heads": 1}
    run_of(tmp_path, config(feed_path, **QUICK, teacher=teacher, states={"width": 2, "bits": 2, "of": "head"})).all()
    states = read_states(tmp_path / "seed-1/teacher/states.parquet")
    assert (len(states), states.width, states.packed.shape[1]) == (3000, 2, 1)
    assert len(np.unique(states.packed)) > 3


def test_a_raw_student_that_chooses_examples_sees_its_own_columns(whole_run: Path, feed: ParquetSource) -> None:
    run = run_of(whole_run, config(Path(feed.path), **QUICK, **WIDTH, **BESIDE))
    seen = _seen(run, feed, (100, 300), "", 1, lambda what, done, total: None)
    module = raw_student(run, StateSource(feed, 4), "", 1)
    assert seen.embedding.shape == (200, module.student.width)


def test_states_that_were_changed_are_refused(whole_run: Path, feed_path: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "run", config(feed_path, **QUICK, **WIDTH)
    run_of(out, plain).teachers()
    path = out / "seed-1/teacher/states.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(IntegrityError, match="a file of the run is absent or was changed since it was written"):
        run_of(out, plain).students()


def test_a_student_without_a_run_directory_is_not_blind_unnoticed(whole_run: Path, feed: ParquetSource) -> None:
    run = run_of(whole_run, config(Path(feed.path), **QUICK, **WIDTH, **BESIDE))
    source, split = run.dataset()
    teacher = read(whole_run / "seed-1/teacher/manifest.json")
    with pytest.raises(UsageError, match="the student is to read hidden states, and no run directory is given"):
        fit_student(run.plan, "mlp", source, split, run.store, teacher, 1, whole_run / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": {"width": -2}}, "width must be even and >= 0, got -2"),
        ({"states": {"width": 3}}, "width must be even and >= 0, got 3"),
        ({"states": {"width": 4, "bits": 9}}, r"bits must lie in \[2, 8\], got 9"),
        ({"states": {"recent": 0}}, "recent must be >= 1, got 0"),
        ({"states": {"delay_minutes": -1}}, "delay_minutes must be >= 0, got -1"),
        ({"states": {"of": ""}}, "of must name an activation of the teacher"),
        (
            {**WIDTH, "capture": {"mode": "out_of_fold"}},
            "hidden states are those of the run's own teacher before each update: they need capture.mode 'prequential'",
        ),
        ({**WIDTH, "capture": {"mode": "leaky", "allow_leaky": True}}, "hidden states are those of the run's own"),
        ({**WIDTH, "labels": {"versions": ["somebody"]}}, "hidden states are those of the run's own teacher"),
    ],
)
def test_settings_out_of_range_are_refused(
    changes: dict[str, Any], message: str, feed_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path / "out", config(feed_path, **QUICK, **changes))


def test_an_activation_that_the_runs_teacher_has_not_ends_the_run(feed_path: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="HSTUTeacher gives no hidden activation 'soul'"):
        run_of(tmp_path / "out", config(feed_path, **QUICK, states={"width": 4, "of": "soul"})).all()
