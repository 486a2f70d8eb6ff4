"""Options of the hf teacher: whole numbers, ranges, and what transformers itself would take silently."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hf_cases import make_teacher, small_config
from hstu_cases import make_batch
from transformers import LlamaConfig

from recdistill_core.errors import ConfigError
from recdistill_hf.options import ROPE_KEYS

VALUES = {
    "attention_factor": 1.5,
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 4.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 8,
    "truncate": True,
}


def problems(options: dict[str, Any], architecture: str = "llama") -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        make_teacher(small_config(architecture=architecture, options=options))
    return tuple(problem.removeprefix("teacher.options.") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (
            {"rope_tpye": "yarn", "factor": 4.0},
            (
                "rope_parameters.rope_tpye: is no key of rope_type default in llama (did you mean 'rope_type'?); there "
                "are rope_theta, rope_type",
                "rope_parameters.factor: is no key of rope_type default in llama; there are rope_theta, rope_type",
            ),
        ),
        (
            {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
            (
                "rope_parameters.partial_rotary_factor: is no key of rope_type linear in llama; there are factor, "
                "rope_theta, rope_type",
            ),
        ),
        ({"rope_theta": -1}, ("rope_parameters.rope_theta: must be a positive number, got -1",)),
        ({"rope_theta": 0.0}, ("rope_parameters.rope_theta: must be a positive number, got 0.0",)),
        ({"rope_theta": "x"}, ("rope_parameters.rope_theta: must be a positive number, got 'x'",)),
        (
            {"rope_type": "linear", "factor": 0.5},
            ("rope_parameters.factor: must be a number of at least 1, got 0.5",),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "truncate": 1, "original_max_position_embeddings": 0.5},
            (
                "rope_parameters.truncate: must be true or false, got 1",
                "rope_parameters.original_max_position_embeddings: must be a whole number of at least 1, got 0.5",
            ),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "beta_slow": 40},
            ("rope_parameters.beta_slow: must be less than beta_fast (32), got 40",),
        ),
        (
            {"rope_type": "llama3", "factor": 4.0, "high_freq_factor": 1, "low_freq_factor": 1},
            ("rope_parameters.high_freq_factor: must be more than low_freq_factor (1), got 1",),
        ),
        (3, ("rope_parameters: must be a mapping, as in {rope_theta: 10000}, got 3",)),
    ],
)
def test_rope_parameters_that_transformers_would_take_silently_are_refused(rope: Any, expected: tuple[str]) -> None:
    assert problems({"rope_parameters": rope}) == expected


def test_a_part_of_the_rotation_is_a_setting_of_some_architectures() -> None:
    said = problems({"rope_parameters": {"partial_rotary_factor": 7}}, "gpt_neox")
    assert said == ("rope_parameters.partial_rotary_factor: must be a number in (0, 1], got 7",)
    teacher = make_teacher(
        small_config(architecture="gpt_neox", options={"rope_parameters": {"partial_rotary_factor": 0.5}})
    )
    assert teacher.decoder.config.rope_parameters["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize(
    ("options", "architecture", "expected"),
    [
        ({"rms_norm_eps": -1.0}, "llama", "rms_norm_eps: must be a number of at least 0, got -1.0"),
        ({"layer_norm_epsilon": float("nan")}, "gpt2", "layer_norm_epsilon: must be a number of at least 0, got nan"),
        ({"initializer_range": -1}, "llama", "initializer_range: must be a number in [0, 1], got -1"),
        ({"initializer_range": True}, "llama", "initializer_range: must be a number in [0, 1], got True"),
        ({"resid_pdrop": 1.5}, "gpt2", "resid_pdrop: must be a number in [0, 1], got 1.5"),
    ],
)
def test_ranges_of_numbers(options: dict[str, Any], architecture: str, expected: str) -> None:
    assert problems(options, architecture) == (expected,)


@pytest.mark.parametrize(("architecture", "name"), [("llama", "hidden_act"), ("gpt2", "activation_function")])
def test_an_unknown_activation_is_named_with_the_choices(architecture: str, name: str) -> None:
    (said,) = problems({name: "reluu"}, architecture)
    assert said.startswith(f"{name}: must be one of gelu, ")
    assert ", silu, " in said
    assert said.endswith("; got 'reluu' (did you mean 'relu'?)")


def test_a_whole_number_is_a_number() -> None:
    options = {"initializer_range": 1, "rms_norm_eps": 0, "rope_parameters": {"rope_theta": 5}}
    made = make_teacher(small_config(options=options)).decoder.config
    assert (made.initializer_range, made.rms_norm_eps, made.rope_parameters["rope_theta"]) == (1.0, 0.0, 5)


@pytest.mark.parametrize("kind", ROPE_KEYS)
def test_every_key_of_a_rope_type_is_one_of_transformers(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 100.0, **{name: VALUES[name] for name in ROPE_KEYS[kind]}}
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers.modeling_rope_utils")
    logger.addHandler(listener)
    try:
        LlamaConfig(max_position_embeddings=32, rope_parameters={**rope, "factr": 1.0})
        assert any("{'factr'}" in line for line in said)  # it names what it does not know, and nothing else
    finally:
        logger.removeHandler(listener)
    teacher = make_teacher(small_config(options={"rope_parameters": rope}))
    assert bool(torch.isfinite(teacher.score(make_batch([5], [(0, 5)])).logits["click"]).all())
