"""The formula's parameters are those of the module, built on the meta device, from 1M to 24B."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from docs_cases import DOCS, table_of
from hstu_cases import SCHEMA, small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.errors import UsageError
from recdistill_hstu import HSTUConfig
from recdistill_hstu.teacher import HSTUTeacher
from recdistill_plan.parameters import Parameters, count
from recdistill_plan.presets import PRESETS, preset
from recdistill_plan.sizes import Model
from recdistill_plan.target import described_schema

UNITS = {"m": 1e6, "b": 1e9}


def built(model: Model) -> tuple[int, int]:
    """Dense and sparse parameters of the module; nothing is allocated."""
    with torch.device("meta"):
        teacher = HSTUTeacher(model.config, model.schema, model.tasks)
    assert all(weight.is_meta for weight in teacher.parameters())
    tables = teacher.tokens.table.weight.numel() + teacher.head.features.table.weight.numel()
    return sum(weight.numel() for weight in teacher.parameters()) - tables, tables


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_that_the_formula_and_its_name_say(name: str) -> None:
    model = Model(HSTUConfig(**preset(name)), described_schema(), ("click",))
    found = count(model)
    assert built(model) == (found.dense, found.tables)
    size = name.removeprefix("hstu-")
    assert found.dense == pytest.approx(float(size[:-1]) * UNITS[size[-1]], rel=0.05)


def test_the_largest_presets_read_20_000_events() -> None:
    assert [PRESETS[name]["max_length"] for name in ("hstu-1b", "hstu-7b", "hstu-24b")] == [20_000] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"added_action": False},
        {"position_bias": False},
        {"time_bias": False},
        {"cross_rank": 0},
        {"cross_layers": 0, "hidden": ()},
        {"leave_out": ("user_segment", "tab")},
        {"leave_out": ("author_id", "user_segment", "tab", "category")},
        {"attention": "softmax", "layers": 1},
    ],
    ids=str,
)
def test_every_setting_that_makes_parameters_is_in_the_formula(changes: dict[str, object]) -> None:
    model = Model(small_config(**changes), SCHEMA, SCHEMA.tasks)
    found = count(model)
    assert built(model) == (found.dense, found.tables)


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 4),
    heads=st.integers(1, 4),
    head_width=st.integers(1, 20),
    rank=st.integers(0, 200),
    crosses=st.integers(0, 2),
    hidden=st.lists(st.integers(1, 30), max_size=3),
    context=st.integers(1, 9),
)
def test_sizes_of_any_kind(
    layers: int, heads: int, head_width: int, rank: int, crosses: int, hidden: list[int], context: int
) -> None:
    config = small_config(
        layers=layers,
        heads=heads,
        width=heads * head_width,
        cross_rank=rank,
        cross_layers=crosses,
        hidden=tuple(hidden),
        context_width=context,
    )
    model = Model(config, SCHEMA, SCHEMA.tasks)
    found = count(model)
    assert built(model) == (found.dense, found.tables)
    assert found.total == found.dense + found.tables


def test_parameters_add_up() -> None:
    found = Parameters(layer=5, layers=10, head=3, tables=100)
    assert (found.dense, found.total) == (13, 113)


def test_the_page_lists_the_presets() -> None:
    listed = table_of(DOCS / "teacher-plan.md", "What is planned")
    assert listed == {name: f"{plain['layers']} x {plain['width']:,}" for name, plain in PRESETS.items()}


def test_an_unknown_preset() -> None:
    with pytest.raises(UsageError) as caught:
        preset("hstu-24")
    assert caught.value.what == "there is no preset 'hstu-24' (did you mean 'hstu-24b'?)"
    assert caught.value.where == "--preset"
    assert caught.value.fix is not None
    assert "hstu-1m" in caught.value.fix


def test_settings_of_a_preset_are_ones_that_the_teacher_has() -> None:
    for name in PRESETS:
        settings_: dict[str, Any] = preset(name)
        config = HSTUConfig(**settings_)
        assert config.width == PRESETS[name]["width"]
