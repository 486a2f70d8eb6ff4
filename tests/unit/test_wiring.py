"""Needs are matched with what there is before step 0, all at once."""

from __future__ import annotations

import pytest
from core_cases import SCHEMA

from recdistill_core import Component, Schema
from recdistill_core.component import BuildContext
from recdistill_core.config import Resolved, resolve
from recdistill_core.errors import WiringError
from recdistill_core.registry import PluginRecord, Registered, installed
from recdistill_core.wiring import check

PLAIN = Schema(tasks=("click",))


def resolved(kind: str, name: str, **values: object) -> Resolved:
    found = resolve(installed(), kind, {"name": name, **values}, kind, [])
    assert found is not None
    return found


def test_what_is_given_passes() -> None:
    check([resolved("debiaser", "ipw"), resolved("debiaser", "sampling")], SCHEMA, dataset="d")
    check([resolved("strategy", "single")], PLAIN, dataset="d", also=["teacher"])
    check([resolved("loss", "kl")], PLAIN, dataset="d")
    check([], PLAIN, dataset="d")


def test_every_unmet_need_is_listed() -> None:
    components = [resolved("debiaser", "ipw"), resolved("debiaser", "pal"), resolved("strategy", "rec_distill")]
    with pytest.raises(WiringError) as error:
        check(components, PLAIN, dataset="d")
    assert str(error.value) == (
        "dataset 'd' does not give what is needed: "
        "debiaser 'ipw' needs propensity (the probability with which each row was shown); "
        "debiaser 'pal' needs position (the position at which each row was shown); "
        "strategy 'rec_distill' needs teacher (teacher labels in a logit store)\n"
        "  where: it gives: plain rows only\n"
        "  to do: leave these components out, or import the log with the columns they need"
    )
    with pytest.raises(WiringError, match="where: it gives: history, keep_rates, position, propensity\n"):
        check(components, SCHEMA, dataset="d")


def test_needs_may_depend_on_the_configuration() -> None:
    needy = resolved("debiaser", "sampling")
    with pytest.raises(WiringError, match=r"'sampling' needs keep_rates \(the known keep rates of the negative"):
        check([needy], PLAIN, dataset="d")
    check(
        [resolved("debiaser", "sampling", keep_positive={"click": 1.0}, keep_negative={"click": 0.1})],
        PLAIN,
        dataset="d",
    )


def test_several_needs_of_one_component_come_in_order() -> None:
    component = Component("c", BuildContext, BuildContext, "s", needs=frozenset({"position", "history"}), api_version=1)
    entry = Resolved(Registered("loss", component, PluginRecord("p", "d", "1")), BuildContext())
    with pytest.raises(
        WiringError, match=r"loss 'c' needs history \(events before each row\); loss 'c' needs position"
    ):
        check([entry], PLAIN, dataset="d")
