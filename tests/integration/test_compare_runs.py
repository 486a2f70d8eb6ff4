"""``compare`` on small runs: the runs' own numbers, paired differences, plots, and runs that cannot be paired."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_cases import Verb, answer, config, refused, run_of

from recdistill_compare.job import compare_runs
from recdistill_compare.read import read_runs
from recdistill_metrics.ranking import Auc

SEEDS = [1, 2, 3]


@pytest.fixture(scope="module")
def runs(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs that differ in alpha; read-only."""
    home = tmp_path_factory.mktemp("compared")
    for name, alpha in (("gentle", 0.5), ("strong", 4.0)):
        strategy = {"name": "rec_distill", "alpha": alpha}
        run_of(home / name, config(feed_path, seeds=SEEDS, strategy=strategy)).all()
    return home / "gentle", home / "strong"


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def altered(run: Path, out: Path, file: str, change: Callable[[str], str]) -> Path:
    shutil.copytree(run, out)
    (out / file).write_text(change((out / file).read_text()))
    return out


def test_a_row_per_student_with_the_numbers_of_the_run(runs: tuple[Path, Path]) -> None:
    found = compare_runs(runs)
    assert [row["student"] for row in found["rows"]] == ["dcn", "mlp", "dcn", "mlp"]
    names = [row["name"] for row in found["rows"]]
    assert names == ["alpha=0.5, student=dcn", "alpha=0.5, student=mlp", "alpha=4, student=dcn", "alpha=4, student=mlp"]
    assert list(found["metrics"]) == ["auc", "gauc", "ne"]
    assert (found["against"], found["seeds"], found["test_rows"]) == (names[0], SEEDS, 750)
    for name, result in found["metrics"].items():
        for place, row in enumerate(result["rows"]):
            student = metrics(runs[place // 2])["students"][row["name"].rpartition("=")[2]]
            for side in ("raw", "teacher", "distilled"):
                assert row[side]["value"] == pytest.approx(student[side][name], abs=1e-9)
            assert row["eta"]["value"] == pytest.approx(student["eta"][name]["value"], abs=1e-9)
            assert row["eta"]["note"] == student["eta"][name]["note"]


def test_a_run_alone_has_the_intervals_of_its_own_evaluation(runs: tuple[Path, Path]) -> None:
    found = compare_runs(runs[:1])
    for name, result in found["metrics"].items():
        for row, student in zip(result["rows"], metrics(runs[0])["students"].values(), strict=True):
            assert (row["distilled"]["low"], row["distilled"]["high"]) == pytest.approx(
                student["distilled"][f"{name}_interval"]
            )
            assert row["gain"] == pytest.approx(student["gain"][name]["teacher"])


def test_differences_are_paired_and_signed(runs: tuple[Path, Path]) -> None:
    found = compare_runs(runs, against="alpha=4, student=dcn", metrics=["ne", "auc"])
    assert list(found["metrics"]) == ["ne", "auc"]
    for result, sign in ((found["metrics"]["ne"], -1), (found["metrics"]["auc"], 1)):
        rows = {row["name"]: row for row in result["rows"]}
        reference = rows["alpha=4, student=dcn"]
        assert reference["against"] is None
        for name, row in rows.items():
            if row is reference:
                continue
            difference = row["against"]["distilled"]
            assert difference["value"] == pytest.approx(
                sign * (row["distilled"]["value"] - reference["distilled"]["value"])
            )
            assert difference["low"] < difference["value"] < difference["high"]
            assert 0 < difference["p"] <= row["against"]["p_holm"] <= 1
            pair = next(
                entry for entry in result["pairs"] if {entry["row"], entry["other"]} == {name, found["against"]}
            )
            assert pair["p"] == pytest.approx(difference["p"])
            assert pair["p_holm"] >= row["against"]["p_holm"]
        assert len(result["pairs"]) == 6


def test_the_same_models_do_not_differ_and_are_not_separated(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "copy")
    found = compare_runs([runs[0], tmp_path / "copy"], metrics=["auc"])["metrics"]["auc"]
    row = found["rows"][2]
    assert row["name"] == "student=dcn (copy, dcn)"
    assert row["against"]["distilled"] == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert found["best"] is None
    eta = row["against"]["eta"]
    assert (eta["value"], eta["low"], eta["high"]) in {(0.0, 0.0, 0.0), (None, None, None)}


def test_rows_in_another_order_are_paired_by_example(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[1], tmp_path / "strong")
    for path in (tmp_path / "strong/predictions").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.take(pa.array(np.random.default_rng(0).permutation(len(table)))), path)
    shuffled = compare_runs([runs[0], tmp_path / "strong"], metrics=["auc"])
    assert shuffled["metrics"] == compare_runs(runs, metrics=["auc"])["metrics"]


def test_what_runs_share_is_read_once(runs: tuple[Path, Path]) -> None:
    found = read_runs(runs)
    first, _, third, _ = found.rows
    for side in ("raw", "teacher"):  # alpha reaches neither
        for one, two in zip(first.logits[side], third.logits[side], strict=True):
            assert one is two
    ones = np.ones(int(found.user.max()) + 1)
    auc = Auc().prepare(first.logits["teacher"][0], found.label, found.user)(ones)
    assert auc == pytest.approx(metrics(runs[0])["teacher"]["auc_seeds"][0], abs=1e-9)


def test_the_verb_prints_writes_and_draws(recdistill: Verb, runs: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["compare", *runs, "--metric", "auc", "--plot", tmp_path / "plots", "--out", tmp_path / "new/page.md"]
    found = answer(recdistill(*words, "--json"))
    assert {**found, "plots": None} == {**json.loads(json.dumps(compare_runs(runs, metrics=["auc"]))), "plots": None}
    drawn = [Path(path).name for path in found["plots"]]
    assert drawn == ["eta-auc.png", "eta-auc-by-student-size.png"]  # one teacher, every row labelled
    for path in found["plots"]:
        assert Path(path).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "new/page.md").read_text()
    for part in (
        "# Comparison",
        "| alpha=4, student=mlp |",
        "| `strategy.alpha` | 0.5 | 0.5 | 4.0 | 4.0 |",
        "seeds 1, 2, 3",
    ):
        assert part in page
    code, shown, _ = recdistill(*words)
    assert code == 0
    for part in ("AUC (more is better)", "alpha=4", found["verdicts"]["auc"].split(";")[0][:40], "page.md"):
        assert part in shown


def test_sizes_and_coverage_are_drawn_where_they_differ(runs: tuple[Path, Path], tmp_path: Path) -> None:
    from recdistill_compare.plots import draw_all

    found = compare_runs(runs, metrics=["auc"])
    found["rows"][0]["sizes"].update(teacher=10.0, coverage=0.5)
    names = [path.name for path in draw_all(found, tmp_path)]
    ends = ("", "-by-student-size", "-by-teacher-size", "-by-label-coverage")
    assert names == [f"eta-auc{end}.png" for end in ends]


def test_rows_without_eta_are_drawn_as_such(runs: tuple[Path, Path], tmp_path: Path) -> None:
    from recdistill_compare.plots import by_size
    from recdistill_pipeline.plots import forest

    result = compare_runs(runs, metrics=["auc"])["metrics"]["auc"]
    for row in result["rows"]:
        row["eta"] = {"value": None, "low": None, "high": None, "note": "undefined: teacher gain <= 0"}
    (axes,) = forest([(row["name"], row["eta"]) for row in result["rows"]], "eta").axes
    assert [text.get_text() for text in axes.texts] == ["undefined: teacher gain <= 0"] * 4
    assert by_size("auc", result, [1.0, 2.0, None, 2.0], "size", logarithmic=True).legends == []


def test_leaky_labels_are_marked(recdistill: Verb, runs: tuple[Path, Path], tmp_path: Path) -> None:
    leaky = altered(runs[0], tmp_path / "leaky", "metrics.json", lambda text: text.replace("prequential", "leaky"))
    _, shown, _ = recdistill("compare", runs[1], leaky, "--metric", "auc", "--out", tmp_path / "page.md")
    tables = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| ")]
    assert sum("(LEAKY labels: no result)" in line for line in tables) == 4  # two students, in both tables
    assert "LEAKY" in shown
    # however high, a leaky row is not named best, nor does it stand in anybody's way
    found = answer(recdistill("compare", runs[1], leaky, "--metric", "auc", "--json"))
    words = {row["name"]: row["verdict"] for row in found["metrics"]["auc"]["rows"]}
    marked = [row["name"] for row in found["rows"] if row["capture"] == "leaky"]
    assert len(marked) == 2
    assert {words[name] for name in marked} == {"no result"}
    alone = answer(recdistill("compare", runs[1], "--metric", "auc", "--json"))
    assert found["verdicts"]["auc"].endswith("student=dcn is highest, 1 of 1 others not separated from it")
    assert alone["verdicts"]["auc"].endswith("student=dcn is highest, 1 of 1 others not separated from it")
    (pair,), (same,) = (of["metrics"]["auc"]["pairs"] for of in (found, alone))
    assert pair["p_holm"] == same["p_holm"]


def test_runs_that_cannot_be_paired_are_refused(recdistill: Verb, runs: tuple[Path, Path], tmp_path: Path) -> None:
    def compared(*others: Path) -> tuple[int, str, str]:
        return recdistill("compare", runs[0], *others, "--json")

    refused(compared(tmp_path / "none"), "UsageError", "this is no run directory", "none")
    refused(compared(runs[0]), "UsageError", "a run is named twice")
    raw = altered(runs[1], tmp_path / "raw", "config.yaml", str)
    (raw / "metrics.json").unlink()
    refused(compared(raw), "UsageError", "the run is not evaluated yet", f"recdistill evaluate {raw}")
    seeds = altered(runs[1], tmp_path / "seeds", "config.yaml", lambda text: text.replace("- 3\n", "- 4\n"))
    refused(compared(seeds), "UsageError", "their seeds differ: [1, 2, 3] and [1, 2, 4]", f"{runs[0]} and {seeds}")
    task = altered(runs[1], tmp_path / "task", "config.yaml", lambda text: text.replace("task: click", "task: like"))
    refused(compared(task), "UsageError", "their task differs: click and like")
    data = altered(
        runs[1], tmp_path / "data", "manifest.json", lambda text: text.replace('"dataset": "', '"dataset": "x')
    )
    refused(compared(data), "UsageError", "their dataset differs", "compare runs of one dataset, task, split")
    fewer = altered(runs[1], tmp_path / "fewer", "config.yaml", str)
    for path in (fewer / "predictions").iterdir():
        pq.write_table(pq.read_table(path).slice(10), path)
    refused(
        compared(fewer), "UsageError", "their test rows differ: 750 and 740 examples, 740 in both", "split.test_from"
    )
    (fewer / "predictions/seed-1-dcn-raw.parquet").unlink()
    refused(compared(fewer), "IntegrityError", "a run's predictions are absent", f"recdistill evaluate {fewer}")


def test_a_dataset_that_is_gone_or_another_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, recdistill: Verb
) -> None:
    def moved(path: str) -> Callable[[str], str]:
        return lambda text: "\n".join(
            f"  path: {path}" if line.startswith("  path: ") and at < 6 else line
            for at, line in enumerate(text.splitlines())
        )

    gone = altered(runs[0], tmp_path / "gone", "config.yaml", moved(str(tmp_path / "nowhere")))
    refused(recdistill("compare", gone, "--json"), "DataError", "the dataset of the runs is gone", "nowhere")
    assert len(compare_runs([gone, runs[1]], metrics=["auc"])["rows"]) == 4  # the other run's dataset is the same
    other = altered(
        runs[0], tmp_path / "other", "manifest.json", lambda text: text.replace('"dataset": "', '"dataset": "x')
    )
    refused(recdistill("compare", other, "--json"), "UsageError", "the dataset is another one than the runs were made")


def test_wrong_arguments_are_refused(recdistill: Verb, runs: tuple[Path, Path]) -> None:
    done = recdistill("compare", *runs, "--metric", "calibration", "--json")
    refused(done, "UsageError", "the first run has no eta of metric 'calibration'", "auc, gauc, ne")
    refused(
        recdistill("compare", *runs, "--against", "nobody", "--json"), "UsageError", "no rows are meant by 'nobody'"
    )
    done = recdistill("compare", *runs, "--against", "strong", "--json")
    refused(done, "UsageError", "2 rows are meant by 'strong'", "alpha=4, student=mlp")
    done = recdistill("compare", *runs, "--resamples", "10", "--json")
    refused(done, "UsageError", "resamples must be at least 100, got 10", "1000 is usual")
