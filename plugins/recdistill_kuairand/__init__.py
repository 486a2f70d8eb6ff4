"""Importer for KuaiRand-Pure, a short-video feed log with real impressions, labels and side features.

Source: Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos", CIKM 2022.
Licence of the data: CC BY-SA 4.0. Nothing of it ships with this package; ``path`` names a copy on your disk.

Traps that this importer takes care of:

* About 2.6% of the rows are exact repeats of (user, video, millisecond): all but the first are dropped.
* ``date`` and ``hourmin`` say when the row reached the server, up to three hours after the impression, so they tell of
  its outcome. The hour of day and the age of the video come from ``time_ms``, in Beijing time (UTC + 8 h).
* The logs are not sorted by ``time_ms`` (disorder up to 50 minutes).
* What is known only after the impression (play time, watch ratio, likes, ...) is never a feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recdistill_core.component import BuildContext, Component
from recdistill_core.errors import suggest
from recdistill_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from recdistill_core.interfaces import Importer

#: Every column of ``user_features_pure.csv`` that may become a feature.
USER_FEATURES = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{number}" for number in range(18)),
)


@dataclass(frozen=True)
class KuaiRandConfig:
    """Where the log lies and what to take of it.

    Attributes:
        path: folder of the official release (``KuaiRand-Pure``, or its ``data`` folder), or of the processed slice
            with ``val.parquet``, ``test.parquet`` and ``user_sequences.parquet``.
        history_as_impressions: slice only. True: each event of ``user_sequences.parquet`` is an impression (a batch
            phase before the stream), with labels derived from the sequences, without context (tab, hour), at synthetic
            times: a minute apart, the last at the user's ``last_time_ms``. False: those are history events only.
        include_random: official layout only. Also read the log of randomly exposed videos; which rows were random
            is not a feature.
        user_features: columns of the user table that become categorical features.
        batch_rows: rows of a record batch.
        duplicate_window: how many rows back a repeat of (user, video, time) is found; takes 8 bytes a row.
    """

    path: str
    history_as_impressions: bool = True
    include_random: bool = False
    user_features: tuple[str, ...] = USER_FEATURES
    batch_rows: int = 65_536
    duplicate_window: int = 2_000_000

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name the folder of the log, got an empty text")
        for name in self.user_features:
            if name not in USER_FEATURES:
                raise ValueError(f"unknown user feature {name!r}{suggest(name, USER_FEATURES)}")
        if len(set(self.user_features)) != len(self.user_features):
            raise ValueError("user_features names a column twice")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, got {self.batch_rows}")
        if self.duplicate_window < self.batch_rows:
            raise ValueError(
                f"duplicate_window must be at least batch_rows ({self.batch_rows}), got {self.duplicate_window}"
            )


def build(config: KuaiRandConfig, context: BuildContext) -> Importer:
    """The importer; reads nothing before :meth:`open`."""
    from recdistill_kuairand.importer import KuaiRand

    return KuaiRand(config)


def _example(folder: Path) -> dict[str, Any]:
    from recdistill_kuairand.example import write_example

    write_example(folder / "KuaiRand-Pure")
    return {"path": str(folder / "KuaiRand-Pure"), "user_features": ["user_active_degree", "onehot_feat4"]}


@hookimpl
def recdistill_importers() -> list[Component]:
    """The importer ``kuairand``."""
    return [
        Component(
            "kuairand",
            KuaiRandConfig,
            build,
            "KuaiRand-Pure short-video log (Gao et al., CIKM 2022): official release or processed slice",
            example=_example,
            api_version=1,
        )
    ]
