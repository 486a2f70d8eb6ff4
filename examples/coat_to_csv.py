"""Coat ratings to a CSV log for the importer ``table``.

    python examples/coat_to_csv.py --coat DIR --out OUT
    recdistill data import table path=OUT/impressions.csv schema=OUT/schema.yaml --out OUT/dataset

DIR holds the official ASCII matrices (``train.ascii`` ..., plain or ``.gz``; 290 users, 300 items, 0 = not rated), of
Schnabel et al., "Recommendations as Treatments", ICML 2016. What becomes what:

* One rating is one impression; the label is ``rating >= 4``; ``rating`` itself is an outcome, never a feature.
* Train rows (self-selected items) come first, then test rows (items drawn at random for each user).
* Coat has no time stamps. The ones here are made up: one second apart in a shuffled order (``--seed``), train from
  2020-01-01 and test from 2020-02-01 UTC on, so that the time 2020-02-01 splits the sets. They carry no meaning, so
  the schema has no history.
* ``propensity``: for train rows the learned probability that the user rates the item, for test rows the known
  16/300. There is no position.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAIN_START = 1_577_836_800  # 2020-01-01 UTC, s
TEST_START = 1_580_515_200  # 2020-02-01 UTC, s
TEST_ITEMS_PER_USER = 16
SCHEMA = """\
# Coat ratings as impressions; event_time is made up, see examples/coat_to_csv.py
tasks: {{like: like}}
user_id: user_id
item_id: item_id
event_time: event_time
time_unit: s
time_ordered: true
propensity: propensity
outcomes: [rating]
vocabulary_until: 2020-02-01
categorical:
{features}
"""


def lines(folder: Path, name: str) -> list[str]:
    """Lines of one file of the release, plain or gzipped."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file():
        return plain.read_text(encoding="utf-8").splitlines()
    if packed.is_file():
        return gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()
    raise SystemExit(f"{folder} has no {name}; give the folder of the official Coat release with --coat")


def matrix(folder: Path, name: str) -> NDArray[np.float64]:
    """One ASCII matrix."""
    values: NDArray[np.float64] = np.loadtxt(lines(folder, name))
    return values


def features(folder: Path, side: str) -> dict[str, list[str]]:
    """One-hot columns of the users or items as categorical columns: ``user_age`` -> value per user."""
    hot = matrix(folder, f"{side}_features.ascii")
    names = lines(folder, f"{side}_features_map.txt")
    found: dict[str, list[str]] = {}
    for group in dict.fromkeys(name.split(":")[0] for name in names):
        columns = [index for index, name in enumerate(names) if name.split(":")[0] == group]
        values = [names[index].split(":")[1] for index in columns]
        found[f"{side}_{group}"] = [values[place] for place in hot[:, columns].argmax(1)]
    return found


def rows(folder: Path, seed: int) -> Iterator[dict[str, object]]:
    """Impressions in the order of their made-up times."""
    users, items = features(folder, "user"), features(folder, "item")
    propensity = matrix(folder, "propensities.ascii")
    shuffle = np.random.default_rng(seed)
    for split, start in (("train", TRAIN_START), ("test", TEST_START)):
        ratings = matrix(folder, f"{split}.ascii")
        places = shuffle.permutation(np.argwhere(ratings > 0))
        for second, (user, item) in enumerate(places.tolist()):
            chance = propensity[user, item] if split == "train" else TEST_ITEMS_PER_USER / ratings.shape[1]
            yield {
                "user_id": user,
                "item_id": item,
                "event_time": start + second,
                "split": split,
                "rating": int(ratings[user, item]),
                "like": int(ratings[user, item] >= 4),
                "propensity": repr(float(chance)),
                **{name: values[user] for name, values in users.items()},
                **{name: values[item] for name, values in items.items()},
            }


def convert(coat: Path, out: Path, seed: int) -> int:
    """Write ``impressions.csv`` and ``schema.yaml``; return the number of rows."""
    out.mkdir(parents=True, exist_ok=True)
    table = list(rows(coat, seed))
    with (out / "impressions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    sides = [("user_id", "user"), ("item_id", "item")]
    sides += [
        (name, name.split("_")[0]) for name in table[0] if name.startswith(("user_", "item_")) and name[-3:] != "_id"
    ]
    entries = [f"  - {{name: {name}, side: {side}}}" for name, side in sides]
    (out / "schema.yaml").write_text(SCHEMA.format(features="\n".join(entries)), encoding="utf-8")
    return len(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Coat ratings to a CSV log for the importer 'table'.")
    parser.add_argument("--coat", type=Path, required=True, help="folder of train.ascii, test.ascii, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder for impressions.csv and schema.yaml")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffled order")
    given = parser.parse_args()
    print(f"wrote {convert(given.coat, given.out, given.seed)} impressions to {given.out}")


if __name__ == "__main__":
    main()
