"""The gap between training and test rows, with and without pre-training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pipeline_cases import Verb, answer, run_of
from pretrained_cases import plain

from recdistill_core.errors import UsageError
from recdistill_gpsd.gap import Scored, draw, gaps, intervals
from recdistill_metrics.ranking import Auc


def test_the_gap_of_runs(recdistill: Verb, model_run: Path, feed_path: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "without", plain(feed_path)).teachers()
    found = answer(
        recdistill("teacher", "gap", model_run, tmp_path / "without", "--rows", 500, "--resamples", 50, "--json")
    )
    assert [bool(entry["pretrained"]) for entry in found["runs"]] == [True, False]
    assert [entry["train_rows"] for entry in found["runs"]] == [500, 500]
    for entry in found["runs"]:
        for metric in ("ne", "auc"):
            sides = entry[metric]
            assert sides["gap"]["value"] == pytest.approx(sides["test"]["value"] - sides["train"]["value"])
            assert sides["gap"]["low"] <= sides["gap"]["value"] <= sides["gap"]["high"]
    one, two = (entry["ne"] for entry in found["runs"])
    other = found["runs"][1]["versus_first"]["ne"]
    assert "versus_first" not in found["runs"][0]
    for side in ("train", "test", "gap"):
        assert other[side]["value"] == pytest.approx(two[side]["value"] - one[side]["value"])
        assert other[side]["low"] <= other[side]["value"] <= other[side]["high"]
    # the test side is what the run itself reports
    reported = json.loads((model_run / "metrics.json").read_text())["teacher"]
    assert found["runs"][0]["auc"]["test"]["value"] == pytest.approx(reported["auc"], abs=1e-9)
    assert found["runs"][0]["ne"]["test"]["value"] == pytest.approx(reported["ne"], abs=1e-9)
    code, out, _ = recdistill("teacher", "gap", model_run, "--rows", 100, "--resamples", 20)
    assert (code, "gap: test minus training" in out) == (0, True)


def test_runs_of_other_rows_have_no_paired_difference(model_run: Path, feed_path: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "short", {**plain(feed_path), "split": {"train_from": "60%", "test_from": "75%"}}).teachers()
    found = gaps([model_run, tmp_path / "short"], rows=100, resamples=20)
    assert found["runs"][1]["versus_first"] == {"ne": None, "auc": None}


def test_the_gap_is_the_difference_of_two_metrics() -> None:
    rng = np.random.default_rng(0)
    label, user = rng.integers(0, 2, 80).astype(float), rng.integers(0, 10, 80)
    good = [label * 2 + rng.normal(size=80)]
    train, test = Scored(label[:50], user[:50], good[:1]), Scored(label[50:], user[50:] + 5, [good[0][50:]])
    train = Scored(train.label, train.user, [good[0][:50]])
    found = intervals(draw(Auc(), train, test, 50), 0.9)
    same = intervals(draw(Auc(), train, test, 50) - draw(Auc(), train, test, 50), 0.9)
    assert same["gap"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # paired: a model against itself has no spread
    for name, part in (("train", train), ("test", test)):
        wanted = Auc().prepare(part.logits[0], part.label, part.user)(np.ones(int(part.user.max()) + 1))
        assert found[name]["value"] == pytest.approx(wanted)


def test_gaps_of_what_has_none_are_refused(model_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rows and --resamples must be at least 1, got 0 and 5"):
        gaps([model_run], rows=0, resamples=5)
    with pytest.raises(UsageError, match="this is no run directory"):
        gaps([tmp_path])
