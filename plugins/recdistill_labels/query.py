"""``labels inspect``: a summary of the labels, or any query over them, as a table, JSON, CSV or Parquet."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from recdistill_core.cli import JsonOption, emit, messages
from recdistill_core.console import progress_bar
from recdistill_core.errors import UsageError
from recdistill_labels.arguments import SnapshotOption, StoreArgument, VersionsOption, counted
from recdistill_labels.facts import read_versions

if TYPE_CHECKING:
    from recdistill_labels.results import Result

#: Rows of a result that are drawn; all of them go to JSON and files.
SHOWN = 100


def inspect(
    store: StoreArgument,
    sql: Annotated[
        str, typer.Option("--sql", help="A query over the tables labels, versions, commits, quarantine.")
    ] = "",
    version: VersionsOption = None,
    snapshot: SnapshotOption = "",
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV to stdout.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the result to a .csv or .parquet file.")] = None,
    json: JsonOption = False,
) -> None:
    """Look into the labels of a store: a summary of each version, or any query. Read-only."""
    if csv and (json or out is not None):
        raise UsageError("--csv goes to stdout, and so does --json; --out has a format of its own", fix="choose one")
    from recdistill_labels.results import run_query
    from recdistill_labels.tables import Snapshot

    seen = Snapshot(store, *read_versions(store, snapshot, version or ()))
    with progress_bar() as tell:
        seen.check(partial(tell, "checking"))
    with tempfile.TemporaryDirectory(prefix="recdistill-labels-") as scratch:
        connection = seen.connect(Path(scratch))
        try:
            result = run_query(connection, sql or seen.summary())
            if out is not None:
                _written(result, out, json)
            elif csv:
                result.print_csv()
            elif json:
                emit(result.rows(), True, lambda console: None)
            elif sql:
                _draw(result)
            else:
                _draw_upright(result)
        except UsageError:
            seen.check()  # a file that went away meanwhile is no fault of the query
            raise
        finally:
            connection.close()


def _written(result: Result, out: Path, json: bool) -> None:
    rows = result.write(out)
    told = f"{counted(rows, 'row')} in {out}"
    emit({"out": str(out), "rows": rows}, json, lambda console: console.print(told, markup=False, highlight=False))


def _draw(result: Result) -> None:
    rows = result.rows(SHOWN + 1)
    table = Table(*map(escape, result.names))
    for column in table.columns:
        column.overflow = "fold"
    for row in rows[:SHOWN]:
        table.add_row(*(Text(_shown(value)) for value in row.values()))
    Console().print(table)
    if len(rows) > SHOWN:
        told = f"these are the first {SHOWN} rows; --json, --csv and --out FILE give all of them"
        messages().print(told, highlight=False)


def _draw_upright(result: Result) -> None:
    """A small table for each row: summaries have more columns than a terminal."""
    for row in result.rows():
        table = Table(show_header=False)
        for name, value in row.items():
            table.add_row(escape(name), Text(_shown(value)))
        Console().print(table)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
