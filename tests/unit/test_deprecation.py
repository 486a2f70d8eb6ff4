"""Public names go slowly, and with a word about what to use instead."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import recdistill_core
from recdistill_core import deprecation
from recdistill_core.deprecation import DEPRECATIONS, Deprecation, RecdistillDeprecationWarning, deprecate, deprecated

#: Modules that deprecate something must be imported before the list is looked at.
SUBJECTS = ("component", "config", "features", "interfaces", "objective", "registry", "testing")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> list[Deprecation]:
    found: list[Deprecation] = []
    monkeypatch.setattr(deprecation, "DEPRECATIONS", found)
    return found


def test_nothing_is_overdue() -> None:
    for name in SUBJECTS:
        __import__(f"recdistill_core.{name}")
    assert [entry.message for entry in DEPRECATIONS if entry.due(recdistill_core.__version__)] == []


def test_a_deprecated_function_warns_its_caller_and_works(clean: list[Deprecation]) -> None:
    @deprecated("recdistill_core.old", since="0.3", removed_in="0.5", instead="recdistill_core.new")
    def old(x: int) -> int:
        """Double."""
        return 2 * x

    with pytest.warns(RecdistillDeprecationWarning) as caught:
        assert old(3) == 6
    assert str(caught[0].message) == (
        "recdistill_core.old is deprecated since recdistill 0.3 and will be removed in 0.5: use recdistill_core.new"
    )
    assert Path(caught[0].filename) == Path(__file__)
    assert old.__doc__ == "Double."
    assert [entry.name for entry in clean] == ["recdistill_core.old"]


def test_an_argument_warns_where_it_is_passed(clean: list[Deprecation]) -> None:
    entry = deprecate("f(size=...)", since="0.3", removed_in="0.5", instead="f(width=...)")

    def f(width: int = 0, size: int | None = None) -> int:
        if size is not None:
            entry.warn()
        return size or width

    with pytest.warns(RecdistillDeprecationWarning, match="use f\\(width=...\\)") as caught:
        assert f(size=4) == 4
    assert Path(caught[0].filename) == Path(__file__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert f(width=4) == 4


@pytest.mark.parametrize(
    ("since", "removed_in", "instead", "message"),
    [
        ("0.3", "0.4", "y", "must live for 2 minor releases: remove it in 0.5 or later, not in 0.4"),
        ("0.3", "0.3", "y", "must live for 2 minor releases"),
        ("0.3", "0.5", " ", "must name a replacement"),
    ],
)
def test_a_hasty_or_silent_deprecation_is_refused(since: str, removed_in: str, instead: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Deprecation("x", since, removed_in, instead)


@pytest.mark.parametrize(("version", "due"), [("0.4.9", False), ("0.5.0", True), ("1.0.0", True), ("0.10.0", True)])
def test_when_a_removal_is_due(version: str, due: bool) -> None:
    assert Deprecation("x", "0.3", "0.5", "y").due(version) is due


def test_a_major_release_may_come_sooner() -> None:
    assert Deprecation("x", "0.9", "1.0", "y").due("1.0.0")
