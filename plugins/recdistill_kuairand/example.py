"""A tiny copy of the official release's layout with invented rows, the example of the importer ``kuairand``."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recdistill_kuairand import USER_FEATURES

NOON = 1_650_859_200_000  # 2022-04-25 04:00 UTC, 12:00 in Beijing
SECOND = 1_000
USERS, VIDEOS, ROWS = 6, 10, 40
LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")


def write_example(folder: Path) -> None:
    """Write two logs of 40 impressions each, the user table and the video table; some fields are empty."""
    folder.mkdir()
    draw = random.Random(0)
    _write(folder / "user_features_pure.csv", (_user(draw, user) for user in range(USERS)))
    _write(folder / "video_features_basic_pure.csv", (_video(draw, video) for video in range(VIDEOS)))
    for number, name in enumerate(LOGS):
        start = NOON + number * ROWS * SECOND
        _write(folder / name, (_impression(draw, start + row * SECOND) for row in range(ROWS)))


def _user(draw: random.Random, user: int) -> dict[str, Any]:
    features = {name: draw.choice(("low", "high")) if _is_text(name) else draw.randrange(4) for name in USER_FEATURES}
    return {"user_id": user, **features, "onehot_feat4": draw.choice(("", "1.0"))}


def _is_text(name: str) -> bool:
    return name.endswith(("_range", "_degree"))


def _video(draw: random.Random, video: int) -> dict[str, Any]:
    return {
        "video_id": video,
        "author_id": 100 + video % 4,
        "video_type": draw.choice(("NORMAL", "AD")),
        "upload_dt": f"2022-04-{draw.randrange(1, 25):02d}",
        "upload_type": "Web",
        "video_duration": draw.choice(("", f"{draw.uniform(5e3, 9e4):.1f}")),
        "music_type": draw.choice(("9.0", "")),
        "tag": draw.choice(("39", "20,43", "")),
    }


def _impression(draw: random.Random, time: int) -> dict[str, Any]:
    click = draw.random() < 0.4
    return {
        "user_id": draw.randrange(USERS),
        "video_id": draw.randrange(VIDEOS),
        "time_ms": time,
        "tab": draw.randrange(3),
        "is_rand": 0,
        "is_click": int(click),
        "is_like": int(click and draw.random() < 0.3),
        "long_view": int(click and draw.random() < 0.6),
    }


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    whole = list(rows)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(whole[0]))
        writer.writeheader()
        writer.writerows(whole)
