"""Checks of what teachers and students say of their id embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recdistill_core.schema import ITEM
from recdistill_core.testing.cases import Case, NotApplicable, check
from recdistill_core.testing.models import reason


@check("teacher", "student")
def id_embeddings_are_one_per_id(case: Case) -> None:
    """``id_embedding`` gives None or finite floats per id, whichever others are asked for; a student's learn."""
    made = case.build()
    tell = getattr(made, "id_embedding", lambda kind, ids: None)
    sizes = {ITEM: case.schema.num_items}
    sizes |= {entry.name: case.schema.vocabulary_size(entry.vocabulary) for entry in case.schema.categorical}
    told = 0
    for kind, size in sizes.items():
        whole = _asked(case, tell, kind, torch.arange(size))
        if whole is None:
            continue
        told += 1
        some = torch.tensor([size - 1, 0, size - 1])
        again = _asked(case, tell, kind, some)
        case.require(
            again is not None and torch.equal(again, whole[some]),
            f"gives an id of kind {kind!r} another embedding among other ids; look each of them up alone",
        )
    if not told:
        raise NotApplicable("it tells no embeddings of ids")


def _asked(case: Case, tell: Callable[[str, Tensor], Any], kind: str, ids: Tensor) -> Tensor | None:
    """``[M, W]`` of ``ids [M]``, or None; fails where it is neither."""
    try:
        found = tell(kind, ids)
    except Exception as error:  # whatever the component raises
        case.fail(f"cannot tell embeddings of kind {kind!r}: {reason(error)}; return None for what it does not embed")
    if found is None:
        return None
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    case.require(
        isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(ids),
        f"gives embeddings {shape} of {len(ids)} ids of kind {kind!r}; give [{len(ids)}, W]",
    )
    case.require(
        found.is_floating_point() and bool(torch.isfinite(found).all()),
        f"gives {found.dtype} embeddings of kind {kind!r}, not all of them finite floats",
    )
    case.require(
        found.requires_grad or case.entry.kind != "student",
        f"gives embeddings of kind {kind!r} without gradient; return those that are trained",
    )
    embedding: Tensor = found
    return embedding
