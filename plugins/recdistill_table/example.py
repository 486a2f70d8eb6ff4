"""A tiny CSV log with its schema file, the example of the importer ``table``."""

from __future__ import annotations

import csv
import random
from pathlib import Path

ROWS, USERS, ITEMS = 60, 5, 8
SCHEMA = """\
tasks: {click: clicked}
time_unit: iso
user_id: user
item_id: video
event_time: shown_at
categorical:
  - {name: video, side: item}
  - {name: country, side: user}
numeric:
  - {name: duration_s, log1p: true, missing: 0.0}
history_rates:
  - {name: user_click_rate, action: click}
actions: {click: did_click}
outcomes: [play_time]
position: position
"""


def write_example(folder: Path) -> None:
    """Write ``log.csv``, 60 impressions of 5 users with some labels not observed, and ``log.yaml``."""
    draw = random.Random(0)
    (folder / "log.yaml").write_text(SCHEMA, encoding="utf-8")
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        header = ["user", "video", "shown_at", "country", "duration_s", "position", "clicked", "did_click", "play_time"]
        writer.writerow(header)
        for row in range(ROWS):
            user, click = draw.randrange(USERS), int(draw.random() < 0.4)
            writer.writerow(
                [
                    f"user-{user}",
                    f"video-{draw.randrange(ITEMS)}",
                    f"2024-03-01T{row // 6:02d}:{row % 6:02d}:00",
                    "NL" if user % 2 else "FR",
                    "" if row % 9 == 4 else f"{draw.uniform(5, 90):.1f}",
                    row % 3,
                    "" if row % 11 == 7 else click,
                    click,
                    f"{draw.uniform(0, 60) * click:.1f}",
                ]
            )
