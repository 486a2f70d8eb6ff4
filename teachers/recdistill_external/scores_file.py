"""Scores of somebody else's model, looked up in files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import torch

from recdistill_core.batch import Batch, Scores
from recdistill_core.component import BuildContext
from recdistill_core.errors import DataError, UsageError
from recdistill_external.config import ScoresFileConfig
from recdistill_external.score_files import ScoreFiles
from recdistill_external.score_index import ScoreIndex, Writer
from recdistill_external.score_query import WHO, ScoreQuery
from recdistill_external.values import Tally, fingerprint_of
from recdistill_parquet.dataset_sql import Database

logger = logging.getLogger(__name__)


class ScoresFileTeacher:
    """Looks logits up by example id, or by raw ids of the log; implements :class:`recdistill_core.interfaces.Teacher`.

    Files and columns are checked at once. The first :meth:`score` sorts the scores by example id into a temporary
    folder (8 bytes for a row and 4 for each task; ``TMPDIR`` says where), so memory does not grow with the files.

    Args:
        config: the files and what is in them. context: the tasks, and the source where ``key`` names raw ids.

    Raises:
        UsageError: if there is no such file, or a raw id is asked for without a source.
        DataError: if a column is missing or of a type that loses digits.
    """

    def __init__(self, config: ScoresFileConfig, context: BuildContext) -> None:
        self.config, self.tasks = config, tuple(context.tasks)
        self.files = ScoreFiles(config.path, config.delimiter)
        self.query = ScoreQuery(config, context, self.files)
        self._view = context.schema.view_hash() if context.schema else ""
        self._index: ScoreIndex | None = None
        self._facts: dict[str, Any] = {}
        known = {*self.tasks, *(context.schema.tasks if context.schema else ())}
        for task in config.scores:
            if task not in known:
                raise UsageError(
                    f"scores names the task {task!r}, which there is not",
                    where=f"{WHO}, setting scores",
                    fix=f"name some of {', '.join(sorted(known))}",
                )
        with Database(config.memory_limit, Path(tempfile.gettempdir())) as database:
            self.query.select(database, Path())
        self._signature = self.files.signature()
        self._content = self.files.content()

    def score(self, batch: Batch) -> Scores:
        """Raw logits ``{task: [N]}``, NaN where the files have no score.

        Raises:
            DataError: at the first call, for scores that cannot be used or that contradict each other.
        """
        if self._index is None:
            self._index = self._sorted()
        found = self._index.look_up(batch.example_id.cpu().numpy())
        device = batch.example_id.device
        return Scores({task: torch.from_numpy(logit).to(device) for task, logit in found.items()})

    def fingerprint(self) -> str:
        """Hex digest of the files' bytes, their columns and scale, the tasks and the feature view."""
        columns = [self.config.column_of(task) for task in self.tasks]
        origin = [self._content, sorted(self.query.key.items()), columns, self.config.time_unit, self.config.delimiter]
        return fingerprint_of("scores_file", origin, self.config.rules(), self.tasks, self._view)

    def describe(self) -> Mapping[str, Any]:
        """The files, and what was found in them: counts of rows, repeats, clipped and skipped scores."""
        return {"path": self.config.path, "content": self._content, **self._facts}

    def _sorted(self) -> ScoreIndex:
        """The scores by example id, all of them checked."""
        index = ScoreIndex(self.tasks)
        writer = Writer(index, Tally(self.config.rules()))
        self.query.write_lookups(index.folder)
        with Database(self.config.memory_limit, index.folder / "spill") as database:
            try:
                query = self.query.select(database, index.folder)
                total = int(database.all(f"SELECT count(*) FROM {self.files.sql()}")[0][0])
                writer.write(database.stream(query))
            except duckdb.OutOfMemoryException:
                raise  # the database says what to do
            except (duckdb.Error, pa.ArrowException) as error:
                raise self.files.unreadable(error) from error
        if self.files.signature() != self._signature:
            raise DataError(
                "the files of scores were changed while they were read", where=self.config.path, fix="run again"
            )
        writer.settle(self.config.path)
        index.open()
        if not index.example_id.size:
            raise DataError(
                f"none of the {total:,} rows of the scores belongs to an example",
                where=self.config.path,
                fix=f"compare the columns of key, {self.query.key}, with the log that was imported",
            )
        if writer.repeated:
            logger.warning("%s: %d rows repeat the score of another row", self.config.path, writer.repeated)
        counts = {"file_rows": total, "examples": int(index.example_id.size), "repeated_rows": writer.repeated}
        self._facts = {**counts, **writer.tally.describe()}
        return index
