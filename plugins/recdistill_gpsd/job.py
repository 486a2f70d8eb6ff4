"""The job of ``teacher pretrain``: from a configuration or a preset to a folder that a run can start from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from recdistill_core.config import fill, make
from recdistill_core.errors import ConfigError, Problem, UsageError
from recdistill_core.files import whole_or_absent
from recdistill_core.fingerprint import digest, file_sha256, package_digest
from recdistill_core.interfaces import SampleSource
from recdistill_core.registry import Registry
from recdistill_gpsd.config import PretrainConfig
from recdistill_gpsd.leave_one_out import rank_held_out
from recdistill_gpsd.model import NextEvent, trained_rows
from recdistill_gpsd.presets import PRESETS
from recdistill_gpsd.progress import Epoch, Progress
from recdistill_gpsd.ranking import as_plain, summarise
from recdistill_gpsd.sequences import Ints, Sequences, read_sequences
from recdistill_gpsd.train import Tell, train
from recdistill_hstu.config import HSTUConfig
from recdistill_pipeline.checkpoint import save_weights
from recdistill_pipeline.dataset import make_split, time_of
from recdistill_pipeline.plan import Plan, make_plan
from recdistill_pipeline.pretrained import CONFIG, FORMAT, MANIFEST, MODEL, SEEN, VERSION
from recdistill_pipeline.rundir import versions


@dataclass(frozen=True)
class Job:
    """What to pre-train on what.

    Attributes:
        teacher: sizes of tokens and layers. config: of the training. source: the dataset.
        cutoff: ms UTC, or None for the end of the log. preset: its name, or empty.
        threads: CPU threads; 0 leaves torch's choice.
    """

    teacher: HSTUConfig
    config: PretrainConfig
    source: SampleSource
    cutoff: int | None
    preset: str = ""
    threads: int = 0


def of_run(plain: Mapping[str, Any], registry: Registry, data: Path | None) -> Job:
    """The job of a run configuration with a section ``pretrain``; its teacher is the one to be pre-trained.

    Args:
        plain: the configuration. data: the dataset; None: the configuration's ``dataset.path``.

    Raises:
        ConfigError: with every fault. UsageError: without a dataset, or for a teacher of another kind.
    """
    plan = make_plan(plain, registry)
    config = _config(plan.config.pretrain)
    if not isinstance(plan.teacher.config, HSTUConfig):
        raise UsageError(
            f"teacher {plan.teacher.name} has no tokens and layers that could be pre-trained here",
            where="teacher",
            fix="use the teacher hstu",
        )
    source = _source(plan, registry, data)
    if config.until:
        cutoff = time_of(source, config.until, "pretrain.until")
    else:
        cutoff = int(source.column("event_time")[make_split(source, plan.config.split).teacher[0]])
    return Job(plan.teacher.config, config, source, cutoff, threads=plan.config.threads)


def of_preset(name: str, settings: Mapping[str, Any], source: SampleSource) -> Job:
    """The job of a preset, with some of its settings changed; it uses the whole log unless ``until`` says otherwise.

    Args:
        name: of the preset. settings: of :class:`PretrainConfig`, also under ``pretrain`` as a run's YAML has them, and
            under ``teacher`` of ``HSTUConfig``.
        source: the dataset.

    Raises:
        UsageError: for an unknown preset. ConfigError: with every faulty setting.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}", where="--preset", fix=f"use one of: {', '.join(PRESETS)}")
    preset, problems = PRESETS[name], list[Problem]()
    changed, sizes = dict(settings), settings.get("teacher", {})
    changed.pop("teacher", None)
    prefixed = changed.get("pretrain")
    if isinstance(prefixed, Mapping):
        del changed["pretrain"]
        changed.update(prefixed)
    if not isinstance(sizes, Mapping):
        raise ConfigError([Problem("teacher", f"must be a mapping, as in teacher.layers=4, got {sizes!r}")])
    teacher = fill(HSTUConfig, {**preset.teacher, **sizes}, "teacher", problems, "teacher 'hstu'")
    config = fill(PretrainConfig, {**preset.pretrain, **changed}, "", problems, "teacher pretrain")
    if teacher is None or config is None:
        raise ConfigError(problems)
    return Job(teacher, config, source, time_of(source, config.until, "pretrain.until") if config.until else None, name)


def pretrain(
    job: Job,
    out: Path,
    tell: Tell = lambda what, done, of: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train, rank what was held out, and write the folder, whole or not at all; returns its manifest.

    An interrupted job goes on after its last whole epoch, from a file beside ``out`` that is gone in the end. Equal
    jobs give equal bytes on a CPU with one number of threads, interrupted or not.

    Raises:
        UsageError: if ``out`` exists, the file beside it is of another job, or the device is not there.
        DataError: if there is nothing to train on, or the loss is NaN.
    """
    if out.exists():
        raise UsageError("the folder exists already", where=f"--out: {out}", fix="give another --out, or delete it")
    config, device = job.config, _device(job.config.device)
    if job.threads:
        torch.set_num_threads(job.threads)
    sequences = read_sequences(job.source, job.cutoff, config.holdout)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = NextEvent(job.teacher, config, job.source.schema)
        sizes = {name: _size(model, name) for name in model.tokens.fields}
        occurrences = sequences.occurrences(sizes)
        seen = trained_rows(model, occurrences)  # before the model moves to its device
        say(f"{sequences.in_words()}; predicted: {', '.join(model.fields)}")
        model.to(device)
        progress = Progress(out.with_name(f".{out.name}.progress"), _digest(job, sequences, device))
        epochs = train(model, sequences, occurrences, tell, progress, say)
        ranking = _ranking(model, sequences, occurrences["item"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(out) as place:
        place.mkdir()
        save_weights(model.state_dict(), place / MODEL)
        save_weights({"tokens.table.weight": seen}, place / SEEN)
        settings = {"teacher": {"name": "hstu", **asdict(job.teacher)}, "pretrain": asdict(config)}
        (place / CONFIG).write_text(json.dumps(settings, indent=2))
        manifest = _manifest(job, sequences, model, epochs, ranking, int(seen.sum()))
        manifest["files"] = {name: file_sha256(place / name) for name in (MODEL, SEEN, CONFIG)}
        (place / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False))
    progress.forget()
    return manifest


def _digest(job: Job, sequences: Sequences, device: torch.device) -> str:
    """Of all that the weights depend on."""
    code = package_digest("recdistill_gpsd") + package_digest("recdistill_hstu")
    plain = [asdict(job.teacher), asdict(job.config), job.source.snapshot_id, sequences.cutoff, device.type]
    return digest([*plain, torch.get_num_threads(), versions(), code])


def _ranking(model: NextEvent, sequences: Sequences, popularity: Ints) -> dict[str, Any]:
    """``{"test": ..., "validation": ...}`` of what was held out, as far as there is some; by popularity besides."""
    found: dict[str, Any] = {}
    for back, name in ((1, "test"), (2, "validation")):
        if back <= model.config.holdout:
            ranked = rank_held_out(model, sequences, back)
            common = rank_held_out(model, sequences, back, popularity)
            found[name] = {
                "users": int(ranked.rank.size),
                "out_of_vocabulary": ranked.out_of_vocabulary,
                "without_history": int((sequences.count == back).sum()),
                "metrics": as_plain(summarise(ranked.rank)) if ranked.rank.size else {},
                "by_popularity": as_plain(summarise(common.rank)) if common.rank.size else {},
            }
    return found


def _manifest(
    job: Job,
    sequences: Sequences,
    model: NextEvent,
    epochs: list[Epoch],
    ranking: Mapping[str, Any],
    seen: int,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "preset": job.preset,
        "dataset": job.source.snapshot_id,
        "feature_view": job.source.schema.view_hash(),
        "cutoff": sequences.cutoff,
        "seed": job.config.seed,
        "events": int(sequences.trained.sum()),
        "users": int((sequences.trained > 1).sum()),
        "held_out": int((sequences.count - sequences.trained).sum()),
        "predicted": model.fields,
        "candidates": job.source.schema.num_items - 1,
        "seen_rows": seen,
        "rows": model.tokens.table.num_embeddings,
        "parameters": sum(part.numel() for part in model.parameters()),
        "epochs": [asdict(epoch) for epoch in epochs],
        "ranking": dict(ranking),
        "filter_seen": job.config.filter_seen,
        "versions": versions(),
    }


def _config(plain: Mapping[str, Any]) -> PretrainConfig:
    problems: list[Problem] = []
    config = fill(PretrainConfig, plain, "pretrain", problems, "teacher pretrain")
    if config is None:
        raise ConfigError(problems)
    return config


def _source(plan: Plan, registry: Registry, data: Path | None) -> SampleSource:
    path = str(data or plan.config.dataset.path)
    if not path:
        raise UsageError(
            "the configuration imports its dataset into a run directory, and pre-training comes before the run",
            where="dataset.path",
            fix="import it first ('recdistill data import ... --out DATASET') and give --data DATASET",
        )
    source: SampleSource = make(registry, "source", {**plan.config.dataset.source, "path": path})
    return source


def _size(model: NextEvent, field: str) -> int:
    return int(model.tokens.event_rows[1, model.tokens.fields.index(field)])


def _device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        UsageError: if there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"the device {name!r} cannot be used: {str(error).splitlines()[0]}",
            where="pretrain.device",
            fix="write auto, cpu or cuda",
        ) from error
    return device
