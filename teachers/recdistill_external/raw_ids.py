"""The log's own ids of a dataset's rows: users, items and categorical features as they were before the import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recdistill_core.batch import Batch
from recdistill_core.component import BuildContext
from recdistill_core.errors import DataError, UsageError, suggest
from recdistill_core.interfaces import SampleSource
from recdistill_core.schema import Schema


@runtime_checkable
class HasRawIds(Protocol):
    """What a source must give beside :class:`recdistill_core.interfaces.SampleSource` for raw ids to be looked up."""

    def users(self) -> pa.Table:
        """``user``: raw ids by ``Batch.user_id``."""

    def vocabulary(self, name: str) -> pa.ChunkedArray:
        """Raw values by id; id 0, out of vocabulary, is null."""


def lookup_names(schema: Schema) -> dict[str, str]:
    """``{name: vocabulary}`` of what can be looked up; the vocabulary of ``user_id`` is the table of users."""
    features = {feature.name: feature.vocabulary for feature in schema.categorical}
    return {**features, "item_id": schema.item_vocabulary, "user_id": ""}


def require_source(context: BuildContext, who: str, wanted: str) -> tuple[SampleSource, HasRawIds]:
    """The dataset that raw ids are looked up in, twice the same object.

    Raises:
        UsageError: if the teacher was built without one. DataError: if the source keeps no raw ids.
    """
    source = context.source
    if source is None:
        raise UsageError(
            f"{who} looks up {wanted} in the dataset, and was built without one",
            where="BuildContext.source",
            fix="build it with BuildContext(source.schema, tasks, source)",
        )
    if not isinstance(source, HasRawIds):
        raise DataError(
            f"{who} looks up {wanted}, and the source {type(source).__name__} keeps no raw ids",
            where="BuildContext.source",
            fix="use the source 'parquet', or give the source users() and vocabulary(name)",
        )
    return source, source


def unknown_name(name: str, schema: Schema, extra: tuple[str, ...], who: str, setting: str) -> UsageError:
    """What to say of a name that the dataset does not have."""
    known = sorted({*lookup_names(schema), *extra})
    return UsageError(
        f"the dataset has no {name!r}{suggest(name, known)}",
        where=f"{who}, setting {setting}",
        fix=f"name some of {', '.join(known)}",
    )


def raw_values(name: str, known: Mapping[str, str], ids: HasRawIds) -> pa.ChunkedArray:
    """Raw values of users, items or a categorical feature, by the dataset's own number."""
    return ids.users().column("user") if name == "user_id" else ids.vocabulary(known[name])


class RowFields:
    """What a service is told of the rows of a batch.

    Args:
        names: of the fields. context: the schema, and the source where a field is a raw id. who: for messages.

    Raises:
        UsageError: for a name that the dataset does not have, or raw ids without a source.
        DataError: if the source keeps no raw ids.
    """

    def __init__(self, names: tuple[str, ...], context: BuildContext, who: str) -> None:
        self.names = names
        schema = context.require_schema() if set(names) - {"event_time"} else Schema(())
        known, extra = lookup_names(schema), ("event_time", *schema.numeric)
        for name in names:
            if name not in known and name not in extra:
                raise unknown_name(name, schema, extra, who, "fields")
        raw = [name for name in names if name in known]
        self._numeric = {name: place for place, name in enumerate(schema.numeric)}
        self._categorical = {feature.name: place for place, feature in enumerate(schema.categorical)}
        self._values: dict[str, Any] = {}
        if raw:
            _, ids = require_source(context, who, ", ".join(raw))
            self._values = {name: raw_values(name, known, ids).combine_chunks() for name in raw}

    def of(self, batch: Batch) -> list[dict[str, Any]]:
        """``{"id": example id, field: value}`` of each row, as JSON has them; null for a value out of vocabulary."""
        columns = {name: self._column(name, batch) for name in self.names}
        ids = batch.example_id.tolist()
        return [{"id": row, **{name: column[n] for name, column in columns.items()}} for n, row in enumerate(ids)]

    def _column(self, name: str, batch: Batch) -> list[Any]:
        if name == "event_time":
            return list(batch.event_time.tolist())
        if name in self._numeric:
            return list(batch.numeric[:, self._numeric[name]].tolist())
        coded = {"user_id": batch.user_id, "item_id": batch.item_id}
        code = coded[name] if name in coded else batch.categorical[:, self._categorical[name]]
        return list(self._values[name].take(pa.array(code.cpu().numpy())).to_pylist())


def key_table(names: tuple[str, ...], source: SampleSource) -> Mapping[str, NDArray[np.int64]]:
    """``example_id`` and the dataset's own numbers of the key columns, ``{name: [num_rows]}``."""
    plain = ("example_id", "event_time", "user_id", "item_id")
    return {
        name: source.column(name if name in plain else f"feature/{name}").astype(np.int64, copy=False)
        for name in ("example_id", *names)
    }
