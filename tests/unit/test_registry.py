"""Discovery: a bad plugin neither kills the others nor hides."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from core_cases import points, write_plugin

from recdistill_core.errors import PluginError
from recdistill_core.registry import Registry, discover

GOOD = """
@rd.hookimpl
def recdistill_losses():
    return [loss("hinge")]
"""
HOOKS = (
    "recdistill_teachers, recdistill_students, recdistill_losses, recdistill_debiasers, recdistill_strategies, "
    "recdistill_metrics, recdistill_stores, recdistill_sources, recdistill_importers, recdistill_trainers, "
    "recdistill_exporters, recdistill_engines, recdistill_samplers, recdistill_commands"
)
#: name of the case -> (module body, the whole reason that is shown)
BROKEN = {
    "raises": ("raise ImportError('needs\\n  libmagic')", "ImportError: needs libmagic"),
    "exits": ("sys.exit('no licence')", "SystemExit: no licence"),
    "silent": ("raise RuntimeError", "RuntimeError: no message"),
    "hook_raises": ("@rd.hookimpl\ndef recdistill_losses():\n    1 / 0", "ZeroDivisionError: division by zero"),
    "hook_exits": ("@rd.hookimpl\ndef recdistill_losses():\n    sys.exit(3)", "SystemExit: 3"),
    "mistyped": (
        "@rd.hookimpl\ndef recdistill_losess():\n    return []",
        "unknown hook 'recdistill_losess' (did you mean 'recdistill_losses'?) where: fake_mistyped "
        f"to do: hooks are: {HOOKS}",
    ),
    "mistyped_head": (
        "@rd.hookimpl\ndef recdistil_losses():\n    return []",
        "unknown hook 'recdistil_losses' (did you mean 'recdistill_losses'?) where: fake_mistyped_head "
        f"to do: hooks are: {HOOKS}",
    ),
    "arguments": (
        "@rd.hookimpl\ndef recdistill_losses(registry):\n    return []",
        "Plugin 'arguments' for hook 'recdistill_losses' hookimpl definition: "
        "recdistill_losses(registry) Argument(s) {'registry'} are declared in the hookimpl but can not be found in "
        "the hookspec where: fake_arguments to do: hooks take no arguments: write def recdistill_...():",
    ),
    "other_type": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [Config()]",
        "hook 'recdistill_losses' returned Config, not Component to do: return a list of recdistill_core.Component",
    ),
    "command_type": (
        "@rd.hookimpl\ndef recdistill_commands():\n    return [loss('x')]",
        "hook 'recdistill_commands' returned Component, not Command to do: return a list of recdistill_core.Command",
    ),
    "no_list": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return loss('x')",
        "hook 'recdistill_losses' returned Component, not a list to do: return a list, even of one entry",
    ),
    "no_return": (
        "@rd.hookimpl\ndef recdistill_losses():\n    [loss('x')]",
        "hook 'recdistill_losses' returned None, not a list to do: return a list, even of one entry",
    ),
    "old_api": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('x', api_version=0)]",
        "component 'x' was written for plugin API 0, this is API 1 where: fake_old_api "
        "to do: install a newer release of the plugin",
    ),
    "new_api": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('x', api_version=2)]",
        "component 'x' was written for plugin API 2, this is API 1 where: fake_new_api "
        "to do: install a newer release of recdistill",
    ),
    "undeclared_api": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [rd.Component('x', Config, len, 's')]",
        "TypeError: Component.__init__() missing 1 required keyword-only argument: 'api_version'",
    ),
    "lazy_hook": (
        "@rd.hookimpl\ndef recdistill_losses():\n    yield loss('x')\n    1 / 0",
        "ZeroDivisionError: division by zero",
    ),
    "thawed": (
        "@dataclass\nclass Thawed:\n    x: int = 0\n\n@rd.hookimpl\ndef recdistill_losses():\n"
        "    return [rd.Component('x', Thawed, len, 's', api_version=1)]",
        "TypeError: component 'x': config Thawed must be frozen: @dataclass(frozen=True)",
    ),
    "unknown_need": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('x', needs=frozenset({'requests'}))]",
        "ValueError: component 'x' needs unknown capabilities requests (did you mean 'request_groups'?); known: "
        "history, position, propensity, keep_rates, request_groups, teacher",
    ),
    "bare_need": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('x', needs='history')]",
        "TypeError: component 'x': needs must be a set of names, got 'history'",
    ),
    "no_reason": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('x', expected_failures={'c': ' '})]",
        "ValueError: component 'x': the expected failure of 'c' needs a reason",
    ),
    "long_command": (
        "@rd.hookimpl\ndef recdistill_commands():\n    return [rd.Command('a b c', lambda: None, 's')]",
        "ValueError: command name 'a b c' must be a verb, or a group and a verb",
    ),
    "group_in_group": (
        "@rd.hookimpl\ndef recdistill_commands():\n    return [rd.Command('a b', lambda: None, 's', group=True)]",
        "ValueError: command 'a b': a group holds verbs, no groups",
    ),
    "shell_sub_verb": (
        "@rd.hookimpl\ndef recdistill_commands():\n    return [rd.Command('plugins list', lambda: None, 's')]",
        "command 'plugins list' belongs to the shell where: fake_shell_sub_verb to do: give the command another name",
    ),
    "no_hook": (
        "",
        "the plugin implements no hook where: fake_no_hook to do: mark a hook function with @recdistill_core.hookimpl",
    ),
    "unmarked": (
        "def recdistill_losses():\n    return [loss('x')]",
        "function 'recdistill_losses' is named like a hook but not marked as one where: fake_unmarked "
        "to do: mark it with @recdistill_core.hookimpl, or give it another name",
    ),
    "twice": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('x'), loss('x')]",
        "the plugin registers loss 'x' more than once where: fake_twice",
    ),
    "shell_verb": (
        "@rd.hookimpl\ndef recdistill_commands():\n    return [rd.Command('doctor', lambda: None, 's')]",
        "command 'doctor' belongs to the shell where: fake_shell_verb to do: give the command another name",
    ),
    "bad_name": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [loss('a b')]",
        "ValueError: component name 'a b' must hold only letters, digits, '_' and '-'",
    ),
    "bad_config": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [rd.Component('x', dict, len, 's', api_version=1)]",
        "TypeError: component 'x': config must be a dataclass type, not <class 'dict'>",
    ),
    "bad_build": (
        "@rd.hookimpl\ndef recdistill_losses():\n    return [rd.Component('x', Config, 3, 's', api_version=1)]",
        "TypeError: component 'x': build must be callable",
    ),
}

Discover = Callable[[], Registry]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[name]


def failed(folder: Path) -> dict[str, str]:
    return {record.name: record.reason for record in discover(points(folder)).plugins if record.error}


def test_a_good_plugin_is_attributed_to_its_distribution(folder: Path) -> None:
    write_plugin(folder, "hinge", GOOD)
    registry = discover(points(folder))
    (record,) = registry.plugins
    assert (record.name, record.distribution, record.version, record.status) == ("hinge", "rd-hinge", "1.0", "ok")
    assert record.reason == ""
    entry = registry.get("loss", "hinge")
    assert entry is registry.get("loss", "rd-hinge:hinge")
    assert (entry.kind, entry.qualified, entry.plugin) == ("loss", "rd-hinge:hinge", record)
    assert registry.components("loss") == (entry,)
    assert registry.components("student") == ()


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_recorded_with_the_whole_reason(folder: Path, case: str) -> None:
    body, reason = BROKEN[case]
    write_plugin(folder, "good", GOOD)
    write_plugin(folder, case, body)
    registry = discover(points(folder))
    assert {record.name: record.reason for record in registry.plugins if record.error} == {case: reason}
    assert [entry.component.name for entry in registry.found] == ["hinge"]
    assert registry.commands == ()
    broken = next(record for record in registry.plugins if record.error)
    assert (broken.status, broken.distribution, broken.version) == ("failed", f"rd-{case}", "1.0")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("fake_nowhere", "ModuleNotFoundError: No module named 'fake_nowhere'"),
        ("fake_point:nope", "AttributeError: module 'fake_point' has no attribute 'nope'"),
    ],
)
def test_an_entry_point_to_nothing(folder: Path, value: str, reason: str) -> None:
    write_plugin(folder, "point", GOOD, value=value)
    assert failed(folder) == {"point": reason}


def test_one_broken_hook_takes_the_whole_plugin_out(folder: Path) -> None:
    write_plugin(folder, "half", GOOD + "@rd.hookimpl\ndef recdistill_metrics():\n    return None\n")
    registry = discover(points(folder))
    assert registry.found == ()
    assert registry.plugins[0].reason.startswith("hook 'recdistill_metrics' returned None, not a list")


def test_keyboard_interrupt_is_the_users(folder: Path) -> None:
    write_plugin(folder, "slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover(points(folder))


def test_an_installation_without_metadata_hurts_nobody(folder: Path) -> None:
    write_plugin(folder, "hinge", GOOD)
    write_plugin(folder, "torn", GOOD.replace("hinge", "torn"))
    (folder / "rd_torn-1.0.dist-info" / "METADATA").unlink()
    registry = discover(points(folder))
    assert {(record.name, record.distribution) for record in registry.plugins} == {
        ("hinge", "rd-hinge"),
        ("torn", "unknown"),
    }
    assert registry.get("loss", "hinge").plugin.name == "hinge"


def test_a_name_of_two_distributions_must_be_qualified(folder: Path) -> None:
    for name in ("one", "two"):
        write_plugin(folder, name, GOOD)
    registry = discover(points(folder))
    with pytest.raises(PluginError) as error:
        registry.get("loss", "hinge")
    assert str(error.value) == (
        "loss 'hinge' is registered by 2 distributions\n"
        "  where: rd-one, rd-two\n"
        "  to do: write 'rd-one:hinge' or 'rd-two:hinge'"
    )
    for name in ("one", "two"):
        assert registry.get("loss", f"rd-{name}:hinge").plugin.distribution == f"rd-{name}"


def test_an_unknown_name_suggests_a_near_one(folder: Path) -> None:
    write_plugin(folder, "hinge", GOOD)
    with pytest.raises(PluginError) as error:
        discover(points(folder)).get("loss", "hingee")
    assert str(error.value) == (
        "no loss is named 'hingee' (did you mean 'hinge'?)\n"
        "  to do: use one of: hinge; or install the plugin that has it"
    )
    assert error.value.__cause__ is None
    with pytest.raises(PluginError, match="use one of: none installed; or install"):
        discover(points(folder)).get("student", "hinge")


def test_an_unknown_name_is_chained_to_the_plugin_that_failed(folder: Path) -> None:
    write_plugin(folder, "aaa", "raise ValueError('unrelated')")
    write_plugin(folder, "listwise", "raise ImportError('needs libmagic') from OSError('libmagic.so')")
    with pytest.raises(PluginError) as error:
        discover(points(folder)).get("loss", "listwise")
    assert str(error.value) == (
        "no loss is named 'listwise'\n"
        "  where: plugins that failed or are off, one of which may hold it: "
        "listwise (rd-listwise 1.0): ImportError: needs libmagic; "
        "aaa (rd-aaa 1.0): ValueError: unrelated\n"
        "  to do: use one of: none installed; or install the plugin that has it"
    )
    assert isinstance(error.value.__cause__, ImportError)
    assert isinstance(error.value.__cause__.__cause__, OSError)


def test_everything_shipped_is_found_and_ok() -> None:
    registry = discover()
    shipped = [record for record in registry.plugins if record.distribution == "recdistill"]
    assert len(shipped) > 10
    assert [record for record in shipped if record.error] == []
    assert registry.get("student", "mlp").qualified == "recdistill:mlp"
