"""A plan as plain values and as tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from recdistill_plan import flops
from recdistill_plan.cluster import Cluster
from recdistill_plan.fit import Way, amount, best, dominant, remedies
from recdistill_plan.parameters import count
from recdistill_plan.sizes import Model, Workload

#: Bytes of the largest peak below which the table of memory is in MB: in GB small teachers would read 0.0.
SMALL = 1e9
#: Parts of a peak -> how a message names them.
PARTS = {
    "weights": "weights", "optimiser": "the optimiser's states", "gradients": "gradients",
    "gathered": "gathered weights, buckets and casts", "activations": "activations",
    "workspace": "what one layer needs while it is computed",
}  # fmt: skip


def answer(
    name: str, model: Model, described: bool, work: Workload, cluster: Cluster, mfu: float, examples: float,
    found: list[Way],
) -> dict[str, Any]:  # fmt: skip
    """Everything that the tables say, and the settings that led to it."""
    parameters, once = count(model), flops.count(model, work)
    rows = [
        {
            **asdict(way),
            "memory": {**way.memory._asdict(), "peak": way.memory.peak},
            "step": _step(way),
            "configured": way.checkpointing == model.config.checkpointing,
        }
        for way in found
    ]
    chosen = best(found)
    return {
        "name": name,
        "teacher": {"name": "hstu", **asdict(model.config)},
        "vocabularies": dict(model.schema.vocabularies),
        "described": described,
        "workload": asdict(work),
        "cluster": {**asdict(cluster), "usable_bytes": cluster.memory, "rate": cluster.rate(work.precision)},
        "mfu": mfu,
        "examples": examples,
        "parameters": {**parameters._asdict(), "dense": parameters.dense, "total": parameters.total},
        "flops": {
            **once._asdict(),
            "forward": once.forward,
            "training": once.training,
            "per_example": {"forward": once.forward / work.rows, "training": once.training / work.rows},
            "per_token": {"forward": once.forward / work.length, "training": once.training / work.length},
        },
        "ways": rows,
        "fits": chosen.fits,
        "best": {"strategy": chosen.strategy, "checkpointing": chosen.checkpointing},
        "dominant": dominant(chosen.memory),
        "notes": list(_notes(model, work)),
        "remedies": [] if chosen.fits else list(remedies(model, work, cluster, chosen)),
    }


def _notes(model: Model, work: Workload) -> Iterator[str]:
    layers, most = model.config.truncate_layers, model.config.truncate_length
    if layers and most < work.length:
        yield (
            f"the last {layers} layers are planned with {most:,} events of each history, the most that they see; where "
            "their window starts decides, and half of that is the least"
        )


def _step(way: Way) -> float:
    return max(way.compute, way.communication)


def headline(data: dict[str, Any]) -> Iterator[str]:
    """What is planned, in lines."""
    teacher, work, cluster = data["teacher"], data["workload"], data["cluster"]
    yield f"{data['name']}: {teacher['layers']} layers of width {teacher['width']:,}, {teacher['heads']} heads"
    sizes = ", ".join(f"{name} {size:,}" for name, size in data["vocabularies"].items())
    yield f"vocabularies{' (described)' if data['described'] else ''}: {sizes}"
    yield (
        f"a GPU's batch: {work['histories']:,} x {work['length']:,} events, {work['rows']:,} examples of each history, "
        f"{work['precision']}"
    )
    yield (
        f"cluster: {cluster['gpus']:,} x {cluster['gpu']}, {amount(cluster['usable_bytes'])} usable, "
        f"{cluster['rate'] / 1e12:,.4g} TFLOP/s, MFU {data['mfu']:.0%}"
    )


def tables(data: dict[str, Any]) -> Iterator[Table]:
    """Parameters, operations, memory and time."""
    parameters, once = data["parameters"], data["flops"]
    table = _table("parameters", "", "count")
    for name, key in (("layers", "layers"), ("head", "head"), ("dense", "dense"), ("embedding tables", "tables")):
        table.add_row(name, short(parameters[key]).replace("G", "B"), f"{parameters[key]:,}")
    yield table
    table = _table("operations (FLOPs)", "forward", "training")
    for name, forward, training in (
        ("one history, all its examples", once["forward"], once["training"]),
        ("of these: attention", once["attention"], 3 * once["attention"]),
        ("per example", once["per_example"]["forward"], once["per_example"]["training"]),
        ("per event of the history", once["per_token"]["forward"], once["per_token"]["training"]),
    ):
        table.add_row(name, short(forward), short(training))
    yield table
    unit, size = ("GB", 1e9) if max(way["memory"]["peak"] for way in data["ways"]) >= SMALL else ("MB", 1e6)
    table = _table(f"{unit} per GPU", "recompute", "states", "gathered", "activ.", "work", "peak", "fits", "GPUs from")
    for way in data["ways"]:
        memory = way["memory"]
        states = memory["weights"] + memory["gradients"] + memory["optimiser"]
        others = [memory[name] for name in ("gathered", "activations", "workspace")]
        parts = [f"{part / size:,.1f}" for part in (states, *others)]
        told = "yes" if way["fits"] else "no"
        smallest = "never" if way["fewest"] is None else f"{way['fewest']:,}"
        smallest = "1 alone" if way["alone"] else smallest
        table.add_row(way["strategy"], _recompute(way), *parts, f"{memory['peak'] / size:,.1f}", told, smallest)
    yield table
    table = _table("time", "recompute", "step, s", "by", "examples/s", "events/s", "days")
    for way in data["ways"]:
        if way["fits"]:
            by = "compute" if way["compute"] >= way["communication"] else "link"
            rates = [short(way["examples"]), short(way["tokens"])]
            table.add_row(way["strategy"], _recompute(way), f"{way['step']:.3g}", by, *rates, _days(way["days"]))
    if table.rows:
        yield table


def _recompute(way: dict[str, Any]) -> str:
    return f"{way['checkpointing']} *" if way["configured"] else str(way["checkpointing"])


def verdict(data: dict[str, Any]) -> Iterator[str]:
    """Which way to go, or what stands in the way."""
    chosen = data["best"]
    yield "* the teacher's own checkpointing; another is a setting of it"
    yield from (f"note: {note}" for note in data["notes"])
    way = next(way for way in data["ways"] if all(way[key] == value for key, value in chosen.items()))
    name = f"{chosen['strategy']}, checkpointing {chosen['checkpointing']}"
    if data["fits"]:
        yield f"fastest that fits: {name}; {data['examples']:,.4g} examples take {_days(way['days'])} days"
        return
    yield f"nothing fits; nearest: {name}, {amount(way['memory']['peak'])}, most of it {PARTS[data['dominant']]}"
    counts = [(other["fewest"], other) for other in data["ways"] if other["fewest"] is not None]
    if any(other["alone"] for other in data["ways"]):
        yield "on one GPU alone it fits: see the table"
    if counts:
        count_, other = min(counts, key=lambda pair: pair[0])
        yield f"it fits from {count_:,} GPUs on: {other['strategy']}, checkpointing {other['checkpointing']}"
    yield from (f"would help: {remedy}" for remedy in data["remedies"])


def _table(title: str, *columns: str) -> Table:
    made = Table(title, box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for column in columns:
        made.add_column(column, justify="left" if column in ("recompute", "by", "fits") else "right", no_wrap=True)
    made.columns[0].no_wrap = True
    return made


def _days(days: float) -> str:
    return f"{days:,.0f}" if days >= 100 else f"{days:.2g}"


def short(number: float) -> str:
    """``1.23M``: three digits and a decimal prefix, up to E (10^18)."""
    value = float(number)
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:,.3g}E"
