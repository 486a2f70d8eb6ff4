"""What runs have in common, made once: datasets, teachers with their labels, and raw students.

A folder that several runs name as ``shared`` holds ``datasets/``, ``labels/``, ``steps/`` and ``arrays/`` (a teacher's
logits of the test rows), under digests of all that they depend on. Runs may use it at the same time: whoever needs what
another one is at waits for it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from recdistill_core.files import whole_or_absent
from recdistill_core.fingerprint import digest, file_sha256
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.rundir import RunDirectory, checked_file, read_json, versions

#: Settings that no trained model depends on; of ``states`` what counts is added below. Whatever is not named here or in
#: the next lines counts.
NEITHER = ("name", "shared", "seeds", "labels", "evaluation", "exporters", "pretrain", "store", "states")
OF_STUDENTS = ("students", "strategy", "loss", "student_training", "raw_training", "student_debiasers")
OF_TEACHERS = (
    "teacher",
    "further_teachers",
    "teacher_training",
    "teacher_debiasers",
    "capture",
    "candidates",
    "embeddings",
    "pretrained",
)
#: File of an entry of ``arrays/``.
ARRAY = "array.npy"


def dataset_home(plan: Plan, run: Path) -> Path:
    """Where the dataset of a run is, or will be imported to."""
    config = plan.config
    if config.dataset.path:
        return Path(config.dataset.path)
    if config.shared and plan.importer is not None:
        return Path(config.shared) / "datasets" / digest([plan.importer.pinned(), _code(plan, "importer"), _ours()])
    return run / "dataset"


def store_spec(plan: Plan, run: Path) -> dict[str, Any]:
    """The label store of a run, with its path. Teachers of other settings never meet in a shared one."""
    config = plan.config
    home = Path(config.shared) / "labels" / digest(teacher_settings(plan)) if config.shared else run / "labels"
    return {"path": str(home), **config.store}


def teacher_settings(plan: Plan) -> dict[str, Any]:
    """All settings that a trained teacher and its labels depend on, but for the seed.

    Teachers that teach together leave their labels in one store, which is therefore theirs alone.
    """
    plain = plan.resolved()
    kept = {key: value for key, value in plain.items() if key not in (*NEITHER, *OF_STUDENTS)}
    # students that start later have the same teacher: the split's other bounds say what it is trained on
    kept["split"] = {key: value for key, value in plain["split"].items() if key not in ("student_from", "test_until")}
    kept["capture"] = {
        key: value for key, value in plain["capture"].items() if key not in ("min_coverage", "allow_leaky")
    }
    kept["candidates"] = {key: value for key, value in plain["candidates"].items() if key != "weight"}
    kept["embeddings"] = _snapshot(plan)
    if plan.config.capture.mode == "out_of_fold":  # copies score in batches of this size
        kept["batch_size"] = plan.config.evaluation.batch_size
    if plan.config.states.width:  # what students read of them is not the teacher's; later rows are scored in batches
        kept["states"] = {key: plain["states"][key] for key in ("width", "bits", "of")}
        kept["batch_size"] = plan.config.evaluation.batch_size
    code = _code(plan, "importer", "teacher", "debiaser", "trainer")
    return {**kept, "store": plain["store"], "code": code, "versions": _ours()}


def _snapshot(plan: Plan) -> dict[str, Any]:
    """Which embeddings the teacher's step keeps; with those of the students' start their first row counts, too."""
    config = plan.config.embeddings
    if not config.weight:
        return {}
    start = plan.config.split.student_from if config.at == "student_start" else ""
    return {"of": list(config.of), "at": config.at, "student_from": start}


def raw_settings(plan: Plan, label: str) -> dict[str, Any]:
    """All settings that the raw student ``label`` depends on, but for the seed."""
    plain = plan.resolved()
    others = (*NEITHER, *OF_TEACHERS, "strategy", "loss", "raw_training")
    kept = {key: value for key, value in plain.items() if key not in others}
    kept["student_training"] = asdict(plan.config.training_of_students(distilled=False))
    kept["split"] = {key: value for key, value in plain["split"].items() if key != "test_until"}
    if plan.config.states.width:  # so many columns, all of them 0
        kept["states_width"] = plan.config.states.width
    student = {"label": label, **plan.students[label].pinned()}
    code = _code(plan, "importer", "student", "debiaser", "trainer")
    return {**kept, "students": student, "code": code, "versions": _ours()}


def _ours() -> dict[str, str]:
    """Versions that results depend on, of what recdistill itself brings: an upgrade makes everything anew."""
    return {name: version for name, version in versions().items() if name in ("recdistill", "torch")}


def _code(plan: Plan, *kinds: str) -> dict[str, str]:
    """``{component: code}`` of the third-party components of these kinds."""
    return {label: code for label, code in plan.third_party().items() if label.partition(" ")[0] in kinds}


class SharedFolder:
    """The folder, created where absent.

    Args:
        path: where. say: told when a step is taken from it.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.path, self.say = path, say
        (path / "steps").mkdir(parents=True, exist_ok=True)
        (path / "datasets").mkdir(exist_ok=True)
        (path / "locks").mkdir(exist_ok=True)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of this name; waits for as long as another process has it, and goes with its process."""
        with FileLock(self.path / "locks" / f"{name}.lock"):
            yield

    def step(
        self, directory: RunDirectory, name: str, settings: Mapping[str, Any], work: Callable[[Path], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Do a step of a run as :meth:`RunDirectory.step` does, or take what the same settings have made.

        Args:
            directory: of the run. name: of the step. settings: all that its result depends on.
            work: makes the step, where nobody has.
        """
        key = digest(settings)
        home = self.path / "steps" / key
        with self.lock(key):
            if (home / "manifest.json").exists() and not directory.done(name):
                self.say(f"{name} is there already, in {home}")
                return directory.step(name, partial(_take, home))
            facts = directory.step(name, work)
            if not (home / "manifest.json").exists():
                with whole_or_absent(home) as place:
                    place.mkdir()
                    _copy(directory.path / name, place, [*facts["files"], "manifest.json"])
            return facts

    def array(self, settings: Mapping[str, Any], work: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Numbers that the same settings have given before, or those that ``work`` gives now.

        Raises:
            IntegrityError: if the file was changed since it was written.
        """
        key = digest(settings)
        home = self.path / "arrays" / key
        with self.lock(key):
            if not (home / "manifest.json").exists():
                home.parent.mkdir(exist_ok=True)
                with whole_or_absent(home) as place:
                    place.mkdir()
                    np.save(place / ARRAY, work())
                    facts = {"files": {ARRAY: file_sha256(place / ARRAY)}}
                    (place / "manifest.json").write_text(json.dumps(facts))
        found: NDArray[np.float64] = np.load(checked_file(home, ARRAY), allow_pickle=False)
        return found


def _take(home: Path, out: Path) -> dict[str, Any]:
    """Fill the scratch folder of a step with the files of one that is the same; returns its facts.

    Raises:
        IntegrityError: if a file was changed since it was written.
    """
    facts = read_json(home / "manifest.json")
    files = facts.pop("files")
    for file in files:
        checked_file(home, file)
    _copy(home, out, files)
    return facts


def _copy(source: Path, target: Path, files: list[str] | Mapping[str, str]) -> None:
    """Files of a finished step are never written to again, so that a second name for them is as good as a copy."""
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / file, target / file)
        except OSError:  # another file system, or one without links
            shutil.copy2(source / file, target / file)
