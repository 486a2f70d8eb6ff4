"""Features that only the teacher reads: what students see, what is refused, and whole runs on a log where they help."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_cases import CONFIG, FLIPPED, config, run_of
from safetensors.torch import load_file

from recdistill_compare.job import compare_runs
from recdistill_core.config import load_yaml
from recdistill_core.errors import ConfigError, DataError, LeakError
from recdistill_core.fingerprint import digest
from recdistill_core.interfaces import HistoryWindow
from recdistill_core.registry import installed
from recdistill_core.schema import EventField, Schema
from recdistill_lightning import FeatureView
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.models import build_student
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.privileged import require_privileged
from recdistill_pipeline.shared import raw_settings, teacher_settings
from recdistill_pipeline.student_view import student_view
from recdistill_select.jobs import choose

ROWS, USERS, ITEMS = 4000, 80, 150
HOUR = 3_600_000
SCHEMA = """\
tasks: {click: click}
user_id: user
item_id: item
categorical:
  - {name: item, side: item}
  - {name: device}
numeric: [price, dwell]
actions: {click: click}
position: place
"""
TRAINING = {"lr": 0.01, "batch_size": 64, "window_hours": 72}
PRIVATE: dict[str, Any] = {
    "students": ["mlp"],
    "seeds": [1],
    "privileged": ["dwell"],
    "teacher_training": TRAINING,
    "student_training": TRAINING,
    "strategy": {"name": "rec_distill", "alpha": 3.0},
}


def write_log(folder: Path, **changed: Any) -> dict[str, Any]:
    """A log in which ``dwell`` tells half of what decides a click, and no other column does; returns the importer."""
    draw = np.random.default_rng(7)
    user, item = draw.integers(0, USERS, ROWS), draw.integers(0, ITEMS, ROWS)
    quality, taste = draw.normal(0, 1.2, ITEMS)[item], draw.normal(0, 0.3, USERS)[user]
    luck = draw.logistic(0, 1, ROWS)
    columns = {
        "user": user,
        "item": item,
        "event_time": 1_700_000_000_000 + np.arange(ROWS) * HOUR // 8,
        "device": draw.integers(0, 3, ROWS),
        "price": draw.normal(0, 1, ROWS),
        "dwell": quality + 0.3 * luck + draw.normal(0, 0.5, ROWS),
        "click": (quality + taste + luck > 0).astype(np.int64),
        "place": draw.integers(0, 5, ROWS),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, **changed}), folder / "log.parquet")
    (folder / "log.yaml").write_text(SCHEMA)
    return {"name": "table", "path": str(folder / "log.parquet"), "schema": str(folder / "log.yaml")}


def plain_of(importer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**CONFIG, "dataset": {"importer": importer}, **PRIVATE, **changes}


def of(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The importer of the log."""
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def finished(log: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; read-only."""
    out = tmp_path_factory.mktemp("privileged") / "run"
    run_of(out, plain_of(log, exporters=["torch_export"])).all()
    return out


# ---------------------------------------------------------------------------------------------------------- whole runs


def test_a_teacher_gains_by_it_and_its_student_learns_without(finished: Path) -> None:
    found = of(finished, "metrics.json")
    assert found["teacher"]["auc"] > found["raw"]["auc"] + 0.1
    assert found["distilled"]["auc"] > found["raw"]["auc"] + 0.01
    assert found["distilled"]["ne"] < found["raw"]["ne"] - 0.01


def test_nothing_that_is_served_has_an_input_for_it(finished: Path) -> None:
    plan = make_plan(load_yaml(finished / "config.yaml"), installed())
    whole = ParquetSource(finished / "dataset")
    view = student_view(plan, whole, None)
    assert view.schema.numeric == ("price",)
    assert whole.schema.numeric == ("price", "dwell")
    module = build_student(plan, "mlp", view.schema, 1, distilled=True)
    module.load_state_dict(load_file(finished / "seed-1/mlp-distilled/model.safetensors"))
    assert of(finished, "seed-1/mlp-distilled/manifest.json")["privileged"] == ["dwell"]
    inputs = module.student.inputs(view.batch(np.arange(5), module.history))
    assert inputs["numeric"].shape == (5, 1)
    assert inputs["categorical"].shape == (5, 2)
    exported = torch.export.load(finished / "seed-1/mlp-distilled/export/torch_export/model.pt2").module()
    torch.testing.assert_close(exported(**inputs)["click"], module.serving_module()(**inputs)["click"])


def test_the_teacher_and_the_report_tell_what_it_says_of_the_label(finished: Path) -> None:
    told = of(finished, "seed-1/teacher/manifest.json")["privileged"]
    assert 0.8 < told["dwell"]["click"] < 0.9
    assert of(finished, "metrics.json")["privileged"] == told
    shown = (finished / "summary.md").read_text()
    assert "| read by the teacher alone | task | AUC of it alone, training rows |" in shown
    assert f"| dwell | click | {told['dwell']['click']:.3f} |" in shown


@pytest.fixture(scope="module")
def flipped(log: dict[str, Any], finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's twin, whose log has another dwell in one row; teacher and raw student alone."""
    home = tmp_path_factory.mktemp("flipped")
    dwell = pq.read_table(log["path"])["dwell"].to_numpy().copy()
    dwell[FLIPPED] += 5.0
    run = run_of(home / "run", plain_of(write_log(home / "log", dwell=dwell)))
    run.teachers()
    run.raw_student("mlp", 1)
    return home / "run"


def test_another_value_moves_the_teachers_label_and_no_students_input(finished: Path, flipped: Path) -> None:
    plan = make_plan(load_yaml(finished / "config.yaml"), installed())
    row, labels, inputs = np.array([FLIPPED]), [], []
    for out in (finished, flipped):
        version = of(out, "seed-1/teacher/manifest.json")["labels"]["version"]
        source = ParquetSource(out / "dataset")
        ids = source.column("example_id")[row]
        labels.append(float(ParquetLogitStore(out / "labels").read(version, ids).logits["click"]))
        view = student_view(plan, source, None)
        module = build_student(plan, "mlp", view.schema, 1, distilled=False)
        inputs.append(module.student.inputs(view.batch(np.arange(ROWS), module.history)))
    assert abs(labels[0] - labels[1]) > 1e-3
    assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in inputs[0])
    files = [out / "seed-1/mlp-raw/model.safetensors" for out in (finished, flipped)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_student_is_the_one_of_a_log_without_the_column(finished: Path, log: dict[str, Any], tmp_path: Path) -> None:
    """A student cannot tell a feature that is privileged from one that does not exist."""
    importer = write_log(tmp_path / "log")
    schema = Path(importer["schema"])
    schema.write_text(schema.read_text().replace("numeric: [price, dwell]", "numeric: [price]"))
    run_of(tmp_path / "run", plain_of(importer, privileged=[])).all()
    files = [out / "seed-1/mlp-raw/serving.safetensors" for out in (finished, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with_it, without = of(finished, "metrics.json"), of(tmp_path / "run", "metrics.json")
    assert with_it["raw"]["auc"] == without["raw"]["auc"]
    assert with_it["distilled"]["auc"] > without["distilled"]["auc"] + 0.005  # a teacher without it taught less


def test_examples_are_chosen_by_what_the_student_sees(finished: Path, tmp_path: Path) -> None:
    run = run_of(finished, load_yaml(finished / "config.yaml"))
    found = choose(run, budget="10%", sampler={"name": "uncertainty"}, out=tmp_path / "chosen.parquet")
    assert found["chosen"] == 300


def test_rows_of_a_comparison_tell_which_features_the_teacher_had_alone(
    finished: Path, log: dict[str, Any], tmp_path: Path
) -> None:
    given = plain_of({}, dataset={"path": str(finished / "dataset")})
    run_of(tmp_path / "one", given).all()
    run_of(tmp_path / "two", {**given, "privileged": []}).all()
    found = compare_runs([tmp_path / "one", tmp_path / "two"])
    assert [row["name"] for row in found["rows"]] == ['privileged=["dwell"]', "privileged=[]"]


def test_what_is_shared_knows_which_features_are_privileged() -> None:
    keys = []
    for names in ([], ["dwell"]):
        plan = make_plan(config(Path("d"), students=["mlp"], privileged=names), installed())
        keys.append((digest(teacher_settings(plan)), digest(raw_settings(plan, "mlp"))))
    assert keys[0][0] != keys[1][0]  # its manifest tells what they say of the label
    assert keys[0][1] != keys[1][1]


def test_a_position_may_be_a_feature_that_the_teacher_has_alone(tmp_path: Path) -> None:
    importer = write_log(tmp_path / "log")
    schema = Path(importer["schema"])
    schema.write_text(schema.read_text().replace("{name: device}", "{name: place}"))
    run = run_of(tmp_path / "run", plain_of(importer, privileged=["place"]))
    source, _ = run.dataset()
    view = student_view(run.plan, source, None)
    assert [entry.name for entry in source.schema.categorical] == ["item", "place"]
    assert [entry.name for entry in view.schema.categorical] == ["item"]
    assert source.schema.gives == view.schema.gives == ("position",)


def test_scores_of_others_may_know_what_students_do_not(finished: Path, tmp_path: Path) -> None:
    source = ParquetSource(finished / "dataset")
    scores = {"example_id": source.column("example_id"), "logit_click": source.column("dwell")}
    pq.write_table(pa.table(scores), tmp_path / "scores.parquet")
    teacher = {"name": "scores_file", "path": str(tmp_path / "scores.parquet"), "scale": "logit"}
    plain = plain_of({}, dataset={"path": str(finished / "dataset")}, teacher=teacher, teacher_training={})
    run_of(tmp_path / "run", plain).all()
    told = of(finished, "metrics.json")["privileged"]
    assert of(tmp_path / "run", "metrics.json")["privileged"] == told
    assert of(tmp_path / "run", "metrics.json")["distilled"]["auc"] > of(finished, "metrics.json")["raw"]["auc"]


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_feature_that_is_the_label_is_refused(log: dict[str, Any], tmp_path: Path) -> None:
    click = pq.read_table(log["path"])["click"].to_numpy()
    watched = click * 30.0 + np.random.default_rng(0).normal(0, 3, ROWS)
    run = run_of(tmp_path / "run", plain_of(write_log(tmp_path / "log", dwell=watched)))
    with pytest.raises(LeakError) as caught:
        run.teachers()
    assert "privileged feature 'dwell' alone tells the label of task 'click' with an AUC of 1.000" in str(caught.value)
    assert "3,000 training rows" in str(caught.value)
    assert "import the log without this column, or coarsen it" in str(caught.value)
    assert not list((tmp_path / "run").glob("seed-1/teacher"))


def test_a_feature_that_comes_near_the_label_is_told_of(log: dict[str, Any], tmp_path: Path) -> None:
    click = pq.read_table(log["path"])["click"].to_numpy()
    near = click * 2.2 + np.random.default_rng(0).normal(0, 1, ROWS)
    said: list[str] = []
    run_of(tmp_path / "run", plain_of(write_log(tmp_path / "log", dwell=near)), said.append).teachers()
    told = of(tmp_path / "run", "seed-1/teacher/manifest.json")["privileged"]["dwell"]["click"]
    assert 0.9 < told < 0.98
    assert any(
        f"privileged feature dwell alone tells the label of task click with an AUC of {told:.3f}" in s for s in said
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["dwel"],
            "privileged[0]: the dataset has no feature 'dwel' (did you mean 'dwell'?); it has item, device, price",
        ),
        (["dwell", "item"], "privileged[1]: 'item' is the item itself, which is known when a student serves"),
    ],
)
def test_features_that_students_cannot_be_without_are_refused(
    names: list[str], message: str, log: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(tmp_path / "run", plain_of(log, privileged=names)).dataset()
    assert message in str(caught.value)


def test_rows_that_were_not_shown_have_no_privileged_features() -> None:
    plan = make_plan(config(Path("d"), privileged=["dwell"]), installed())
    schema = Schema(tasks=("click",), numeric=("dwell", "price"), vocabularies={"item_id": 5}, gives=("shown",))
    with pytest.raises(ConfigError, match="privileged: the log holds rows that were not shown, and nobody knows what"):
        require_privileged(plan, schema)


def test_a_feature_may_have_the_name_of_a_column_that_every_row_has(feed_path: Path, tmp_path: Path) -> None:
    plain = config(feed_path, privileged=["user_id"], students=["mlp"], seeds=[1])
    results = run_of(tmp_path, plain).all()
    assert results["privileged"]["user_id"]["click"] < 0.9
    view = FeatureView(ParquetSource(feed_path), ["user_id"])
    assert view.column("user_id").shape == (3000,)
    with pytest.raises(DataError, match="the feature 'user_id' is left out of this view"):
        view.column("feature/user_id")


def test_students_that_would_see_nothing_are_refused() -> None:
    plan = make_plan(config(Path("d"), privileged=["dwell"]), installed())
    bare = Schema(tasks=("click",), numeric=("dwell",), vocabularies={"item_id": 5})
    with pytest.raises(ConfigError, match="privileged: it leaves the students no feature, and the dataset has no hist"):
        require_privileged(plan, bare)
    require_privileged(plan, replace(bare, numeric=("dwell", "price")))
    require_privileged(plan, replace(bare, events=(EventField("item", "item_id"),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privileged": ["dwell", "dwell"]}, "privileged names 'dwell' more than once"),
        ({"candidates": {"per_row": 1}}, "a candidate was not shown, so nobody knows its privileged features"),
        ({"states": {"width": 4}}, "a state may hold the privileged features of its row, and students would read them"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, Any], message: str, log: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path / "run", plain_of(log, **changes))


# ------------------------------------------------------------------------------------------------------------- the view


def test_a_view_lacks_the_columns_and_is_otherwise_the_dataset(finished: Path) -> None:
    whole = ParquetSource(finished / "dataset")
    view = FeatureView(whole, ["dwell", "device"])
    assert [entry.name for entry in view.schema.categorical] == ["item"]
    assert view.schema.numeric == ("price",)
    assert "device" not in view.schema.vocabularies
    assert (view.snapshot_id, view.num_rows) == (whole.snapshot_id, whole.num_rows)
    assert view.schema.view_hash() != whole.schema.view_hash()
    rows, window = np.array([5, 3, 900]), HistoryWindow(4, 2)
    mine, theirs = view.batch(rows, window).validate(schema=view.schema), whole.batch(rows, window)
    assert torch.equal(mine.categorical, theirs.categorical[:, :1])
    assert torch.equal(mine.numeric, theirs.numeric[:, :1])
    for name in ("example_id", "item_id", "user_id", "event_time", "position"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    assert torch.equal(mine.labels["click"], theirs.labels["click"])
    assert view.row_at(1_700_000_000_000 + HOUR) == whole.row_at(1_700_000_000_000 + HOUR)
    assert np.array_equal(view.column("price"), whole.column("price"))
    assert view.truth("click") is None
    assert torch.equal(FeatureView(whole, ["device"]).batch(rows).numeric, theirs.numeric)


def test_a_view_gives_no_column_that_it_lacks(finished: Path) -> None:
    view = FeatureView(ParquetSource(finished / "dataset"), ["dwell"])
    for name in ("dwell", "feature/dwell"):
        with pytest.raises(DataError, match="the feature 'dwell' is left out of this view of the dataset"):
            view.column(name)
    with pytest.raises(DataError, match=r"the dataset has no feature 'dwel' \(did you mean 'dwell'\?\)"):
        FeatureView(ParquetSource(finished / "dataset"), ["dwel"])
