"""The run directory: one folder per finished step, each complete or absent, so that a run can be started again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recdistill_core import __version__
from recdistill_core.config import to_yaml
from recdistill_core.errors import IntegrityError, UsageError
from recdistill_core.files import sync, sync_tree, write_atomically
from recdistill_core.fingerprint import digest, file_sha256
from recdistill_pipeline.alone import alone

#: Settings that no finished step depends on, so that a run may go on with others.
LATE = ("exporters", "pretrain")
#: Which dataset the steps were made from.
DATASET = "dataset.json"
#: Folder of the locks of steps.
LOCKS = ".locks"
LIBRARIES = (
    "torch",
    "lightning",
    "torchmetrics",
    "numpy",
    "pyarrow",
    "duckdb",
    "safetensors",
    "transformers",
    "xformers",
)


class RunDirectory:
    """``RUN/`` with ``config.yaml`` and a folder per step.

    Args:
        path: created where absent. config: the resolved configuration; a directory of another one is refused.
        plugins: ``{component: distribution, version and code}``; a directory with models of other code is refused.

    Raises:
        UsageError: if the directory holds a run of another configuration or plugin code, or files of something else.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], plugins: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.config_digest = digest(config)
        home = path / "config.yaml"
        if home.exists():
            self._take_over(home, json.loads(json.dumps(config)))
        elif path.exists() and any(path.iterdir()):
            raise UsageError("the run directory is not empty and holds no run", where=str(path), fix="give a new --out")
        else:
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(home, to_yaml(config))
        self._same_code(dict(plugins or {}))

    def _same_code(self, plugins: dict[str, str]) -> None:
        """Refuse to go on with models that other plugin code made; remember the code while there are none."""
        home = self.path / "plugins.json"
        before = read_json(home) if home.exists() else {}
        changed = [
            f"{name}: {before[name]} -> {code}" for name, code in plugins.items() if before.get(name, code) != code
        ]
        if changed and any(self.path.glob("seed-*/*/manifest.json")):
            raise UsageError(
                f"a plugin is another one than the one that trained this run: {'; '.join(changed)}",
                where=str(self.path),
                fix="give another --out to train with the code as it is now, or bring the earlier code back",
            )
        if {**before, **plugins} != before or changed:
            write_atomically(home, json.dumps({**before, **plugins}, indent=2))

    def same_dataset(self, snapshot: str) -> None:
        """Refuse to go on with another dataset; remember which one it is while there are no models.

        Raises:
            UsageError: if finished steps were made from another one.
        """
        require_dataset(self.path, snapshot)
        home = self.path / DATASET
        if not home.exists() or read_json(home) != {"snapshot": snapshot}:
            write_atomically(home, json.dumps({"snapshot": snapshot}))

    def _take_over(self, home: Path, config: Mapping[str, Any]) -> None:
        """Go on with the run in the directory; replace its configuration while nothing has come of what changes."""
        before = json.loads(json.dumps(OmegaConf.to_container(OmegaConf.load(home))))
        if before == config:
            return
        changes = _changes(_early(before), _early(config))
        started = any(self.path.glob("seed-*/*/manifest.json"))
        other_data = (self.path / "dataset").exists() and before.get("dataset") != config["dataset"]
        if changes and (started or other_data):
            shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
            raise UsageError(
                f"the run directory holds a run of another configuration: {shown}",
                where=str(home),
                fix="give another --out, or the configuration it was started with",
            )
        write_atomically(home, to_yaml(config))

    def step(self, name: str, work: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """Do a step once: ``work`` fills a scratch folder, which becomes ``RUN/name`` when it is complete.

        Returns:
            the step's manifest: what ``work`` returned, with the sha256 of every file.

        Raises:
            UsageError: if another process is at the same step.
        """
        if not self.done(name):
            locks = self.path / LOCKS
            locks.mkdir(exist_ok=True)
            with alone(locks / f"{name.replace('/', '-')}.lock", "this step", self.path / name):
                if not self.done(name):  # who held the lock may have done it meanwhile
                    self._do(name, work)
        return read_json(self.path / name / "manifest.json")

    def _do(self, name: str, work: Callable[[Path], Mapping[str, Any]]) -> None:
        home, scratch = self.path / name, self.scratch(name)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
        scratch.mkdir(parents=True)
        facts = dict(work(scratch))
        files = sorted(p for p in scratch.rglob("*") if p.is_file())
        facts["files"] = {str(p.relative_to(scratch)): file_sha256(p) for p in files}
        write_atomically(scratch / "manifest.json", json.dumps(facts, indent=2, default=str))
        sync_tree(scratch)
        scratch.replace(home)
        sync(home.parent)

    def scratch(self, name: str) -> Path:
        """Where a step is worked on until it is complete."""
        home = self.path / name
        return home.with_name(f".{home.name}.part")

    def done(self, name: str) -> bool:
        """Whether a step is complete."""
        return (self.path / name / "manifest.json").exists()

    def steps(self) -> dict[str, dict[str, Any]]:
        """``{name: manifest}`` of the finished steps."""
        paths = sorted(self.path.glob("seed-*/*/manifest.json"))
        return {str(path.parent.relative_to(self.path)): read_json(path) for path in paths}

    def checked(self, name: str, file: str) -> Path:
        """A file of a finished step whose sha256 still is what the step's manifest says.

        Raises:
            IntegrityError: where it is not.
        """
        return checked_file(self.path / name, file)


def checked_file(step: Path, file: str) -> Path:
    """See :meth:`RunDirectory.checked`; ``step`` is the step's folder."""
    wanted = read_json(step / "manifest.json").get("files", {}).get(file)
    if not (step / file).exists() or file_sha256(step / file) != wanted:
        raise IntegrityError(
            "a file of the run is absent or was changed since it was written",
            where=str(step / file),
            fix=f"delete {step} and run again",
        )
    return step / file


def require_dataset(run: Path, snapshot: str) -> None:
    """Raise UsageError if the finished steps of ``run`` were made from another dataset than ``snapshot``.

    Labels and the list of what a teacher was trained on go by example id, and equal ids are other examples in it.
    """
    home = run / DATASET
    before = read_json(home).get("snapshot", snapshot) if home.exists() else snapshot
    if before != snapshot and any(run.glob("seed-*/*/manifest.json")):
        raise UsageError(
            f"the dataset is another one than the one this run was started with: {before} -> {snapshot}",
            where=str(run),
            fix="give another --out for the new dataset, or bring the earlier one back",
        )


def config_of(run: Path) -> Path:
    """The configuration of a run directory. Raises UsageError where it is none."""
    if not (run / "config.yaml").exists():
        raise UsageError("this is no run directory", where=str(run), fix="name a directory with config.yaml in it")
    return run / "config.yaml"


def trained_here(manifest: Mapping[str, Any]) -> bool:
    """Whether a teacher step has a model; labels of the others came from elsewhere."""
    return "model.safetensors" in manifest["files"]


def _early(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in LATE}


def _changes(before: Any, after: Any, path: str = "") -> list[str]:
    """``key.path: old -> new`` for every setting that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        parts = [_changes(before.get(key), after.get(key), f"{path}.{key}" if path else str(key)) for key in keys]
        return [change for part in parts for change in part]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        parts = [_changes(old, new, f"{path}[{at}]") for at, (old, new) in enumerate(zip(before, after, strict=True))]
        return [change for part in parts for change in part]
    return [] if before == after else [f"{path}: {before} -> {after}"]


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {"recdistill": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises IntegrityError where the file is damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"the file cannot be read: {error}", where=str(path), fix="delete it, run again"
        ) from error
