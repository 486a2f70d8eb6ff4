"""Events that a caller hands in by themselves, outside of a batch that a dataset has made and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from recdistill_core.errors import DataError
from recdistill_hstu.tokens import TokenEmbedding

_WHERE = "HSTUTeacher.encode, HSTUTeacher.extend"


def require_events(tokens: TokenEmbedding, events: Mapping[str, Any], offsets: Any, histories: int) -> None:
    """Raise DataError unless these are new events ``{name: [E]}`` of ``histories`` with ``offsets [U + 1]``.

    Args:
        tokens: of the teacher. events: None under a name stands for a field that the histories have and these lack.
        offsets: where the events of each history begin and end. histories: ``U``.
    """
    missing = [name for name in dict.fromkeys([*events, *tokens.fields, "time"]) if events.get(name) is None]
    if missing:
        _refuse(f"the events lack {', '.join(missing)}", "give every field of the schema, and those encoded before")
    wrong = [name for name, column in (*events.items(), ("offsets", offsets)) if not _int64(column)]
    if wrong:
        _refuse(f"{wrong[0]} is no int64 tensor of one dimension", "give int64 tensors of one dimension, on one device")
    count = len(events["time"])
    uneven = [name for name, column in events.items() if len(column) != count]
    if uneven:
        _refuse(f"{uneven[0]} has {len(events[uneven[0]])} entries, time {count}", "give one entry per event")
    apart = len(offsets) == histories + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == count
    if not (apart and bool((offsets.diff() >= 0).all())):
        _refuse(
            f"offsets {offsets.tolist()!s:.60} do not part {count} events among {histories} histories",
            "begin at 0, never descend, end at the number of events; [0, 3, 3, 10] are 3, 0 and 7 events",
        )
    if tokens.actions:
        code = events["action"]
        unknown = ((code < 0) | (code >= tokens.actions)).nonzero()
        if len(unknown):
            place = int(unknown[0])
            _refuse(
                f"event {place} has the action code {int(code[place])}, outside [0, {tokens.actions})",
                "give bit codes of the schema's actions; an action that it lacks is left out",
            )


def _int64(column: Any) -> bool:
    return isinstance(column, Tensor) and column.dim() == 1 and column.dtype == torch.int64


def _refuse(what: str, fix: str) -> None:
    raise DataError(what, where=_WHERE, fix=fix)
