"""Switching plugins off, allowing only some, and refusing to go on without all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_cases import points, write_plugin

from recdistill_core.errors import PluginError, UsageError
from recdistill_core.registry import Registry, discover
from recdistill_core.selection import Selection

GOOD = "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('{}')]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    write_plugin(tmp_path, "hinge", GOOD.format("hinge"))
    write_plugin(tmp_path, "huber", GOOD.format("huber"))
    write_plugin(tmp_path, "broken", "raise ImportError('needs libmagic')")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[name]


def statuses(registry: Registry) -> dict[str, str]:
    return {record.name: record.status for record in registry.plugins}


@pytest.mark.parametrize("name", ["hinge", "rd-hinge", "rd-hinge:hinge"])
def test_a_plugin_that_is_switched_off_is_not_even_imported(folder: Path, name: str) -> None:
    registry = discover(points(folder), Selection(without=(name,)))
    assert statuses(registry) == {"broken": "failed", "hinge": "off", "huber": "ok"}
    assert registry.plugins[1].reason == f"switched off by --no-plugin {name}"
    assert "fake_hinge" not in sys.modules
    with pytest.raises(PluginError) as error:
        registry.get("loss", "hinge")
    assert str(error.value) == (
        "no loss is named 'hinge'\n"
        f"  where: plugins that failed or are off, one of which may hold it: hinge (rd-hinge 1.0): switched off by "
        f"--no-plugin {name}; broken (rd-broken 1.0): ImportError: needs libmagic\n"
        "  to do: use one of: huber; or install the plugin that has it"
    )


def test_only_those_that_are_allowed_load(folder: Path) -> None:
    registry = discover(points(folder), Selection(only=("huber", "rd-hinge")))
    assert statuses(registry) == {"broken": "off", "hinge": "ok", "huber": "ok"}
    assert registry.plugins[0].reason == "not among --only-plugin huber rd-hinge"
    both = discover(points(folder), Selection(only=("huber", "hinge"), without=("huber",)))
    assert statuses(both) == {"broken": "off", "hinge": "ok", "huber": "off"}


@pytest.mark.parametrize("option", ["without", "only"])
def test_a_name_that_nothing_answers_to_is_refused(folder: Path, option: str) -> None:
    with pytest.raises(UsageError) as error:
        discover(points(folder), Selection(**{option: ("hing",)}))  # type: ignore[arg-type]  # one of two tuples
    flag, variable = {"without": ("--no-plugin", "NO"), "only": ("--only-plugin", "ONLY")}[option]
    assert str(error.value) == (
        f"{flag} names 'hing', which is no installed plugin (did you mean 'hinge'?)\n"
        f"  where: {flag}, or RECDISTILL_{variable}_PLUGIN in the environment\n"
        "  to do: name an entry point or a distribution that 'recdistill plugins list' shows"
    )


def test_strict_makes_a_failure_fatal_once_all_were_tried(folder: Path) -> None:
    write_plugin(folder, "worse", "raise SystemExit(3)")
    with pytest.raises(PluginError) as error:
        discover(points(folder), Selection(strict=True))
    assert str(error.value) == (
        "2 of 4 plugins failed to load, and --strict-plugins is on\n"
        "  where: 'broken' (rd-broken 1.0): ImportError: needs libmagic; 'worse' (rd-worse 1.0): SystemExit: 3\n"
        "  to do: mend or uninstall them, or switch them off with --no-plugin"
    )
    assert isinstance(error.value.__cause__, ImportError)
    switched_off = Selection(strict=True, without=("broken", "worse"))
    assert statuses(discover(points(folder), switched_off))["hinge"] == "ok"


def test_the_environment_says_the_same_as_the_options() -> None:
    assert Selection.from_environment({}) == Selection()
    said = {
        "RECDISTILL_STRICT_PLUGINS": "Yes",
        "RECDISTILL_NO_PLUGIN": " a, b ,",
        "RECDISTILL_ONLY_PLUGIN": "recdistill",
    }
    selection = Selection.from_environment(said)
    assert selection == Selection(True, ("a", "b"), ("recdistill",))
    assert Selection.from_environment(selection.environment()) == selection
    assert selection.and_also(False, ["c"], []) == Selection(True, ("a", "b", "c"), ("recdistill",))
    assert selection.and_also(False, [], ["d"]).only == ("d",)
    with pytest.raises(UsageError) as error:
        Selection.from_environment({"RECDISTILL_STRICT_PLUGINS": "maybe"})
    assert str(error.value) == ("RECDISTILL_STRICT_PLUGINS is 'maybe'\n  where: environment\n  to do: set it to 1 or 0")


def test_the_plugin_whose_code_was_running_is_named(folder: Path) -> None:
    write_plugin(folder, "late", "def act():\n    return 1 / 0\n" + GOOD.format("late"))
    registry = discover(points(folder))
    import fake_late  # type: ignore[import-not-found]  # written above

    with pytest.raises(ZeroDivisionError) as error:
        fake_late.act()
    culprit = registry.culprit(error.value)
    assert culprit is not None
    assert culprit.label == "'late' (rd-late 1.0)"
    with pytest.raises(ValueError, match="invalid") as other:
        int("x")
    assert registry.culprit(other.value) is None


def test_two_entry_points_of_one_distribution_cannot_share_a_name(folder: Path) -> None:
    write_plugin(folder, "aaa", GOOD.format("same"), distribution="rd-twins")
    write_plugin(folder, "bbb", GOOD.format("same"), distribution="rd-twins")
    registry = discover(points(folder))
    assert registry.get("loss", "same").plugin.name == "aaa"
    (record,) = [record for record in registry.plugins if record.name == "bbb"]
    assert record.reason == (
        "the distribution registers loss 'same' more than once where: entry points 'aaa' and 'bbb' of rd-twins "
        "to do: give one of them another name"
    )
