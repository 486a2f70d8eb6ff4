"""Settings of pruning that mean nothing."""

from __future__ import annotations

from typing import Any

import pytest

from recdistill_prune import GrowPrune, IdeaPrune


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IdeaPrune(), "give either enlarge or final"),
        (lambda: IdeaPrune(enlarge=2, final=0.5), "give either enlarge or final"),
        (lambda: IdeaPrune(enlarge=1.0), "enlarge must be > 1, got 1.0"),
        (lambda: IdeaPrune(final=1.0), r"final must lie in \(0, 1\) or name widths, got 1.0"),
        (lambda: IdeaPrune(final=0.5, begin=0.7), "0 < begin <= end < 1, got 0.7 and 0.6"),
        (lambda: IdeaPrune(final=0.5, cuts=0), "cuts must be >= 1, got 0"),
        (lambda: GrowPrune(keep=1.0), r"keep and narrow must lie in \(0, 1\), got 1.0 and 0.5"),
        (lambda: GrowPrune(narrow=0.0), r"keep and narrow must lie in \(0, 1\), got 0.5 and 0.0"),
        (lambda: GrowPrune(cycles=0), "cycles must be >= 1, got 0"),
    ],
)
def test_settings_out_of_range(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
