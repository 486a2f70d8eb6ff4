"""Published settings for MovieLens-1M: those of the frozen configurations of the official HSTU code (arXiv 2402.17152).

Two means of that code have no counterpart here: its time bias counts from the next event's time, here from an event's
own; and it pads to the length plus 11, which is the constant that SiLU attention divides by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TEACHER = {"width": 50, "max_length": 200, "history_stride": 200, "dropout": 0.2, "added_action": False}
_TRAINING = {
    "epochs": 101,
    "batch_users": 128,
    "windows": "newest",
    "holdout": 1,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "negatives": 128,
    "negatives_per": "target",
    "temperature": 0.05,
    "field_weight": 0.0,
    "input_positions": True,
    "input_dropout": 0.2,
    "filter_seen": "window",
}
#: By these counts of a manifest a dataset is known to be MovieLens-1M.
MOVIELENS_1M = {"events": 1_000_209, "users": 6_040, "candidates": 3_706}


@dataclass(frozen=True)
class Preset:
    """Settings of the ``hstu`` teacher and of ``pretrain``, and what the paper reports for them.

    Attributes:
        published: ``{metric: value}`` on MovieLens-1M, full ranking.
    """

    teacher: Mapping[str, Any]
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)

    def published_for(self, manifest: Mapping[str, Any]) -> Mapping[str, float]:
        """``published`` where the model of ``manifest`` was made from MovieLens-1M; empty for another dataset."""
        found = {**manifest, "events": manifest["events"] + manifest["held_out"]}
        return self.published if all(found[name] == count for name, count in MOVIELENS_1M.items()) else {}


PRESETS: Mapping[str, Preset] = {
    "hstu-ml1m": Preset(
        {**_TEACHER, "layers": 2, "heads": 1},
        {**_TRAINING, "architecture": "hstu"},
        {"hr@10": 0.3097, "ndcg@10": 0.1720},
    ),
    "hstu-large-ml1m": Preset(
        {**_TEACHER, "layers": 8, "heads": 2},
        {**_TRAINING, "architecture": "hstu"},
        {"hr@10": 0.3294, "ndcg@10": 0.1893},
    ),
    "sasrec-ml1m": Preset(
        {**_TEACHER, "layers": 2, "heads": 1},
        {**_TRAINING, "architecture": "sasrec"},
        {"hr@10": 0.2853, "ndcg@10": 0.1603},
    ),
}
