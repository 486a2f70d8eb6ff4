"""What a run refuses to start from, before its teacher begins, and what it says of that which it takes over."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_cases import (
    TEACHER,
    config,
    run_of,
    teacher_module,
)
from pretrained_cases import PRETRAIN, manifest, plain

from recdistill_core.errors import IntegrityError, LeakError, UsageError
from recdistill_core.registry import installed
from recdistill_gpsd.job import of_run, pretrain
from recdistill_parquet.dataset import ParquetSource
from recdistill_pipeline.dataset import make_split
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.pretrained import Pretrained, require_pretrained, take_over


def later(folder: Path, cutoff: int, out: Path) -> Path:
    """A copy that says it was pre-trained until ``cutoff``."""
    shutil.copytree(folder, out)
    found = manifest(out)
    (out / "manifest.json").write_text(json.dumps({**found, "cutoff": cutoff}))
    return out


def test_a_model_that_saw_the_training_rows_is_refused(
    feed: ParquetSource, feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    times = feed.column("event_time")
    first, test = int(times[int(0.3 * feed.num_rows)]), int(times[int(0.75 * feed.num_rows)])
    peeked = later(model_folder, first + 1, tmp_path / "peeked")
    with pytest.raises(
        LeakError, match=r"pre-trained on events up to .*, and the first training row is of (.|\n)*train_from"
    ):
        run_of(tmp_path / "run", plain(feed_path, peeked)).teachers()
    assert not list((tmp_path / "run").glob("seed-*"))
    leaky = {"mode": "leaky", "allow_leaky": True}
    run_of(tmp_path / "leaky", plain(feed_path, peeked, capture=leaky)).teachers()
    beyond = later(model_folder, test + 1, tmp_path / "beyond")
    with pytest.raises(LeakError, match="the first test row is of"):
        run_of(tmp_path / "run", plain(feed_path, beyond, capture=leaky)).teachers()


def test_a_model_of_another_dataset_is_refused(twin: ParquetSource, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the pre-trained model is of another dataset: \w+, and the run's is \w+"):
        run_of(tmp_path / "run", plain(twin.path, model_folder)).teachers()


def test_another_model_than_that_of_finished_teachers_is_refused(
    feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "pre"
    shutil.copytree(model_folder, path)
    run_of(tmp_path / "run", plain(feed_path, path)).teachers()
    shutil.rmtree(path)
    pretrain(of_run({**plain(feed_path), "pretrain": {**PRETRAIN, "seed": 2}}, installed(), None), path)
    two = tmp_path / "run/seed-2"
    (tmp_path / "run/seed-1").rename(two)  # as if seed 2 were done and seed 1 were not
    with pytest.raises(
        UsageError, match=r"another one than the one that this run was started with\n  where: seed-2/teacher"
    ):
        run_of(tmp_path / "run", plain(feed_path, path)).teachers()


@pytest.mark.parametrize(
    ("taken", "changes", "expected"),
    [
        (
            {"transfer": ["^head"]},
            {},
            r"'\^head' finds no parameter in the pre-trained model(.|\n)*layers.0.project.weight, predict.0",
        ),
        ({"freeze": ["layers"]}, {}, r"'layers' finds no parameter in what is transferred\n  where: pretrained.freeze"),
        ({"transfer": ["^predict"], "freeze": []}, {}, r"the teacher has no parameter 'predict.0.weight'"),
        ({}, {"teacher": {**TEACHER, "width": 8}}, r"has shape \[\d+, 16\] in the pre-trained model and \[\d+, 8\] in"),
    ],
)
def test_a_transfer_that_cannot_be_is_refused(
    taken: dict[str, Any],
    changes: dict[str, Any],
    expected: str,
    feed_path: Path,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    said: list[str] = []
    run = run_of(tmp_path / "run", plain(feed_path, model_folder, pretrained=taken, **changes))
    run.say = said.append
    with pytest.raises(UsageError, match=expected):
        run.teachers()
    assert said == []  # before any teacher begins
    assert not list((tmp_path / "run").glob("seed-*"))


def test_a_damaged_folder_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"this folder holds no pre-trained model\n  where: pretrained.path: "):
        Pretrained.open(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    (broken / "model.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="a file of the pre-trained model is absent or was changed"):
        Pretrained.open(broken).parameters()
    (broken / "manifest.json").write_text(json.dumps({**manifest(model_folder), "version": 9}))
    with pytest.raises(UsageError, match="recdistill-pretrained version 9, and this recdistill reads"):
        Pretrained.open(broken)
    for content in ("{}", "[]"):
        (broken / "manifest.json").write_text(content)
        with pytest.raises(IntegrityError) as caught:
            Pretrained.open(broken)
        assert str(caught.value).splitlines() == [
            "this is not the manifest of a pre-trained model: it names no format and version",
            f"  where: {broken}/manifest.json",
            "  to do: pre-train again, or restore the file",
        ]
    (broken / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"the file cannot be read: (.|\n)*to do: pre-train again, or restore"):
        Pretrained.open(broken)
    (broken / "manifest.json").write_text(json.dumps({"format": "recdistill-pretrained", "version": 1}))
    with pytest.raises(IntegrityError, match="the manifest lacks what a transfer needs: KeyError"):
        Pretrained.open(broken)


@pytest.mark.parametrize("name", ["model.safetensors", "seen.safetensors", "config.json"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_a_damaged_file_is_found_before_the_teacher_begins(
    name: str, content: bytes | None, feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        run_of(tmp_path / "run", plain(feed_path, broken)).teachers()
    assert str(caught.value).splitlines() == [
        "a file of the pre-trained model is absent or was changed since it was written",
        f"  where: {broken}/{name}",
        "  to do: pre-train again, or restore the file",
    ]
    assert not list((tmp_path / "run").glob("seed-*"))


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ({"path": "nothing"}, "this folder holds no pre-trained model"),
        ({"transfer": ["^head"]}, r"'\^head' finds no parameter in the pre-trained model"),
    ],
)
def test_a_wrong_folder_or_pattern_is_found_before_the_dataset_is_imported(
    taken: dict[str, Any], expected: str, feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    importing = {**plain(feed_path, model_folder, pretrained=taken), "dataset": config()["dataset"]}
    with pytest.raises(UsageError, match=expected):
        run_of(tmp_path / "run", importing).teachers()
    assert not (tmp_path / "run/dataset").exists()


def test_nothing_left_to_train_is_refused(feed_path: Path, model_folder: Path, feed: ParquetSource) -> None:
    module = teacher_module(feed, layers=1)
    for name, part in module.named_parameters():
        if not name.startswith("teacher.layers"):
            part.requires_grad_(False)
    taken = {"transfer": ["^layers"], "freeze": ["^layers"]}
    plan = make_plan(plain(feed_path, model_folder, pretrained=taken), installed())
    with pytest.raises(UsageError, match=r"every parameter of the teacher would be frozen\n  where: pretrained.freeze"):
        take_over(plan, module, feed, make_split(feed, plan.config.split))


def test_a_folder_that_was_replaced_since_the_run_began_is_looked_at_again(
    feed: ParquetSource, feed_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    first = int(feed.column("event_time")[int(0.3 * feed.num_rows)])
    plan = make_plan(plain(feed_path, later(model_folder, first + 1, tmp_path / "peeked")), installed())
    module = teacher_module(feed, layers=1)
    before = {name: part.clone() for name, part in module.named_parameters()}
    with pytest.raises(LeakError, match="pre-trained on events up to"):
        take_over(plan, module, feed, make_split(feed, plan.config.split))
    assert all(torch.equal(part, before[name]) for name, part in module.named_parameters())


@pytest.mark.parametrize(
    ("teacher", "transfer", "expected"),
    [
        (
            {
                "name": "hf",
                "width": 16,
                "heads": 2,
                "max_length": 32,
                "history_stride": 8,
                "context_width": 4,
                "hidden": [8],
            },
            [r"^tokens\."],
            r"1 parameters, tokens \(1\); not taken over: layers \(\d+\), predict \(\d+\); at the teacher's own start: "
            r"decoder \(\d+\), gap \(1\), head \(\d+\)",
        ),
        (
            {**TEACHER, "layers": 3},
            [r"^tokens\.", r"^layers\."],
            r"\d+ parameters, layers \(\d+\), tokens \(1\); not taken over: predict \(\d+\); at the teacher's own "
            r"start: head \(\d+\), layers \(\d+\)",
        ),
    ],
)
def test_a_teacher_of_another_kind_or_depth_hears_what_it_does_not_take_over(
    teacher: dict[str, Any],
    transfer: list[str],
    expected: str,
    feed: ParquetSource,
    feed_path: Path,
    model_folder: Path,
) -> None:
    taken = {"transfer": transfer, "freeze": []}
    plan = make_plan(plain(feed_path, model_folder, teacher=teacher, pretrained=taken), installed())
    said = require_pretrained(plan, feed, make_split(feed, plan.config.split), {})
    assert re.fullmatch(re.escape(f"taken over from {model_folder}: ") + expected, said)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ["error: the ratings cannot be read: No such file or directory", "ratings.dat"]),
        ("\n", ["error: the file holds no rating", "ratings.dat"]),
        (
            "1::2::3::4\n\n1,2,3,4\n",
            [
                "error: '1,2,3,4' is no rating, which is user::movie::stars::seconds in whole numbers",
                "ratings.dat, line 3",
            ],
        ),
        (
            "1::2::3\n",
            [
                "error: '1::2::3' is no rating, which is user::movie::stars::seconds in whole numbers",
                "ratings.dat, line 1",
            ],
        ),
    ],
)
def test_movielens_ratings_that_are_none_are_refused(content: str | None, expected: list[str], tmp_path: Path) -> None:
    made = runpy.run_path(str(Path(__file__).parents[2] / "examples/movielens_to_parquet.py"))
    if content is not None:
        (tmp_path / "ratings.dat").write_text(content)
    with pytest.raises(SystemExit) as caught:
        made["convert"](tmp_path / "ratings.dat", tmp_path / "ml")
    assert str(caught.value).splitlines() == [
        expected[0],
        f"  where: {tmp_path}/{expected[1]}",
        "  to do: give ml-1m/ratings.dat of https://grouplens.org/datasets/movielens/1m/ with --ratings",
    ]
    assert not (tmp_path / "ml").exists()
