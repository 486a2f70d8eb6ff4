"""Every shipped component passes the kit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from recdistill_core.testing import conformance


@pytest.mark.filterwarnings("error")
@conformance("recdistill")
def test_conformance(check: Callable[[], None]) -> None:
    check()
