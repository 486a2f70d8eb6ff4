"""Settings of pre-training, and the presets."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest
from docs_cases import DOCS, ROOT
from omegaconf import OmegaConf

from recdistill_core.config import fill, load_yaml
from recdistill_core.errors import ConfigError, Problem, UsageError
from recdistill_core.registry import installed
from recdistill_gpsd.config import PretrainConfig
from recdistill_gpsd.job import of_preset
from recdistill_gpsd.presets import PRESETS
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.runconfig import PretrainedConfig

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": "hsut"}, r"architecture must be one of hstu, sasrec; got 'hsut' \(did you mean 'hstu'\?\)"),
        ({"windows": "last"}, "windows must be one of all, newest"),
        ({"negatives_from": "x"}, "negatives_from must be one of uniform, popularity"),
        ({"negatives_per": "x"}, "negatives_per must be one of batch, target"),
        ({"filter_seen": "some"}, "filter_seen must be one of none, window, all"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_users": 0}, "batch_users must be at least 1"),
        ({"negatives": 0}, "negatives must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"field_weight": float("nan")}, "field_weight must be at least 0, got nan"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"lr": 0.0}, "lr must be positive and finite"),
        ({"temperature": float("inf")}, "temperature must be positive and finite"),
        ({"holdout": 3}, "holdout must be 0, 1 or 2, got 3"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \[0.9, 1.0\]"),
        ({"input_dropout": 1.0}, r"input_dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        PretrainConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"transfer": ["("]}, r"transfer holds '\(', which is no regular expression"),
        ({"freeze": ["*"]}, r"freeze holds '\*', which is no regular expression"),
        ({"transfer": []}, "transfer needs at least one regular expression"),
    ],
)
def test_impossible_transfers_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        PretrainedConfig(**changes)


@pytest.mark.parametrize(
    ("name", "layers", "heads"), [("hstu-ml1m", 2, 1), ("hstu-large-ml1m", 8, 2), ("sasrec-ml1m", 2, 1)]
)
def test_presets_hold_the_published_settings(name: str, layers: int, heads: int) -> None:
    job = of_preset(name, {}, None)  # type: ignore[arg-type]  # without `until` nothing of the source is read
    teacher, config = job.teacher, job.config
    assert (teacher.layers, teacher.heads, teacher.width, teacher.max_length) == (layers, heads, 50, 200)
    assert (teacher.dropout, teacher.added_action, config.input_dropout, config.input_positions) == (
        0.2,
        False,
        0.2,
        True,
    )
    assert (config.epochs, config.batch_users, config.lr, config.betas, config.weight_decay) == (
        101,
        128,
        1e-3,
        (0.9, 0.98),
        0.0,
    )
    assert (config.negatives, config.negatives_per, config.temperature, config.normalise) == (128, "target", 0.05, True)
    # the official code draws evenly, for which a correction by log Q cancels; it has none
    assert (config.negatives_from, config.log_q, config.warmup_steps) == ("uniform", True, 0)
    assert (config.architecture, config.holdout, config.filter_seen) == (name.partition("-")[0], 1, "window")
    # of every user the newest events alone are a sequence, and items alone are predicted
    assert (config.windows, config.field_weight) == ("newest", 0.0)
    assert job.cutoff is None


def test_published_results_are_those_of_the_paper() -> None:
    assert {name: tuple(preset.published.values()) for name, preset in PRESETS.items()} == {
        "hstu-ml1m": (0.3097, 0.1720),
        "hstu-large-ml1m": (0.3294, 0.1893),
        "sasrec-ml1m": (0.2853, 0.1603),
    }


def test_settings_of_a_preset_can_be_changed_and_are_checked() -> None:
    job = of_preset("hstu-ml1m", {"epochs": 2, "teacher": {"layers": 1}}, None)  # type: ignore[arg-type]  # as above
    assert (job.config.epochs, job.teacher.layers, job.teacher.width) == (2, 1, 50)
    as_in_a_run = of_preset("hstu-ml1m", {"pretrain": {"epochs": 2}, "teacher": {"layers": 1}}, None)  # type: ignore[arg-type]  # as above
    assert as_in_a_run == job
    with pytest.raises(ConfigError, match=r"teacher: must be a mapping, as in teacher\.layers=4, got 3"):
        of_preset("hstu-ml1m", {"teacher": 3}, None)  # type: ignore[arg-type]  # as above
    with pytest.raises(
        UsageError, match=r"there is no preset 'hstu'\n  where: --preset\n  to do: use one of: hstu-ml1m, "
    ):
        of_preset("hstu", {}, None)  # type: ignore[arg-type]  # as above
    with pytest.raises(
        ConfigError, match=r"2 faults:(.|\n)*teacher.layres: unknown key(.|\n)*epochs must be at least 1"
    ):
        of_preset("hstu-ml1m", {"epochs": 0, "teacher": {"layres": 1}}, None)  # type: ignore[arg-type]  # as above


def test_the_page_lists_every_setting_with_its_default() -> None:
    text = (DOCS / "pretraining.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| ", text, flags=re.MULTILINE)
    shown = {name: OmegaConf.to_container(OmegaConf.create(f"v: {default}")) for name, default in rows}
    plain = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(PretrainConfig()).items()
    }
    assert shown == {name: {"v": value} for name, value in plain.items()}
    assert [name for name, _ in rows] == list(plain)


def test_the_page_lists_the_published_results() -> None:
    text = (DOCS / "pretraining.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| (\.\d+) \| (\.\d+) \|$", text, flags=re.MULTILINE)
    assert {name: [float(hr), float(ndcg)] for name, hr, ndcg in rows} == {
        name: list(preset.published.values()) for name, preset in PRESETS.items()
    }


def test_the_example_is_a_valid_run_with_a_valid_pretraining() -> None:
    plan = make_plan(load_yaml(EXAMPLES / "kuairand_pretrained.yaml"), installed())
    problems: list[Problem] = []
    config = fill(PretrainConfig, plan.config.pretrain, "pretrain", problems)
    assert (problems, config and config.epochs) == ([], 5)
