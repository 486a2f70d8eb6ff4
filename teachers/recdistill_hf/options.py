"""What ``options`` of the ``hf`` teacher may hold: settings of a transformers configuration, checked before it is made.

transformers only logs a misspelt key of ``rope_parameters``, and takes any number: both are refused here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from recdistill_core.errors import Problem, suggest

#: Settings of a transformers configuration that ``options`` may give, where the architecture has them. The others are
#: the teacher's own (sizes, ids), do nothing here, or would let a token see what it must not see.
OPTIONS = frozenset(
    {
        "activation_function",
        "attention_bias",
        "embd_pdrop",
        "head_dim",
        "hidden_act",
        "hidden_dropout",
        "initializer_range",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "mlp_bias",
        "qk_layernorm",
        "resid_pdrop",
        "rms_norm_eps",
        "rope_parameters",
        "use_parallel_residual",
    }
)
ROPE = "rope_parameters"
#: Keys of ``rope_parameters`` for each type, besides rope_type and rope_theta. The types are those that are a function
#: of the position alone: others (dynamic, longrope) change with the longest position in the batch, through which one
#: row would reach another.
ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "factor",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "truncate",
    ),
}
ROPE_TYPES = tuple(ROPE_KEYS)
#: The only key that not every architecture reads; those that do have it among their own rope_parameters.
PARTIAL = "partial_rotary_factor"
#: Options that are numbers: lowest and highest value.
RANGES = {
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps"), (0.0, math.inf)),
    **dict.fromkeys(("embd_pdrop", "hidden_dropout", "initializer_range", "resid_pdrop"), (0.0, 1.0)),
}
ACTIVATIONS = ("activation_function", "hidden_act")


def check_options(
    architecture: str, options: Mapping[str, Any], known: set[str], rope: Mapping[str, Any]
) -> list[Problem]:
    """Every fault of ``options``.

    Args:
        architecture: a ``model_type``. options: as configured. known: settings that the architecture has.
        rope: its own rope_parameters; empty where it has none.
    """
    problems = []
    allowed = sorted(OPTIONS & known)
    for name, value in options.items():
        if name not in allowed:
            said = f"is no setting of {architecture} that may be changed here{suggest(name, allowed)}"
            problems.append(Problem(f"teacher.options.{name}", f"{said}; there are {', '.join(allowed)}"))
        elif name == ROPE:
            problems += _check_rope(architecture, value, PARTIAL in rope)
        elif name in ACTIVATIONS:
            problems += _check_activation(name, value)
        elif name in RANGES and not _number(value, *RANGES[name]):
            low, high = RANGES[name]
            wanted = f"a number in [{low:g}, {high:g}]" if high < math.inf else f"a number of at least {low:g}"
            problems.append(Problem(f"teacher.options.{name}", f"must be {wanted}, got {value!r}"))
    width = options.get("head_dim", 2)
    if not isinstance(width, int) or width < 2 or width % 2:
        problems.append(Problem("teacher.options.head_dim", f"must be an even number of at least 2, got {width!r}"))
    return problems


def as_transformers(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` as transformers takes them: a whole number is a number too, and rope_type is said."""
    plain: dict[str, Any] = {name: float(value) if name in RANGES else value for name, value in options.items()}
    if ROPE in plain:
        plain[ROPE] = {"rope_type": "default", **plain[ROPE]}
    return plain


def _check_activation(name: str, value: Any) -> list[Problem]:
    from transformers.activations import ACT2FN

    known = sorted(ACT2FN)
    if value in known:
        return []
    said = f"must be one of {', '.join(known)}; got {value!r}{suggest(str(value), known)}"
    return [Problem(f"teacher.options.{name}", said)]


def _check_rope(architecture: str, rope: Any, partial: bool) -> list[Problem]:
    where = f"teacher.options.{ROPE}"
    if not isinstance(rope, Mapping):
        return [Problem(where, f"must be a mapping, as in {{rope_theta: 10000}}, got {rope!r}")]
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        said = f"rope_type must be one of {', '.join(ROPE_TYPES)}, got {kind!r}: with others the length of one history "
        return [Problem(where, said + "would move the logits of another")]
    allowed = sorted({"rope_type", "rope_theta", *ROPE_KEYS[kind], *([PARTIAL] if partial else [])})
    problems, there = [], f"there are {', '.join(allowed)}"
    for name in rope:
        if name not in allowed:
            said = f"is no key of rope_type {kind} in {architecture}{suggest(str(name), allowed)}; {there}"
            problems.append(Problem(f"{where}.{name}", said))
    problems += [
        Problem(f"{where}.{name}", f"must be {wanted}, got {rope[name]!r}")
        for name, wanted in _wrong_values({name: value for name, value in rope.items() if name in allowed})
    ]
    return problems


def _wrong_values(rope: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """``(key, what it must be)`` of every value that would give NaN, no rotation, or an error without a name."""
    wrong = []
    for name, value in rope.items():
        if name == "rope_type":
            continue
        if name == "truncate":
            fits, wanted = isinstance(value, bool), "true or false"
        elif name == "original_max_position_embeddings":
            fits, wanted = isinstance(value, int) and _number(value, 1, math.inf), "a whole number of at least 1"
        elif name == "factor":
            fits, wanted = _number(value, 1, math.inf), "a number of at least 1"
        elif name == PARTIAL:
            fits, wanted = _number(value, 0, 1) and value > 0, "a number in (0, 1]"
        else:
            fits, wanted = _number(value, 0, math.inf) and value > 0, "a positive number"
        if not fits:
            wrong.append((name, wanted))
    for high, low, usual in (("high_freq_factor", "low_freq_factor", None), ("beta_fast", "beta_slow", (32, 1))):
        if wrong or not {high, low} & set(rope) or (usual is None and not {high, low} <= set(rope)):
            continue
        above, below = rope.get(high, usual and usual[0]), rope.get(low, usual and usual[1])
        if above <= below:
            about = (high, f"more than {low} ({below:g})") if high in rope else (low, f"less than {high} ({above:g})")
            wrong.append(about)
    return wrong


def _number(value: Any, low: float, high: float) -> bool:
    """Whether it is a finite number in [low, high]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and value < math.inf
