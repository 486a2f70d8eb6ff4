"""MovieLens-1M's ratings.dat (user::movie::rating::seconds) as a log for the importer `table`; also -100K's u.data.

    python examples/movielens_to_parquet.py --ratings ml-1m/ratings.dat --out ml
    recdistill data import table path=ml/ratings.parquet schema=ml/schema.yaml --out ml/dataset
    recdistill teacher pretrain --preset hstu-ml1m --data ml/dataset --out ml/hstu

The data are at https://grouplens.org/datasets/movielens/ under a licence that forbids passing them on, so bring your
own copy. Every rating is an event; the presets do not read how many stars it had.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = """\
tasks: {liked: liked}
user_id: user
item_id: movie
event_time: seconds
time_unit: s
categorical:
  - {name: user, side: user}
  - {name: movie, side: item}
actions: {liked: liked}
"""


def read(ratings: Path) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """``[N, 4]`` user, movie, stars and seconds.

    Raises:
        SystemExit: with what, where and what to do, if the file cannot be read or a line is no rating.
    """
    home = "give ml-1m/ratings.dat of https://grouplens.org/datasets/movielens/1m/ with --ratings"
    try:
        lines = ratings.read_text(encoding="latin-1").split("\n")
    except OSError as error:
        raise SystemExit(
            f"error: the ratings cannot be read: {error.strerror}\n  where: {ratings}\n  to do: {home}"
        ) from error
    values = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if number == 1 and line.startswith("user_id:token\t"):  # RecBole's copy of u.data has a header
            continue
        parts = line.split("\t" if "\t" in line else "::")
        try:
            user, movie, stars, seconds = map(int, parts)
        except ValueError as error:
            raise SystemExit(
                f"error: {line[:60]!r} is no rating, which is user::movie::stars::seconds in whole numbers\n"
                f"  where: {ratings}, line {number}\n  to do: {home}"
            ) from error
        values.append((user, movie, stars, seconds))
    if not values:
        raise SystemExit(f"error: the file holds no rating\n  where: {ratings}\n  to do: {home}")
    return np.array(values, np.int64)


def convert(ratings: Path, out: Path) -> int:
    """Write ``out/ratings.parquet`` and ``out/schema.yaml``; returns how many ratings. 4 stars or more are a like."""
    values = read(ratings)
    # the file lists a user's ratings in no order of time; ties keep the file's order, as in the published preparation
    user, movie, stars, seconds = values[np.argsort(values[:, 3], kind="stable")].T
    out.mkdir(parents=True, exist_ok=True)
    table = pa.table({"user": user, "movie": movie, "seconds": seconds, "liked": (stars >= 4).astype(np.int8)})
    pq.write_table(table, out / "ratings.parquet")
    (out / "schema.yaml").write_text(SCHEMA)
    return len(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=Path, required=True, help="ratings.dat of -1M, or u.data of -100K")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    given = parser.parse_args()
    print(f"{convert(given.ratings, given.out):,} ratings in {given.out}")
