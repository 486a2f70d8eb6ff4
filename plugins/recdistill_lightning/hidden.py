"""What a teacher says beside its logits."""

from __future__ import annotations

from torch import Tensor, nn

from recdistill_core.batch import Scores
from recdistill_core.errors import PluginError


def hidden_of(teacher: nn.Module, scores: Scores, name: str, count: int) -> Tensor:
    """A teacher's hidden activation ``[N, *]`` of this name, detached.

    Args:
        teacher: who gave ``scores``. name: key of ``scores.hidden``. count: N.

    Raises:
        PluginError: where it gives none of this name for every row.
    """
    given = scores.hidden or {}
    found = given.get(name)
    if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != count:
        shown = ", ".join(f"{key} {list(value.shape)}" for key, value in given.items())
        raise PluginError(
            f"{type(teacher).__name__} gives no hidden activation {name!r} of {count} rows; it gives {shown or 'none'}",
            where=type(teacher).__module__,
            fix="name one that it gives (states.of in a run), or return Scores(logits, hidden={name: [N, H]})",
        )
    return found.detach()
