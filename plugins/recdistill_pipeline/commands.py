"""The verbs of the pipeline. Functions are thin: they read arguments, run a job and print its answer.

What needs torch is imported when a verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib.resources
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recdistill_core.cli import JsonOption, emit, messages
from recdistill_core.config import load_yaml, resolve, to_yaml
from recdistill_core.console import progress_bar
from recdistill_core.errors import ConfigError, Problem, UsageError
from recdistill_core.registry import installed

if TYPE_CHECKING:
    from recdistill_pipeline.plan import Plan

ConfigArgument = Annotated[Path, typer.Argument(help="YAML file.", metavar="CONFIG")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, as key.path=value.", metavar="[KEY=VALUE ...]")
]
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(help="The component's settings, as key=value.", metavar="[KEY=VALUE ...]")
]
RunArgument = Annotated[Path, typer.Argument(help="Run directory with trained models.", metavar="RUN")]
OutOption = Annotated[Path, typer.Option("--out", help="Run directory; an unfinished run in it goes on.")]

data_app = typer.Typer(help="Import and check logs.", no_args_is_help=True)
teacher_app = typer.Typer(help="Train teachers.", no_args_is_help=True)
student_app = typer.Typer(help="Train students.", no_args_is_help=True)
config_app = typer.Typer(help="Look at a configuration before running it.", no_args_is_help=True)


def _say(line: str) -> None:
    messages().print(line, markup=False, highlight=False)


def _with_run(plan: Plan, out: Path, job: str) -> Any:
    """Open the run directory, do one of its jobs under a progress bar for imports, and return its answer."""
    from recdistill_pipeline.run import Run

    with progress_bar() as tell:
        return getattr(Run(plan, out, installed(), _say, partial(tell, "import")), job)()


def _plan(config: Path, overrides: list[str] | None) -> Plan:
    return _made(load_yaml(config, overrides or []))


def _made(plain: dict[str, Any]) -> Plan:
    from recdistill_pipeline.plan import make_plan  # needs torch, which --help does not

    return make_plan(plain, installed())


def _finish(results: dict[str, Any], out: Path, json: bool) -> None:
    from recdistill_pipeline.report import console_tables

    def render(console: Console) -> None:
        for table in console_tables(results):
            console.print(table)
        if results["capture"] == "leaky":
            console.print("leaky labels: these numbers show the damage; they are no result", style="red")
        if results.get("embeddings") == "end":
            console.print("embeddings of the end of training had seen the labels: no result", style="red")
        console.print(f"run directory: {out}", highlight=False, soft_wrap=True)

    emit({**results, "run": str(out)}, json, render)


def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    out: OutOption = Path("runs/run"),
    json: JsonOption = False,
) -> None:
    """Import, train teachers and students, evaluate: the whole pipeline."""
    _finish(_with_run(_plan(config, overrides), out, "all"), out, json)


def demo(overrides: OverridesArgument = None, out: OutOption = Path("runs/demo"), json: JsonOption = False) -> None:
    """Run the whole pipeline on a simulated feed; takes a few minutes on two cores."""
    resource = importlib.resources.files("recdistill_pipeline") / "demo.yaml"
    with importlib.resources.as_file(resource) as config:
        plan = _plan(config, overrides)
    _finish(_with_run(plan, out, "all"), out, json)


def evaluate(
    out: RunArgument,
    json: JsonOption = False,
) -> None:
    """Evaluate a run that is trained: metrics.json, summary.md, plots."""
    from recdistill_pipeline.rundir import config_of

    _finish(_with_run(_plan(config_of(out), None), out, "evaluate"), out, json)


def export(
    out: RunArgument,
    name: Annotated[str, typer.Argument(help="Exporter, such as torch_export.", metavar="EXPORTER")],
    settings: SettingsArgument = None,
    json: JsonOption = False,
) -> None:
    """Export every distilled student of a finished run, with this exporter beside those of its configuration."""
    from recdistill_pipeline.rundir import config_of

    plain = load_yaml(config_of(out))
    others = [
        entry for entry in plain.get("exporters", []) if entry["name"].rpartition(":")[2] != name.rpartition(":")[2]
    ]
    plan = _made({**plain, "exporters": [*others, {"name": name, **settings_of(settings)}]})
    found = _with_run(plan, out, "export")
    paths = [str(out / step / facts["path"]) for step, facts in found.items()]
    emit(found, json, lambda console: console.print("\n".join(paths), highlight=False, soft_wrap=True))


def settings_of(settings: list[str] | None) -> dict[str, Any]:
    """``["key=value", ...]`` of a component's settings as plain values."""
    from omegaconf import OmegaConf

    for setting in settings or []:
        if "=" not in setting:
            raise UsageError(f"setting {setting!r} is not KEY=VALUE", fix="write key=value, such as width=64")
    plain = OmegaConf.to_container(OmegaConf.from_dotlist(settings or []))
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


@teacher_app.command("fit")
def teacher_fit(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    out: OutOption = Path("runs/run"),
    json: JsonOption = False,
) -> None:
    """Train one teacher per seed, each logit captured before the update on its example; or ask one that is external."""
    _with_run(_plan(config, overrides), out, "teachers")
    _list_steps(out, "teacher", json)


@student_app.command("fit")
def student_fit(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    out: OutOption = Path("runs/run"),
    json: JsonOption = False,
) -> None:
    """Train every student raw and distilled, per seed, from the labels in the store."""
    _with_run(_plan(config, overrides), out, "students")
    _list_steps(out, "student", json)


def _list_steps(out: Path, kind: str, json: bool) -> None:
    from recdistill_pipeline.rundir import read_json

    paths = sorted(out.glob("seed-*/*/manifest.json"))
    steps = [str(path.parent) for path in paths if read_json(path)["kind"] == kind]
    emit(steps, json, lambda console: console.print("\n".join(steps), highlight=False, soft_wrap=True))


@data_app.command("import")
def data_import(
    name: Annotated[str, typer.Argument(help="Importer, such as kuairand, table or simulator.")],
    settings: SettingsArgument = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the new dataset.")] = Path("dataset"),
    memory_limit: Annotated[str, typer.Option(help="Bound on the import's memory.")] = "1GB",
    json: JsonOption = False,
) -> None:
    """Import a log into a dataset: recdistill data import table path=log.csv schema=log.yaml --out dataset."""
    from recdistill_pipeline.dataset import import_dataset, open_dataset

    problems: list[Problem] = []
    importer = resolve(installed(), "importer", {"name": name, **settings_of(settings)}, "settings", problems)
    if importer is None:
        raise ConfigError(problems)
    with progress_bar() as tell:
        import_dataset(importer, out, memory_limit, partial(tell, f"importing {name}"))
    source = open_dataset(out)
    answer = {
        "dataset": str(out),
        "snapshot": source.snapshot_id,
        "rows": source.num_rows,
        "schema": source.schema.to_dict(),
    }
    emit(answer, json, lambda console: console.print(f"{source.num_rows:,} impressions in {out}", highlight=False))


@data_app.command("verify")
def data_verify(
    path: Annotated[Path, typer.Argument(help="An imported dataset.", metavar="DATASET")], json: JsonOption = False
) -> None:
    """Check every file of a dataset against its checksum."""
    from recdistill_pipeline.dataset import open_dataset

    source = open_dataset(path)
    source.verify()
    answer = {"dataset": str(path), "snapshot": source.snapshot_id, "rows": source.num_rows, "ok": True}
    emit(answer, json, lambda console: console.print(f"{path}: every file is as it was written", highlight=False))


@config_app.command("show")
def config_show(config: ConfigArgument, overrides: OverridesArgument = None, json: JsonOption = False) -> None:
    """Print the configuration with every default written out."""
    resolved = _plan(config, overrides).resolved()
    emit(resolved, json, lambda console: console.print(to_yaml(resolved), markup=False, highlight=False))


@config_app.command("validate")
def config_validate(config: ConfigArgument, overrides: OverridesArgument = None, json: JsonOption = False) -> None:
    """Check a configuration; every fault is reported with its YAML path."""
    plan = _plan(config, overrides)
    answer = {"ok": True, "name": plan.config.name, "components": [entry.label for entry in plan.components()]}
    emit(answer, json, lambda console: console.print(f"{config}: ok", highlight=False))
