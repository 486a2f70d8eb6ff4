"""``recdistill plugins check``: the kit from the command line, for people who only installed a plugin."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

import recdistill_core as rd
from recdistill_authoring import check
from recdistill_core import cli
from recdistill_core.registry import PluginRecord, Registered, Registry, installed

Shell = Callable[..., tuple[int | str | None, str, str]]


@dataclass(frozen=True)
class Config:
    """No settings."""


def build(config: Config, context: rd.BuildContext) -> Any:
    class Mean(rd.DistillationLoss):
        """Reduces by itself."""

        def forward(self, student_logit: Any, teacher_logit: Any, batch: rd.Batch, weight: Any) -> Any:
            return (weight * (student_logit - teacher_logit).square()).mean()

    return Mean()


def registry(**more: Any) -> Registry:
    record = PluginRecord("mean", "rd-mean", "1.0", module="recdistill_soft")
    component = rd.Component("mean", Config, build, "Reduces by itself", api_version=1, **more)
    broken = PluginRecord("broken", "rd-broken", "1.0", error=ImportError("needs libmagic"))
    base = installed()
    return replace(
        base, plugins=(*base.plugins, record, broken), found=(*base.found, Registered("loss", component, record))
    )


@pytest.fixture
def recdistill(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The command, in this process, with one more plugin."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(cli, "_show_notes", lambda: None)

    def shell(*words: str, **more: Any) -> tuple[int | str | None, str, str]:
        for module in (cli, check):
            monkeypatch.setattr(module, "installed", lambda: registry(**more))
        code: int | str | None = 0
        try:
            cli.main(["plugins", "check", *words])
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return shell


def test_a_component_that_keeps_its_contract_passes(recdistill: Shell) -> None:
    code, out, _ = recdistill("mse")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "loss recdistill:mse"
    assert "  passed it_builds_from_its_example" in lines
    assert lines[-1].endswith(" checks, 0 failed")


def test_one_that_breaks_it_ends_with_4_and_says_how(recdistill: Shell) -> None:
    code, out, _ = recdistill("mean", "--json")
    answer = json.loads(out)
    assert (code, answer["ok"]) == (4, False)
    failed = [row for row in answer["checks"] if row["status"] == "failed"]
    assert any("shape" in row["detail"] for row in failed)
    assert {row["component"] for row in answer["checks"]} == {"rd-mean:mean"}
    assert all(row["proves"] for row in answer["checks"])
    code, out, _ = recdistill("rd-mean")
    assert code == 4
    assert f"  failed {failed[0]['check']}\n    {failed[0]['detail'].splitlines()[0]}\n" in out


def test_expected_failures_carry_their_reason(recdistill: Shell) -> None:
    failing = [row["check"] for row in json.loads(recdistill("mean", "--json")[1])["checks"] if row["detail"]]
    reasons = dict.fromkeys(failing, "kept for an old experiment")
    code, out, _ = recdistill("mean", "--json", expected_failures=reasons)
    assert code == 0
    found = {row["check"]: (row["status"], row["detail"]) for row in json.loads(out)["checks"]}
    assert {name: found[name] for name in failing} == dict.fromkeys(failing, ("expected failure", reasons[failing[0]]))


def test_an_expected_failure_that_passes_is_a_failure(recdistill: Shell) -> None:
    code, out, _ = recdistill("mean", expected_failures={"it_says_what_it_is": "no time"})
    assert code == 4
    assert "was expected to fail (no time) and passed: take it out of expected_failures" in out


@pytest.mark.parametrize(
    ("words", "more", "code", "message"),
    [
        (("mean", "--kind", "los"), {}, 2, "unknown kind 'los' (did you mean 'loss'?)"),
        (("mean", "--kind", "student"), {}, 4, "no student is named 'mean'"),
        (("meen",), {}, 4, "no component is named 'meen' (did you mean 'mean'?)"),
        (
            ("rd-broken",),
            {},
            4,
            "distribution 'rd-broken' registers no component\n"
            "  where: plugin 'broken' (rd-broken 1.0): ImportError: needs libmagic\n"
            "  to do: mend the plugin, or install it (pip install -e .) and look at 'recdistill plugins list'",
        ),
        (
            ("mean",),
            {"expected_failures": {"it_says_what_it_iz": "x"}},
            4,
            "loss 'mean' expects the check 'it_says_what_it_iz' to fail, which there is not "
            "(did you mean 'it_says_what_it_is'?)\n"
            "  where: plugin 'mean' (rd-mean 1.0)\n"
            "  to do: take it out of expected_failures, or name one of the checks for this kind",
        ),
    ],
)
def test_what_cannot_be_checked(
    recdistill: Shell, words: tuple[str, ...], more: dict[str, Any], code: int, message: str
) -> None:
    ended, _, err = recdistill(*words, **more)
    assert ended == code
    assert f"error: {message}" in err
