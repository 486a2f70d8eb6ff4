"""YAML -> frozen dataclasses: every fault at once, each under its YAML path."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from recdistill_core import BuildContext, Component
from recdistill_core.config import Resolved, fill, fill_or_raise, load_yaml, make, resolve, to_yaml
from recdistill_core.errors import ConfigError, DataError, PluginError, Problem, UsageError
from recdistill_core.registry import PluginRecord, Registered, Registry, installed


@dataclass(frozen=True)
class Inner:
    width: int = 8
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be >= 1, got {self.width}")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    sizes: tuple[int, ...] = (4, 2)
    on: bool = False
    plain: list[Any] = field(default_factory=list)
    table: dict[str, Any] = field(default_factory=dict)


def faults(data: Any, cls: type[Any] = Outer, path: str = "") -> list[str]:
    problems: list[Problem] = []
    assert fill(cls, data, path, problems) is None
    return [str(problem) for problem in problems]


def test_fill_makes_nested_dataclasses_of_the_right_types() -> None:
    data = {"name": "n", "inner": {"width": 3}, "maybe": {"rate": 1}, "many": [{}, {"width": 2}], "sizes": [1, 2]}
    made = fill_or_raise(Outer, data)
    assert made == Outer("n", Inner(3), Inner(rate=1.0), (Inner(), Inner(2)), (1, 2))
    assert isinstance(made.sizes, tuple)
    assert fill_or_raise(Outer, {"name": "n"}) == Outer("n")
    assert fill_or_raise(Outer, {"name": "n", "maybe": None}).maybe is None


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, "name: is required"),
        ({"name": "n", "siezs": 1}, "siezs: unknown key (did you mean 'sizes'?); known: name, inner, maybe, many, "),
        ({"name": "n", 5: 1}, "5: unknown key; known: "),
        ({"name": "n", "inner": {"widht": 1}}, "inner.widht: unknown key (did you mean 'width'?); known: width, rate"),
        ({"name": "n", "inner": {"width": 0}}, "inner: width must be >= 1, got 0"),
        ({"name": "n", "maybe": {"width": 0}}, "maybe: width must be >= 1, got 0"),
        ({"name": "n", "many": [{}, {"width": 0}]}, "many[1]: width must be >= 1, got 0"),
        ({"name": "n", "many": {"width": 1}}, "many: must be a list, got dict {'width': 1}"),
        ({"name": "n", "plain": {"width": 1}}, "plain: {'width': 1} does not fit the type list[Any]"),
        ({"name": "n", "table": ["x"]}, "table: ['x'] does not fit the type dict[str, Any]"),
        ({"name": "n", "inner": 3}, "inner: must be a mapping, got int 3"),
        ({"name": "n", "inner": None}, "inner: must be a mapping, got NoneType None"),
        (
            {"name": "n", "inner": {"width": 1.5}},
            "inner.width: Value '1.5' of type 'float' could not be converted to Integer",
        ),
        ({"name": "n", "inner": {"rate": "x"}}, "inner.rate: Value 'x' of type 'str' could not be converted to Float"),
        ({"name": None}, "name: Incompatible value 'None' for field of type 'str'"),
        ({"name": "n", "sizes": 5}, "sizes: Invalid value assigned: int is not a TupleConfig, ListConfig, list"),
        ({"name": "n", "sizes": [1.5]}, "sizes: [1.5] does not fit the type tuple[int, ...]"),
        ({"name": "???"}, "name: has the value ???, which stands for a missing one"),
        ({"name": "n", "inner": {"width": "???"}}, "inner.width: has the value ???, which stands for a missing one"),
        ("text", "must be a mapping, got str 'text'"),
    ],
)
def test_fill_names_the_fault_and_its_path(data: Any, fault: str) -> None:
    (found,) = faults(data)
    assert found.startswith(fault)


def test_fill_reports_everything_at_once() -> None:
    data = {"inner": {"width": 0}, "maybe": {"rte": 1}, "sizes": "x", "on": 7, "more": 1}
    found = faults(data, path="a.b")
    assert [text.partition(": ")[0] for text in found] == [
        "a.b.inner", "a.b.maybe.rte", "a.b.sizes", "a.b.more", "a.b.name",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as error:
        fill_or_raise(Outer, {"nam": 1})
    assert str(error.value) == (
        "the configuration has 2 faults:\n"
        "  - nam: unknown key (did you mean 'name'?); known: name, inner, maybe, many, sizes, on, plain, table\n"
        "  - name: is required"
    )
    assert [(problem.path, problem.message) for problem in error.value.problems][1] == ("name", "is required")
    with pytest.raises(ConfigError, match="the configuration has a fault:\n  - name: is required"):
        fill_or_raise(Outer, {})


def yaml(tmp_path: Path, text: str, *overrides: str) -> dict[str, Any]:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_yaml(path, overrides)


def test_overrides_reach_nested_keys_and_list_entries(tmp_path: Path) -> None:
    text = "students: [{name: mlp}, {name: dcn}]\nseeds: [1, 2]\nlr: 0.1\nbase: 3\nsame: ${base}\n"
    found = yaml(
        tmp_path, text, "students[1].hidden=[8,4]", "seeds[0]=9", "a.b.c=1e-3", "lr=", "x=a=b", "y='5'", "base=4"
    )
    assert found == {
        "students": [{"name": "mlp"}, {"name": "dcn", "hidden": [8, 4]}],
        "seeds": [9, 2],
        "lr": None,
        "base": 4,
        "same": 4,
        "a": {"b": {"c": 1e-3}},
        "x": "a=b",
        "y": "5",
    }
    assert yaml(tmp_path, "") == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "override 'lr' is not KEY=VALUE\n  to do: write for example seeds=[7]"),
        ("=3", "override '=3' is not KEY=VALUE\n  to do: write for example seeds=[7]"),
        ("seeds[5]=3", "override 'seeds[5]=3' cannot be applied: list"),
        ("a=b: c", "override 'a=b: c' cannot be applied: mapping values are not allowed in this context\n  where: "),
    ],
)
def test_overrides_that_cannot_be_applied(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        yaml(tmp_path, "seeds: [1]", override)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "the file is not valid YAML: while parsing a flow sequence"),
        ("a: 1\na: 2", "the file is not valid YAML: while constructing a mapping"),
        ("- 1\n- 2", "the file must hold a YAML mapping\n  where: "),
        ("# a: comment\nhello  # b: another\n", "the file must hold a YAML mapping\n  where: "),
        ("a: &a [*a]", "the file is not valid YAML: YAML recursive aliases are not supported"),
        ("a: !!python/object/apply:os.getcwd []", "the file is not valid YAML: could not determine a constructor"),
        ("a: {b: '${c}'}", "an interpolation cannot be resolved: Interpolation key 'c' not found, at a.b\n  where: "),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        yaml(tmp_path, text)
    assert str(error.value).startswith(message)
    assert str(tmp_path / "run.yaml") in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(UsageError) as error:
        load_yaml(path)
    assert str(error.value) == (f"the configuration file does not exist\n  where: {path}\n  to do: check the path")
    with pytest.raises(UsageError) as error:
        load_yaml(tmp_path)
    assert str(error.value) == (
        f"the configuration file cannot be read: Is a directory\n  where: {tmp_path}\n  to do: name a readable file"
    )


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    start = time.monotonic()
    with pytest.raises(UsageError, match="the file is not valid YAML: YAML node expansion exceeds"):
        yaml(tmp_path, "\n".join(lines))
    assert time.monotonic() - start < 5


def entry(build: Any, kind: str = "loss", **more: Any) -> Registry:
    plugin = PluginRecord("point", "rd-foo", "1.0")
    component = Component("foo", Inner, build, "a loss", api_version=1, **more)
    return Registry((plugin,), (Registered(kind, component, plugin),))


def test_resolve_takes_a_name_or_a_mapping() -> None:
    problems: list[Problem] = []
    registry = entry(None.__class__)
    specs = {"foo": "foo", "mapping": {"name": "foo"}, "rd-foo:foo": {"name": "rd-foo:foo", "width": 8}}
    for case, spec in specs.items():
        found = resolve(registry, "loss", spec, "loss", problems)
        assert found is not None
        assert (found.config, found.label, found.plain()) == (
            Inner(), "loss 'foo'", {"name": "rd-foo:foo" if ":" in case else "foo", "width": 8, "rate": 0.1},
        )  # fmt: skip
    assert resolve(registry, "loss", {"name": "foo", "width": 0}, "a.loss", problems) is None
    assert resolve(registry, "loss", {"width": 0}, "b.loss", problems) is None
    assert resolve(registry, "loss", 3, "c.loss", problems) is None
    assert problems == [
        "a.loss: width must be >= 1, got 0",
        "b.loss: must name a loss, as in {name: ..., ...}, got {'width': 0}",
        "c.loss: must name a loss, as in {name: ..., ...}, got 3",
    ]
    with pytest.raises(PluginError, match=r"no loss is named 'fo' \(did you mean 'foo'\?\)"):
        resolve(registry, "loss", "fo", "loss", problems)


def test_make_builds_in_one_call() -> None:
    loss = make(installed(), "loss", {"name": "kl", "temperature": 2.0})
    assert (type(loss).__name__, loss.temperature.value()) == ("TemperatureKL", 2.0)
    with pytest.raises(ConfigError, match=r"loss\.temperatur: unknown key \(did you mean 'temperature'\?\)"):
        make(installed(), "loss", {"name": "kl", "temperatur": 2.0})
    with pytest.raises(
        PluginError, match="student 'mlp' cannot be built: ValueError: this component needs a dataset's"
    ):
        make(installed(), "student", "mlp")


@pytest.mark.parametrize(
    ("kind", "made", "message"),
    [
        ("loss", 3, "loss 'foo' built a int, no DistillationLoss: lacks DistillationLoss"),
        ("metric", object(), "metric 'foo' built a object, no Metric: lacks higher_is_better, prepare"),
        ("metric", Inner, "metric 'foo' built the class Inner itself, no object of it"),
        ("student", None, "student 'foo' built a NoneType, no Student: lacks Student"),
    ],
)
def test_a_build_that_returns_the_wrong_thing(kind: str, made: Any, message: str) -> None:
    with pytest.raises(PluginError) as error:
        make(entry(lambda config, context: made, kind), kind, "foo")
    assert str(error.value).startswith(f"{message}\n  where: plugin 'point' (rd-foo 1.0)\n  to do: return a")


def test_a_build_that_raises_is_attributed() -> None:
    def build(config: Any, context: BuildContext) -> Any:
        raise KeyError("weights")

    with pytest.raises(PluginError) as error:
        make(entry(build), "loss", "foo")
    assert str(error.value) == (
        "loss 'foo' cannot be built: KeyError: 'weights'\n"
        "  where: plugin 'point' (rd-foo 1.0)\n"
        "  to do: mend its configuration, or report it to the plugin's author"
    )
    assert isinstance(error.value.__cause__, KeyError)

    def refuse(config: Any, context: BuildContext) -> Any:
        raise DataError("bad rows")

    with pytest.raises(DataError, match="bad rows"):
        make(entry(refuse), "loss", "foo")


def test_needs_that_nobody_knows_are_attributed() -> None:
    registry = entry(None.__class__, needs=lambda config: frozenset({"postion"}))
    with pytest.raises(PluginError) as error:
        Resolved(registry.found[0], Inner()).needs()
    assert str(error.value) == (
        "loss 'foo' cannot say what it needs: component 'foo' needs unknown capabilities postion (did you mean "
        "'position'?); known: history, position, propensity, keep_rates, request_groups, teacher\n"
        "  where: plugin 'point' (rd-foo 1.0)"
    )


@pytest.mark.parametrize("registered", installed().found, ids=lambda entry: f"{entry.kind}-{entry.component.name}")
def test_every_installed_example_survives_a_trip_through_yaml(registered: Registered, tmp_path: Path) -> None:
    config = fill_or_raise(registered.component.config, registered.component.example_in(tmp_path))
    plain = Resolved(registered, config).plain()
    assert plain.pop("name") == registered.component.name
    path = tmp_path / "component.yaml"
    path.write_text(to_yaml(plain))
    again = fill_or_raise(registered.component.config, load_yaml(path))
    assert again == config
    assert type(again) is type(config)


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        (
            "loss",
            {"name": "soft_ce", "nam": "kl"},
            "loss.nam: unknown key (did you mean 'name'?); loss 'soft_ce' has no settings",
        ),
        ("loss", {"name": "kl", "tau": 2}, "loss.tau: unknown key; loss 'kl' has: temperature"),
        (
            "loss",
            {"name": "kl", "temprature": 2},
            "loss.temprature: unknown key (did you mean 'temperature'?); loss 'kl' has: ",
        ),
    ],
)
def test_an_unknown_setting_says_whose_it_is(kind: str, spec: dict[str, Any], message: str) -> None:
    problems: list[Problem] = []
    assert resolve(installed(), kind, spec, kind, problems) is None
    assert problems[0].startswith(message)


def test_it_says_which_plugin_it_comes_from() -> None:
    chosen = resolve(installed(), "student", "recdistill:mlp", "students[0]", [])
    assert chosen is not None
    assert (chosen.name, chosen.origin) == ("mlp", "plugin 'mlp' (recdistill 0.1.0)")
