"""Every arm of the study of teachers is a configuration that can be run, made from what a run directory holds."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from recdistill_core.config import load_yaml
from recdistill_core.registry import installed
from recdistill_pipeline.plan import make_plan

ROOT = Path(__file__).parents[2]
#: study -> the configuration of its run
RUNS = {
    "kuairand": "examples/kuairand.yaml",
    "long": "benchmarks/long_history.yaml",
    "gpsd": "examples/kuairand_pretrained.yaml",
}


@pytest.mark.parametrize("name", RUNS)
def test_every_arm_is_another_plan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    quality = importlib.import_module("teacher_quality")
    plan = make_plan(load_yaml(ROOT / RUNS[name]), installed())
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plan.resolved())))
    study = object.__new__(quality.TeacherStudy)  # without a dataset
    study.run, study.arms, study.pretrained = tmp_path, quality.STUDIES[name], tmp_path / "pretrained"
    plans = {arm: study.plan_of(arm).resolved() for arm in study.arms}
    assert plans.pop(quality.BASE) == plan.resolved()
    for arm, found in plans.items():
        assert found != plan.resolved(), arm
    assert len({repr(found) for found in plans.values()}) == len(plans)
    if name == "kuairand":
        assert set(quality.SIZES) <= {quality.BASE, *plans}
        assert plans["hf, qwen3"]["teacher"]["architecture"] == "qwen3"


def test_a_row_has_the_seeds_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    quality = importlib.import_module("teacher_quality")
    study = object.__new__(quality.TeacherStudy)  # without a dataset
    study.out = tmp_path
    for arm, seed in (("length 50", 1), ("length 50", 14), ("length 50, oldest 10", 2)):
        np.save(study.path(arm, seed), np.array([float(seed)], np.float32))
    assert {seed: logit.tolist() for seed, logit in study.found("length 50").items()} == {1: [1.0], 14: [14.0]}
    assert list(study.found("length 50, oldest 10")) == [2]
    assert study.found("length 1") == {}
