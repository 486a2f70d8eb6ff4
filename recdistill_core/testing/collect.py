"""How pytest gets to see checks: one test for each component, example and check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recdistill_core.errors import PluginError, suggest
from recdistill_core.registry import Registered, Registry, installed, same_project
from recdistill_core.testing.cases import Check, NotApplicable, checks_for, run_in_a_folder

#: Settings of a component, or a function that writes the files they name into an empty folder.
Example = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]


def conformance(
    distribution: str = "",
    registry: Registry | None = None,
    examples: Mapping[str, Sequence[Example]] | None = None,
) -> Callable[[Any], Any]:
    """Parametrise ``test(check)`` over every (component, check) of a distribution, of all where it is empty.

    Args:
        distribution: as pip names it.
        registry: where components are looked up; the installed ones where None.
        examples: component -> further settings to check it with, beside its ``example``. Their tests are called
            ``KIND-COMPONENT-example2-CHECK`` and so on. There, an expected failure may also pass.

    Raises:
        PluginError: if the distribution registers no component, with the reason of its failed plugins; or if it does
            not register a component that ``examples`` names.
    """
    import pytest  # what runs plugins' tests; recdistill itself does not need it

    def param(entry: Registered, check: Check, number: int) -> Any:
        reason = entry.component.expected_failures.get(check.name)
        marks = [pytest.mark.xfail(reason=reason, strict=number == 1)] if reason else []
        example = f"example{number}-" if number > 1 else ""
        return pytest.param(
            _test_of(entry, check), marks=marks, id=f"{entry.kind}-{entry.component.name}-{example}{check.name}"
        )

    entries = entries_of(distribution, registry or installed())
    return pytest.mark.parametrize(
        "check",
        [
            param(chosen, check, number)
            for entry, settings in _settings(entries, examples or {})
            for number, chosen in enumerate([entry, *(_with(entry, example) for example in settings)], start=1)
            for check in checks_for(chosen)
        ],
    )


def _test_of(entry: Registered, check: Check) -> Callable[[], None]:
    def run() -> None:
        import pytest

        try:
            run_in_a_folder(entry, check)
        except NotApplicable as why:
            pytest.skip(str(why))

    return run


def _settings(
    entries: Sequence[Registered], examples: Mapping[str, Sequence[Example]]
) -> list[tuple[Registered, Sequence[Example]]]:
    """Each component with its further settings."""
    names = [entry.component.name for entry in entries]
    for name in examples:
        if names.count(name) != 1:
            raise PluginError(
                f"examples are given for {name!r}, a name that {names.count(name)} of the components have"
                f"{suggest(name, names)}",
                where=f"components: {', '.join(names)}",
                fix="name one of them, and give the distribution where several have a component of that name",
            )
    return [(entry, examples.get(entry.component.name, ())) for entry in entries]


def _with(entry: Registered, example: Example) -> Registered:
    return replace(entry, component=replace(entry.component, example=example))


def entries_of(distribution: str, registry: Registry) -> list[Registered]:
    """The components of a distribution, whose name is compared as pip does; of all where it is empty."""
    if not distribution:
        return list(registry.found)
    found = [entry for entry in registry.found if same_project(entry.plugin.distribution, distribution)]
    if not found:
        mine = [record for record in registry.plugins if same_project(record.distribution, distribution)]
        raise PluginError(
            f"distribution {distribution!r} registers no component",
            where="; ".join(f"plugin {record.label}: {record.reason or 'offers none'}" for record in mine)
            or f"installed: {', '.join(_distributions(registry))}",
            fix="mend the plugin, or install it (pip install -e .) and look at 'recdistill plugins list'",
        )
    return found


def _distributions(registry: Registry) -> Iterable[str]:
    return dict.fromkeys(record.distribution for record in registry.plugins)
