"""``teacher pretrain`` and ``teacher gap``. What needs torch is imported when a verb runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recdistill_core.config import load_yaml
from recdistill_core.console import JsonOption, emit, messages, progress_bar
from recdistill_core.errors import UsageError
from recdistill_core.registry import installed
from recdistill_gpsd.presets import PRESETS

ConfigArgument = Annotated[
    str, typer.Argument(help="YAML file of a run; with --preset a first setting.", metavar="CONFIG")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, as key.path=value.", metavar="[KEY=VALUE ...]")
]


def pretrain(
    config: ConfigArgument = "",
    overrides: OverridesArgument = None,
    preset: Annotated[str, typer.Option(help=f"Published settings instead of a YAML file: {', '.join(PRESETS)}.")] = "",
    data: Annotated[Path | None, typer.Option(help="An imported dataset. Default: the configuration's.")] = None,
    until: Annotated[
        str,
        typer.Option(help="Use events before this alone: ISO time, ms, or a share. Default: the first training row."),
    ] = "",
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist yet.")] = Path("runs/pretrained"),
    json: JsonOption = False,
) -> None:
    """Learn to tell each user's next event; a run's teacher then takes over the embeddings (pretrained.path=OUT)."""
    from recdistill_gpsd.job import of_preset, of_run
    from recdistill_gpsd.job import pretrain as work
    from recdistill_pipeline.dataset import open_dataset

    if preset:
        if data is None:
            raise UsageError("a preset needs a dataset", where="--data", fix="give --data DATASET")
        settings = _settings([*([config] if config else []), *(overrides or [])])
        job = of_preset(preset, {**settings, **({"until": until} if until else {})}, open_dataset(data))
    else:
        if not config:
            raise UsageError(
                "nothing says what to pre-train", fix="give a run's YAML file, or --preset NAME and --data DATASET"
            )
        more = [f"pretrain.until={until}"] if until else []
        job = of_run(load_yaml(Path(config), [*(overrides or []), *more]), installed(), data)
    try:
        with progress_bar() as tell:
            manifest = work(job, out, tell, lambda line: messages().print(line, markup=False, highlight=False))
    except KeyboardInterrupt:
        messages().print("interrupted: the same command goes on after the last whole epoch")
        raise
    emit({**manifest, "out": str(out)}, json, lambda console: _show(console, manifest, preset, out))


def gap(
    runs: Annotated[list[Path], typer.Argument(help="Runs with trained teachers.", metavar="RUN [RUN ...]")],
    rows: Annotated[int, typer.Option(help="Training rows to look at, drawn at random.")] = 50_000,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of users.")] = 500,
    json: JsonOption = False,
) -> None:
    """Compare each run's teacher on its training rows and on its test rows: what it over-fits by."""
    from recdistill_gpsd.gap import gaps

    with progress_bar() as tell:
        found = gaps(runs, rows=rows, resamples=resamples, tell=tell)
    emit(found, json, lambda console: _show_gaps(console, found))


def _settings(words: list[str]) -> dict[str, Any]:
    """``key.path=value`` words as plain values."""
    from recdistill_pipeline.commands import settings_of

    return settings_of(words)


def _show(console: Console, manifest: dict[str, Any], preset: str, out: Path) -> None:
    last = manifest["epochs"][-1]["loss"]
    losses = ", ".join(f"{field} {value:.3f}" for field, value in last.items())
    console.print(f"loss of the last of {len(manifest['epochs'])} epochs: {losses}", highlight=False)
    published = PRESETS[preset].published_for(manifest) if preset else {}
    if preset and not published:
        console.print("this is not MovieLens-1M, of which the preset's published results are", soft_wrap=True)
    for name, part in manifest["ranking"].items():
        table = Table(title=f"{name}: {part['users']:,} users, {manifest['candidates']:,} items", title_justify="left")
        headings = ("metric", "value", "95% interval", "by popularity", *(["published on ML-1M"] if published else []))
        for heading in headings:
            table.add_column(heading)
        for metric, found in part["metrics"].items():
            more = [f"{published[metric]:.4f}" if metric in published else ""] if published else []
            common = f"{part['by_popularity'][metric]['value']:.4f}"
            table.add_row(metric, f"{found['value']:.4f}", f"{found['low']:.4f} to {found['high']:.4f}", common, *more)
        console.print(table)
        if unranked := _unranked(part):
            console.print(f"{name}: users not ranked: {unranked}", highlight=False, soft_wrap=True)
    console.print(f"pre-trained: {out}", highlight=False, soft_wrap=True)


def _unranked(part: dict[str, Any]) -> str:
    """How many users' held-out event is not ranked, and why; with those that are ranked they are all who have one."""
    why = {"without_history": "with no event before it", "out_of_vocabulary": "whose item is out of vocabulary"}
    counts = [f"{part[name]:,} {words}" for name, words in why.items() if part[name]]
    return ", ".join(counts)


def _show_gaps(console: Console, found: dict[str, Any]) -> None:
    for metric in found["metrics"]:
        table = Table(title=f"{metric}, {found['task']}", title_justify="left")
        for heading in ("run", "pre-trained", "training rows", "test rows", "gap"):
            table.add_column(heading)
        for entry in found["runs"]:
            sides = [_interval(entry[metric][side]) for side in ("train", "test", "gap")]
            table.add_row(entry["run"], "yes" if entry["pretrained"] else "no", *sides)
            other = entry.get("versus_first", {}).get(metric)
            if other:
                table.add_row("  less the first", "", *[_interval(other[side]) for side in ("train", "test", "gap")])
        console.print(table)
    counts = ", ".join(f"{entry['train_rows']:,}" for entry in found["runs"])
    console.print(f"training rows looked at: {counts}; gap: test minus training", highlight=False)


def _interval(one: dict[str, float | None]) -> str:
    if one["value"] is None:
        return "undefined"
    return f"{one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f})"
