"""Import: a raw log in, a dataset directory out. Memory is bounded by ``memory_limit``, not by the size of the log.

The record batches are checked and staged to Parquet as they come; DuckDB makes vocabularies, joins and sorts out of
core; one pass over the sorted events counts what lies strictly before every impression. The dataset grows in a
temporary sibling of its directory and gets its name at the end, after its manifest: a failed import leaves nothing. An
import that was killed outright leaves a hidden sibling ``.NAME.import-*``, which may be deleted.

Vocabularies count the occurrences, in impressions and extra events, before ``vocabulary_until``; ids follow first
appearance. ``RawNumeric.missing`` is the value the model sees, so ``log1p`` does not apply to it. A row without
``request_id`` gets its example id as its request. The future starts one day from now.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recdistill_core.errors import UsageError
from recdistill_core.files import sync, sync_tree
from recdistill_core.rawlog import RawLog
from recdistill_parquet import dataset_format as fmt
from recdistill_parquet.dataset_history import HistoryFiles, write_events
from recdistill_parquet.dataset_layout import Layout, number_values
from recdistill_parquet.dataset_parts import PartWriter
from recdistill_parquet.dataset_plan import Plan, make_plan
from recdistill_parquet.dataset_sql import (
    Database,
    Queries,
    has_groups,
    impressions_in_order,
    refuse_double_examples,
    users_in_order,
)
from recdistill_parquet.dataset_staging import Progress, stage_events, stage_impressions

#: Rows of a part: about 30 MB of impressions with 25 features.
PART_ROWS = 131_072


def write_dataset(
    raw: RawLog,
    out: Path,
    *,
    memory_limit: str = "1GB",
    part_rows: int = PART_ROWS,
    progress: Progress | None = None,
) -> fmt.Manifest:
    """Import a log.

    Args:
        raw: the log, as an importer describes it.
        out: directory of the dataset; must not exist.
        memory_limit: what sorting and joining may use, such as ``"1GB"``; the process needs a few hundred MB more.
        part_rows: rows of a part of impressions or events; the same log with another value is another snapshot.
        progress: called with (rows read, rows in all or None) as the log is read.

    Returns:
        the manifest, with counts and the snapshot id.

    Raises:
        DataError: naming file, row and column of the first value that cannot be imported, or the feature that would
            know the outcome.
        UsageError: if ``out`` exists, or ``memory_limit`` cannot be read or is too small.
    """
    plan = make_plan(raw.schema, raw.origin)
    if part_rows < 1:
        raise UsageError(f"part_rows is {part_rows}", where="part_rows", fix="use at least 1, such as 131072")
    if out.exists():
        raise _exists(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{out.name}.import-", dir=out.parent))
    try:
        target = workplace / "dataset"
        target.mkdir()
        manifest = _Import(raw, plan, workplace, target, part_rows).run(memory_limit, progress)
        _publish(target, out)
        sync(out.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return manifest


def _exists(out: Path) -> UsageError:
    fix = "choose another directory, or delete this one first; an import never touches an existing dataset"
    return UsageError(f"{out} exists already", where=str(out), fix=fix)


def _publish(target: Path, out: Path) -> None:
    """Give the finished dataset its name, unless another import was first."""
    try:
        target.rename(out)
    except OSError as error:
        if out.exists():
            raise _exists(out) from error
        raise


@dataclass(frozen=True)
class _Import:
    """One import. ``workplace`` holds what is staged, ``target`` the dataset to be."""

    raw: RawLog
    plan: Plan
    workplace: Path
    target: Path
    part_rows: int

    def run(self, memory_limit: str, progress: Progress | None) -> fmt.Manifest:
        with Database(memory_limit, self.workplace / "spill") as database:
            impressions = stage_impressions(self.raw, self.plan, self.workplace / "impressions.parquet", progress)
            events = stage_events(self.raw, self.plan, self.workplace / "events.parquet")
            if self.raw.schema.example_id:
                refuse_double_examples(database, impressions, self.raw)
            queries = Queries(self.plan, impressions, events)
            sizes = self._vocabularies(database, queries)
            users = self.workplace / "users.parquet"
            counts = {"users": number_values(database.stream(queries.keys("usr")), users, first=0)}
            encoded, extra, gives = self._encode(database, queries, sizes, users)
            history = self._history(database, queries, encoded, extra)
            self._users(database, users, history)
            rows_of, span = self._impressions(database, encoded, history, gives)
        if history is not None:
            rows_of |= history.rows_of
        rows_of |= {f"{fmt.VOCABULARIES}/{name}.parquet": size for name, size in sizes.items()}
        rows_of[fmt.USERS] = counts["users"]
        fmt.write_schema(self.target, self.plan.with_sizes(sizes, gives))
        counts |= {"rows": impressions.rows, "events": history.events if history is not None else 0}
        counts["dropped"] = int(self.raw.facts.get("dropped", 0))
        return self._manifest(rows_of, counts, span)

    def _vocabularies(self, database: Database, queries: Queries) -> dict[str, int]:
        (self.target / fmt.VOCABULARIES).mkdir()
        return {
            name: number_values(database.stream(queries.vocabulary(name)), self._vocabulary(name), first=1)
            for name in self.plan.vocabularies
        }

    def _vocabulary(self, name: str) -> Path:
        return self.target / fmt.VOCABULARIES / f"{name}.parquet"

    def _encode(
        self, database: Database, queries: Queries, sizes: dict[str, int], users: Path
    ) -> tuple[Path, Path | None, list[str]]:
        """Staged tables with ids for values; and the optional columns that the impressions turn out to give."""
        ids = {name: self._vocabulary(name) for name in sizes}
        requests = None
        if self.raw.schema.request_id:
            requests = self.workplace / "requests.parquet"
            number_values(database.stream(queries.keys("request")), requests, first=0)
        encoded = self.workplace / "encoded.parquet"
        database.copy(queries.encoded(queries.impressions, ids, users, requests), encoded)
        extra = None
        if queries.events is not None:
            extra = self.workplace / "extra.parquet"
            database.copy(queries.encoded(queries.events, ids, users, None), extra)
        gives = [name for name in ("position", "propensity", "shown") if getattr(self.raw.schema, name)]
        if requests is not None and database.first(has_groups(encoded)) is not None:
            gives.append("request_groups")
        return encoded, extra, gives

    def _history(self, database: Database, queries: Queries, encoded: Path, extra: Path | None) -> HistoryFiles | None:
        if not self.plan.events:
            return None
        batches = database.stream(queries.events_in_order(encoded, extra))
        return write_events(batches, self.plan, self.target / fmt.EVENTS, self.workplace, self.part_rows)

    def _users(self, database: Database, users: Path, history: HistoryFiles | None) -> None:
        batches = database.stream(users_in_order(users, history.spans if history is not None else None))
        writer = None
        with pa.OSFile(str(self.target / fmt.USERS), "wb") as sink:
            for batch in batches:
                batch = batch.rename_columns(["user", *batch.schema.names[1:]])
                writer = writer or pa.ipc.new_file(sink, batch.schema)
                writer.write_batch(batch)
            if writer is not None:
                writer.close()

    def _impressions(
        self, database: Database, encoded: Path, history: HistoryFiles | None, gives: list[str]
    ) -> tuple[dict[str, int], tuple[int, int]]:
        """Write impressions and truth; return rows per part and the time range."""
        layout = Layout(self.plan, gives)
        writer = PartWriter(self.target / fmt.IMPRESSIONS, layout.columns(), self.part_rows)
        truth = None
        if self.raw.schema.truth:
            kinds = dict.fromkeys(self.raw.schema.truth, np.float64)
            truth = PartWriter(self.target / fmt.TRUTH, kinds, self.part_rows)
        first = last = None
        for batch in database.stream(impressions_in_order(encoded, history.prefix if history is not None else None)):
            staged = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}
            writer.append(layout.arrange(staged))
            if truth is not None:
                truth.append({task: staged[f"t{number}"] for number, task in enumerate(self.raw.schema.truth)})
            first = int(staged["time"][0]) if first is None else first
            last = int(staged["time"][-1])
        writer.close()
        if truth is not None:
            truth.close()
            writer.rows_of.update(truth.rows_of)
        return writer.rows_of, (first or 0, last or 0)

    def _manifest(self, rows_of: dict[str, int], counts: dict[str, int], span: tuple[int, int]) -> fmt.Manifest:
        sync_tree(self.target)
        files = fmt.hash_files(self.target, rows_of)
        manifest = fmt.Manifest(
            format=fmt.FORMAT,
            version=fmt.VERSION,
            snapshot_id=fmt.snapshot_of(files),
            origin=self.raw.origin,
            facts=dict(self.raw.facts),
            counts=counts,
            time_range=span,
            part_rows=self.part_rows,
            files=files,
        )
        fmt.write_manifest(self.target, manifest)
        return manifest
