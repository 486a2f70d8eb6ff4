"""kill -9 while a teacher is saved: the folder holds the earlier one, the new one, or nothing, never a half."""

from __future__ import annotations

from pathlib import Path

import pytest
from crashing import sweep
from hstu_cases import make_teacher, small_config  # lies with the unit tests

from recdistill_core.artefact import load_teacher

SIZES = {"width": 4, "heads": 1, "layers": 1, "hidden": (2,), "cross_layers": 0}
SHARDS = "3KB"  # two or three files


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("replaces", [False, True])
def test_a_killed_save_leaves_one_of_the_two(tmp_path: Path, replaces: bool) -> None:
    before, after = (make_teacher(small_config(**SIZES), seed=seed) for seed in (1, 2))
    old, new = before.fingerprint(), after.fingerprint()
    origin = tmp_path / "origin"
    origin.mkdir()
    if replaces:
        before.save_pretrained(origin / "teacher", max_shard_size=SHARDS)
    seen: set[str] = set()

    def work(place: Path) -> None:
        after.save_pretrained(place / "teacher", overwrite=True, max_shard_size=SHARDS)

    def check(place: Path, finished: bool) -> None:
        home = place / "teacher"
        if home.exists():
            found = load_teacher(home).fingerprint()
        else:
            aside = place / ".teacher.old"
            found = "nothing" if not aside.exists() else f"aside {load_teacher(aside).fingerprint()}"
        seen.add(found)
        assert found in ({old, new, f"aside {old}"} if replaces else {"nothing", new})
        assert not finished or (found == new and names(place) == {"teacher"})
        work(place)
        assert load_teacher(home).fingerprint() == new
        assert names(place) == {"teacher"}

    (tmp_path / "scratch").mkdir()
    assert sweep(origin, tmp_path / "scratch", work, check, every=3) >= 10  # odd: both moments are taken
    assert {old if replaces else "nothing", new} <= seen
