"""``teacher plan``: reads arguments, plans, prints. It loads no torch: nothing is built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recdistill_core.console import JsonOption, emit
from recdistill_core.errors import UsageError


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A run configuration and changes to it (teacher.width=512), or a teacher's settings (width=512).",
            metavar="[CONFIG] [KEY=VALUE ...]",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="A size: hstu-1m, -10m, -100m, -1b, -7b or -24b.")] = "",
    gpu: Annotated[str | None, typer.Option(help="a100-40, a100-80, h100 (default), h200, b200; cpu, custom.")] = None,
    gpus: Annotated[int | None, typer.Option(help="How many. Default: 8.")] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="YAML file that describes the cluster; the options change it.")
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="How many share the fast link. Default: 8.")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="Memory of one, 10^9 bytes.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Dense peak of one, 10^12 operations/s.")] = None,
    link_gbs: Annotated[float | None, typer.Option(help="Link in a node, 10^9 bytes/s, one way.")] = None,
    network_gbs: Annotated[float | None, typer.Option(help="Link between nodes, likewise.")] = None,
    usable: Annotated[float | None, typer.Option(help="Share of the memory to fill. Default: 0.9.")] = None,
    vocabulary: Annotated[
        list[str] | None, typer.Option(help="NAME=SIZE, where no dataset says it; repeatable.", metavar="NAME=SIZE")
    ] = None,
    actions: Annotated[int, typer.Option(help="Bits of an event's action code, likewise.")] = 4,
    length: Annotated[int | None, typer.Option(help="Events of each history. Default: max_length.")] = None,
    rows_per_history: Annotated[int, typer.Option(help="Examples that share one encoded history.")] = 16,
    histories: Annotated[int | None, typer.Option(help="Of one GPU's batch. Default: batch_size / rows, or 1.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed or bf16-true. Default: the trainer's.")
    ] = None,
    mfu: Annotated[float, typer.Option(help="Share of the peak rate that training reaches.")] = 0.4,
    examples: Annotated[float, typer.Option(help="How many to train on, for the days.")] = 1e9,
    must_fit: Annotated[bool, typer.Option("--must-fit", help="Fail (exit code 2) where nothing fits.")] = False,
    json: JsonOption = False,
) -> None:
    """Say what a teacher takes: parameters, FLOPs, memory per GPU, the smallest cluster, days."""
    from recdistill_plan.cluster import cluster_of
    from recdistill_plan.fit import ways
    from recdistill_plan.report import answer, headline, tables, verdict
    from recdistill_plan.sizes import PRECISIONS, Workload
    from recdistill_plan.target import find_target

    target = find_target(words or [], preset, vocabulary or [], actions)
    options = {
        "gpu": gpu, "gpus": gpus, "gpus_per_node": gpus_per_node, "memory_gb": memory_gb, "tflops": tflops,
        "link_gbs": link_gbs, "network_gbs": network_gbs, "usable": usable,
    }  # fmt: skip
    machines = cluster_of(cluster, options)
    if not 0.0 < mfu <= 1.0:
        raise UsageError(f"mfu is a share in (0, 1], got {mfu}", where="--mfu", fix="0.3 to 0.5 is usual")
    if not 0 < examples < float("inf"):
        raise UsageError(f"examples must be above 0, got {examples}", where="--examples", fix="write for example 1e9")
    longest = target.model.config.max_length
    events = longest if length is None else length
    if events > longest:
        raise UsageError(
            f"a history of {events:,} events is longer than max_length, {longest:,}",
            where="--length",
            fix=f"plan at most {longest:,} events, or set max_length={events}",
        )
    batch = max(1, (target.batch_size or 1) // max(1, rows_per_history)) if histories is None else histories
    default = "bf16-mixed" if target.batch_size is None else "32-true"
    chosen = precision or target.precision or default
    try:
        work = Workload(batch, events, rows_per_history, chosen, on_cpu=machines.gpu == "cpu")
    except ValueError as error:
        raise UsageError(
            f"no batch is like this: {error}",
            where="--length, --rows-per-history, --histories, --precision",
            fix=f"give numbers of at least 1, and a precision of {', '.join(PRECISIONS)}",
        ) from None  # its text is the first line
    found = ways(target.model, work, machines, mfu=mfu, examples=examples)
    data = answer(target.name, target.model, target.described, work, machines, mfu, examples, found)

    def render(console: Console) -> None:
        for line in headline(data):
            console.print(line, highlight=False)
        for table in tables(data):
            console.print()
            console.print(table)
        console.print()
        for line in verdict(data):
            console.print(line, highlight=False)

    emit(data, json, render)
    if must_fit and not data["fits"]:
        raise UsageError(
            "the teacher fits on this cluster in none of the ways",
            where=f"{machines.gpus:,} x {machines.gpu}",
            fix="; ".join(data["remedies"]) or "take GPUs with more memory",
        )
