"""HSTU teachers by size, named after their dense parameters: all but the embedding tables.

Widths and depths are ordinary ones that give the named size; the 24B one has the dense size and the history length of
Rec-Distill's teacher (arXiv 2605.29755), whose own widths are not published. The spans and the truncation are
ULTRA-HSTU's means (arXiv 2602.16986) with round numbers. They are starting points: none of them was tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recdistill_core.errors import UsageError, suggest

#: name -> settings of the teacher ``hstu``.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "hstu-1m": {
        "layers": 9, "width": 128, "heads": 2, "max_length": 1024, "history_stride": 256,
        "hidden": [256, 128],
    },
    "hstu-10m": {
        "layers": 13, "width": 384, "heads": 6, "max_length": 4096, "history_stride": 1024,
        "hidden": [256, 128],
    },
    "hstu-100m": {
        "layers": 18, "width": 1024, "heads": 16, "max_length": 8192, "history_stride": 2048,
        "hidden": [1024, 256], "attend_recent": 2048, "attend_oldest": 256,
    },
    "hstu-1b": {
        "layers": 47, "width": 2048, "heads": 32, "max_length": 20_000, "history_stride": 5000,
        "hidden": [1024, 512], "attend_recent": 4096, "attend_oldest": 512, "score_budget": 1 << 21,
        "truncate_layers": 32, "truncate_length": 4096,
    },
    "hstu-7b": {
        "layers": 83, "width": 4096, "heads": 32, "max_length": 20_000, "history_stride": 5000,
        "hidden": [2048, 1024], "attend_recent": 4096, "attend_oldest": 512, "score_budget": 1 << 21,
        "truncate_layers": 56, "truncate_length": 4096,
    },
    "hstu-24b": {
        "layers": 71, "width": 8192, "heads": 64, "max_length": 20_000, "history_stride": 5000,
        "hidden": [2048, 1024], "attend_recent": 4096, "attend_oldest": 512, "score_budget": 1 << 22,
        "truncate_layers": 48, "truncate_length": 4096,
    },
}  # fmt: skip


def preset(name: str) -> dict[str, Any]:
    """A preset's settings.

    Raises:
        UsageError: if there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(
            f"there is no preset {name!r}{suggest(name, PRESETS)}",
            where="--preset",
            fix=f"choose one of {', '.join(PRESETS)}",
        )
    return dict(PRESETS[name])
