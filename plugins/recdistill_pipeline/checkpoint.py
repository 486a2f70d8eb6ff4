"""A checkpoint of a run, and the module that it belongs to."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from recdistill_core.errors import IntegrityError
from recdistill_core.weights import load_weights as load_weights
from recdistill_core.weights import save_weights as save_weights


def restore(module: nn.Module, path: Path) -> None:
    """Load weights into a module; every name and shape must match.

    Raises:
        IntegrityError: where they do not.
    """
    try:
        module.load_state_dict(load_weights(path), strict=True)
    except RuntimeError as error:
        raise IntegrityError(
            f"the checkpoint does not fit the model: {' '.join(str(error).split())[:500]}",
            where=str(path),
            fix="use the configuration that the checkpoint was trained with",
        ) from error
