"""`recdistill teacher plan`: what it prints, as JSON and as tables, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hstu_cases import SCHEMA

from recdistill_core.cli import main
from recdistill_core.config import to_yaml
from recdistill_hstu import HSTUConfig
from recdistill_plan.cluster import CARDS, Cluster
from recdistill_plan.fit import MOST_GPUS, best, dominant, fewest, remedies, traffic, ways
from recdistill_plan.memory import estimate
from recdistill_plan.parameters import count
from recdistill_plan.presets import PRESETS, preset
from recdistill_plan.report import short
from recdistill_plan.sizes import Model, Workload
from recdistill_plan.target import described_schema

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``teacher plan`` with these words: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["teacher", "plan", *map(str, words)])
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


def document(done: tuple[int, str, str]) -> Any:
    code, out, err = done
    assert (code, err) == (0, "")
    return json.loads(out)


def test_a_preset_on_a_cluster(run: Run) -> None:
    data = document(run("--preset", "hstu-100m", "--gpus", 16, "--gpu", "a100-80", "--json"))
    model = Model(HSTUConfig(**preset("hstu-100m")), described_schema(), ("click",))
    assert data["parameters"]["dense"] == count(model).dense
    assert data["teacher"]["width"] == 1024
    assert data["vocabularies"] == {"item_id": 1_000_000, "author_id": 100_000}
    assert (data["cluster"]["gpus"], data["cluster"]["usable_bytes"]) == (16, 72e9)
    assert data["workload"] == {
        "histories": 1, "length": 8192, "rows": 16, "precision": "bf16-mixed", "on_cpu": False,
    }  # fmt: skip
    assert [(way["strategy"], way["checkpointing"]) for way in data["ways"]] == [
        (strategy, checkpointing) for strategy in ("ddp", "fsdp2") for checkpointing in ("none", "selective", "full")
    ]
    assert data["fits"] is True
    assert data["remedies"] == []
    way = data["ways"][0]
    assert way["step"] == max(way["compute"], way["communication"])
    assert way["examples"] == pytest.approx(16 * 16 / way["step"])
    assert way["tokens"] == pytest.approx(16 * 8192 / way["step"])
    assert way["days"] == pytest.approx(1e9 / way["examples"] / 86_400)
    assert way["compute"] == pytest.approx(data["flops"]["training"] / (0.4 * 312e12))
    assert data["flops"]["per_example"]["training"] == pytest.approx(3 * data["flops"]["forward"] / 16)


@pytest.mark.parametrize("name", PRESETS)
def test_tables_of_every_preset_stay_within_80_columns(run: Run, name: str) -> None:
    code, out, err = run("--preset", name, "--gpus", 64)
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    assert name in out
    for text in ("parameters", "operations (FLOPs)", "GB per GPU", "GPUs from"):
        assert text in out
    assert "…" not in out


def test_a_run_configuration_with_its_dataset(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "schema.yaml").write_text(to_yaml(SCHEMA.to_dict()))
    config = {
        "name": "mine",
        "dataset": {"path": str(tmp_path / "data")},
        "task": "click",
        "tasks": ["like"],
        "teacher": {"name": "hstu", "width": 32, "layers": 3, "heads": 2},
        "teacher_training": {"batch_size": 64},
        "trainer": {"name": "lightning", "precision": "bf16-true"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config))
    data = document(run(path, "teacher.layers=5", "--rows-per-history", 8, "--json"))
    model = Model(HSTUConfig(width=32, layers=5, heads=2), SCHEMA, ("click", "like"))
    assert data["parameters"]["total"] == count(model).total
    assert (data["name"], data["described"]) == ("mine", False)
    assert data["workload"]["histories"] == 8
    assert data["workload"]["precision"] == "bf16-true"
    other = document(run(path, "dataset.path=", "--vocabulary", "item_id=500", "--precision", "32-true", "--json"))
    assert other["vocabularies"] == {"item_id": 500}
    assert other["described"] is True
    assert other["workload"]["precision"] == "32-true"


def test_settings_of_a_teacher_and_a_described_dataset(run: Run) -> None:
    words = ("width=128", "layers=4", "heads=2", "--vocabulary", "item_id=70", "--vocabulary", "tag=9", "--actions", 2)
    data = document(run(*words, "--json"))
    assert data["parameters"]["tables"] == (70 + 9 + 4) * 128 + (70 + 9) * 16
    assert data["workload"]["length"] == 256
    for word in ("layers=2", "teacher.layers=2"):
        assert document(run("--preset", "hstu-1m", word, "--json"))["teacher"]["layers"] == 2
    assert document(run("teacher.layers=3", "width=64", "--json"))["teacher"]["layers"] == 3


def test_a_cluster_from_a_file_changed_by_options(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("gpu: custom\ngpus: 4\nmemory_gb: 10\ntflops: 50\nlink_gbs: 12\n")
    data = document(run("--preset", "hstu-1m", "--cluster", path, "--gpus", 2, "--json"))
    assert {key: data["cluster"][key] for key in ("gpu", "gpus", "usable_bytes", "rate", "link_gbs")} == {
        "gpu": "custom", "gpus": 2, "usable_bytes": 9e9, "rate": 50e12, "link_gbs": 12,
    }  # fmt: skip


def test_a_cpu_is_described_and_computes_layer_norms_as_its_autocast_does(run: Run) -> None:
    words = ("--gpu", "cpu", "--gpus", 1, "--memory-gb", 16, "--tflops", 0.1, "--link-gbs", 1)
    data, gpu = (document(run("--preset", "hstu-1m", *more, "--json")) for more in (words, ()))
    assert data["workload"]["on_cpu"] is True
    assert data["cluster"]["rate"] == 1e11
    assert data["ways"][0]["memory"]["activations"] < gpu["ways"][0]["memory"]["activations"]


REFUSED = [
    ((), "there is nothing to plan"),
    (("--preset", "hstu-2b"), "there is no preset 'hstu-2b' (did you mean 'hstu-24b'?)"),
    (("a.yaml", "--preset", "hstu-1b"), "one teacher is planned at a time, and a.yaml and hstu-1b are named"),
    (("a.yaml", "b.yaml"), "one teacher is planned at a time, and a.yaml and b.yaml are named"),
    (("absent.yaml",), "the configuration file does not exist"),
    (("widht=3",), "teacher.widht: unknown key (did you mean 'width'?)"),
    (("width=30", "heads=4"), "width must be a multiple of heads"),
    (("--preset", "hstu-1m", "--gpu", "h10"), "gpu must be one of a100-40"),
    (("--preset", "hstu-1m", "--gpu", "h10"), "got 'h10' (did you mean 'h100'?)"),
    (("--preset", "hstu-1m", "--gpu", "a100"), "got 'a100' (did you mean 'a100-40' or 'a100-80'?)"),
    (("--preset", "hstu-1m", "teacher.widht=3"), "teacher.widht: unknown key (did you mean 'width'?)"),
    (("--preset", "hstu-1m", "teacher=3"), "teacher.teacher: unknown key"),
    (("--preset", "hstu-1m", "--gpus", 0), "gpus must be at least 1, got 0"),
    (("--preset", "hstu-1m", "--gpus-per-node", 0), "gpus_per_node must be at least 1, got 0"),
    (("--preset", "hstu-1m", "--memory-gb", 0), "memory_gb must be a number above 0, got 0.0"),
    (("--preset", "hstu-1m", "--tflops", -1), "tflops must be a number above 0, got -1.0"),
    (("--preset", "hstu-1m", "--link-gbs", "inf"), "link_gbs must be a number above 0, got inf"),
    (("--preset", "hstu-1m", "--usable", 1.5), "usable must lie in (0, 1], got 1.5"),
    (
        ("--preset", "hstu-1m", "--gpu", "cpu"),
        "gpu 'cpu' says nothing of itself: give memory_gb, tflops, link_gbs",
    ),
    (("--preset", "hstu-1m", "--mfu", 1.2), "mfu is a share in (0, 1], got 1.2"),
    (("--preset", "hstu-1m", "--examples", 0), "examples must be above 0, got 0.0"),
    (("--preset", "hstu-1m", "--length", 2000), "a history of 2,000 events is longer than max_length, 1,024"),
    (("--preset", "hstu-1m", "--length", 0), "no batch is like this: length must be at least 1, got 0"),
    (("--preset", "hstu-1m", "--rows-per-history", 0), "rows must be at least 1, got 0"),
    (("--preset", "hstu-1m", "--precision", "fp8"), "precision must be one of 32-true, bf16-mixed, bf16-true"),
    (
        ("--preset", "hstu-1m", "--precision", "fp8"),
        "to do: give numbers of at least 1, and a precision of 32-true, bf16-mixed, bf16-true",
    ),
    (("--preset", "hstu-1m", "--vocabulary", "item_id"), "vocabulary 'item_id' is not NAME=SIZE"),
    (("--preset", "hstu-1m", "--vocabulary", "item_id=0"), "vocabulary 'item_id=0' is not NAME=SIZE"),
    (("--preset", "hstu-1m", "--actions", 17), "an action code has at most 16 bits, not 17"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_refused_and_why(run: Run, words: tuple[object, ...], told: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())
    assert "caused by" not in err or "absent.yaml" in words


HTTP = {"name": "http", "url": "https://x", "version": "1", "scale": "logit"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpu: h100\nmemry_gb: 3\n", "{path}: memry_gb: unknown key (did you mean 'memory_gb'?)"),
        ("gpus: many\n", "{path}: gpus: Value 'many' of type 'str' could not be converted to Integer"),
        ("gpus: 0\n", "{path}: gpus must be at least 1, got 0"),
        ("hello\n", "the file must hold a YAML mapping where: {path}"),
    ],
)
def test_a_cluster_file_with_a_slip(run: Run, tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    code, _, err = run("--preset", "hstu-1m", "--cluster", path)
    assert code == 2
    assert told.format(path=path) in " ".join(err.split())
    assert "caused by" not in err


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("layers=8", "layers: unknown key (a setting of the teacher: write teacher.layers=8); known: name, dataset, "),
        ("batchsize=8", "- batchsize: unknown key"),
        ("teacher_trainin.batch_size=3", "teacher_trainin: unknown key (did you mean 'teacher_training'?); known: "),
        ("teacher_training.batchsize=3", "teacher_training.batchsize: unknown key (did you mean 'batch_size'?); known"),
        ("dataset.pth=x", "dataset.pth: unknown key (did you mean 'path'?); known: path, importer, "),
        ("dataset=x", "dataset: must be a mapping, got str 'x'"),
        (
            "teacher_training.batch_size=lots",
            "teacher_training.batch_size: must be a whole number of at least 1, got 'lots'",
        ),
    ],
)
def test_a_key_that_no_run_has_is_refused(run: Run, tmp_path: Path, word: str, told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ntask: click\n")
    code, out, err = run(path, word)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())


def test_a_small_teacher_is_told_in_megabytes(run: Run) -> None:
    words = ("layers=1", "width=8", "heads=1", "max_length=8", "history_stride=8", "--vocabulary", "item_id=50")
    _, out, _ = run(*words)
    (row,) = [line.split() for line in out.splitlines() if line.startswith("fsdp2") and " yes " in line][-1:]
    assert "MB per GPU" in out
    assert float(row[-3]) > 0  # the peak
    _, out, _ = run(*words, "--memory-gb", 1e-5)
    peak = document(run(*words, "--memory-gb", 1e-5, "--json"))["ways"]
    assert f", {min(way['memory']['peak'] for way in peak) / 1e6:,.1f} MB, most of it " in out


@pytest.mark.parametrize(
    ("changes", "told", "code"),
    [
        ({"teacher": HTTP}, "teacher plan knows the teacher hstu, not 'http'", 2),
        ({"teacher": {"name": "hsut"}}, "no teacher is named 'hsut' (did you mean 'hstu'?)", 4),
        ({"dataset": {"path": "nowhere"}}, "the dataset of the configuration is not there, or not imported", 3),
    ],
    ids=["other teacher", "no teacher", "dataset"],
)
def test_configurations_that_cannot_be_planned(
    run: Run, tmp_path: Path, changes: dict[str, Any], told: str, code: int
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml({"name": "x", "task": "click", "teacher": "hstu", **changes}))
    found, _, err = run(path)
    assert (told in " ".join(err.split()), found) == (True, code)


def test_vocabularies_beside_a_dataset(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ntask: click\ndataset: {path: data}\n")
    code, _, err = run(path, "--vocabulary", "item_id=3")
    assert code == 2
    assert "--vocabulary describes a dataset, and the configuration names one" in err


def test_a_teacher_that_fits_nowhere_says_why_and_what_would_help(run: Run) -> None:
    words = ("--preset", "hstu-24b", "--gpu", "a100-40", "--gpus", 8, "--histories", 4)
    code, out, _ = run(*words)
    assert code == 0
    assert "nothing fits; nearest: " in out
    assert "would help: 2 instead of 4 histories per GPU: " in out
    assert "would help: smaller or row-sharded embedding tables" in out
    code, _, err = run(*words, "--must-fit")
    assert code == 2
    assert "the teacher fits on this cluster in none of the ways" in err
    assert run("--preset", "hstu-1m", "--must-fit")[0] == 0


def test_how_many_events_truncated_layers_are_planned_with_is_noted(run: Run) -> None:
    note = (
        "note: the last 32 layers are planned with 4,096 events of each history, the most that they see; where their "
        "window starts decides, and half of that is the least"
    )
    assert note in " ".join(run("--preset", "hstu-1b")[1].split())
    assert document(run("--preset", "hstu-1b", "--length", 4096, "--json"))["notes"] == []
    assert document(run("--preset", "hstu-100m", "--json"))["notes"] == []


def test_the_teachers_own_checkpointing_is_marked(run: Run) -> None:
    words = ("--preset", "hstu-1m", "checkpointing=selective")
    ways_ = document(run(*words, "--json"))["ways"]
    assert [way["checkpointing"] for way in ways_ if way["configured"]] == ["selective", "selective"]
    _, out, _ = run(*words)
    assert out.count("selective *") == 4  # each strategy in two tables
    assert "none *" not in out
    assert "* the teacher's own checkpointing; another is a setting of it" in out


def small() -> tuple[Model, Workload]:
    config = HSTUConfig(width=512, heads=8, layers=16, max_length=512, history_stride=128)
    return Model(config, described_schema(["item_id=1000"]), ("click",)), Workload(1, 512, 4)


def test_the_fewest_gpus_are_enough_and_one_less_is_not() -> None:
    model, work = small()
    peak = estimate(model, work, "fsdp2", "full", 6).peak
    cluster = Cluster("custom", memory_gb=peak * 1.001 / 0.9 / 1e9, tflops=1, link_gbs=1)
    assert fewest(model, work, cluster, "fsdp2", "full") == (6, False)
    assert estimate(model, work, "fsdp2", "full", 5).peak > cluster.memory
    assert fewest(model, work, cluster, "ddp", "full") == (None, False)
    roomy = Cluster("custom", memory_gb=1000, tflops=1, link_gbs=1)
    assert {way.fewest for way in ways(model, work, roomy, mfu=0.5, examples=1e6)} == {1}
    tiny = Cluster("custom", memory_gb=1e-3, tflops=1, link_gbs=1)
    assert fewest(model, work, tiny, "fsdp2", "full") == (None, False)
    peak = estimate(model, work, "ddp", "full", 1).peak
    one = Cluster("custom", memory_gb=peak * 1.001 / 0.9 / 1e9, tflops=1, link_gbs=1)
    assert fewest(model, work, one, "ddp", "full") == (None, True)
    assert MOST_GPUS == 65_536


def test_the_best_way_is_the_fastest_that_fits_or_the_smallest() -> None:
    model, work = small()
    roomy = Cluster("custom", memory_gb=1000, tflops=1, link_gbs=1)
    found = ways(model, work, roomy, mfu=0.5, examples=1e6)
    assert best(found).examples == max(way.examples for way in found)
    tiny = Cluster("custom", memory_gb=1e-3, tflops=1, link_gbs=1)
    nearest = best(ways(model, work, tiny, mfu=0.5, examples=1e6))
    assert (nearest.strategy, nearest.checkpointing, nearest.fits) == ("fsdp2", "full", False)


def test_remedies_lower_the_peak_as_they_say() -> None:
    model, work = small()
    work = Workload(4, 512, 4)
    tiny = Cluster("custom", memory_gb=0.2, tflops=1, link_gbs=1)
    way = next(iter(ways(model, work, tiny, mfu=0.5, examples=1e6)))
    told = list(remedies(model, work, tiny, way))
    halved = estimate(model, Workload(2, 512, 4), way.strategy, way.checkpointing, tiny.gpus).peak
    assert told[0] == f"2 instead of 4 histories per GPU: {halved / 1e6:,.1f} MB"
    assert told[1].startswith("histories of 256 instead of 512 events: ")
    assert dominant(way.memory) == "activations"
    assert dominant(way.memory._replace(optimiser=1e12)) == "optimiser"


def test_what_goes_over_the_links() -> None:
    model, work = small()
    parameters = count(model)
    assert traffic(model, work, "ddp", 1) == traffic(model, work, "fsdp2", 1) == 0
    assert traffic(model, work, "ddp", 4) == 2 * 0.75 * 4 * parameters.total
    assert traffic(model, work, "fsdp2", 4) == 0.75 * 4 * (2 * parameters.total + parameters.layers)
    mixed = replace(work, precision="bf16-mixed")  # layers' weights travel twice in bfloat16, all gradients in float32
    outside = parameters.total - parameters.layers
    assert traffic(model, mixed, "fsdp2", 4) == 0.75 * 4 * (2 * outside + 2 * parameters.layers)
    assert traffic(model, mixed, "ddp", 4) == traffic(model, work, "ddp", 4)


def test_links_and_rates_of_a_cluster() -> None:
    cluster = Cluster("h100", gpus=64)
    assert (cluster.bandwidth(8), cluster.bandwidth(9)) == (450e9, 50e9)
    assert (cluster.rate("bf16-mixed"), cluster.rate("32-true")) == (989e12, 67e12)
    slow = Cluster("h100", link_gbs=30)
    assert (slow.bandwidth(8), slow.bandwidth(16)) == (30e9, 30e9)
    mine = Cluster("custom", memory_gb=1, tflops=2, link_gbs=3)
    assert (mine.bandwidth(2), mine.bandwidth(100), mine.rate("32-true")) == (3e9, 3e9, 2e12)
    assert min(card.memory_gb for card in CARDS.values()) == 40


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (12, "12"), (1234, "1.23k"), (999_600, "1M"), (2.4e10, "24G"), (3e18, "3E")]
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(("word", "name"), [("--preset=hstu-24b", "hstu-24b"), ("run.yaml", "mine")])
def test_planning_loads_no_torch(word: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: mine\ntask: click\nteacher_training: {batch_size: 64}\n")
    code = (
        "import sys\nfrom recdistill_core.cli import main\n"
        f"try:\n    main(['teacher', 'plan', {word!r}, '--json'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == name
