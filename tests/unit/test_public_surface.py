"""The public surface changes only on purpose: names, signatures, fields and defaults are compared with a list."""

from __future__ import annotations

import difflib

import public_surface
import pytest


def test_the_public_surface_is_the_frozen_one() -> None:
    frozen, now = public_surface.FROZEN.read_text().splitlines(), public_surface.surface()
    changes = [line for line in difflib.unified_diff(frozen, now, "frozen", "now", lineterm="", n=0) if line]
    assert not changes, (
        "the public surface changed:\n"
        + "\n".join(changes)
        + "\nIf plugins or scripts may rely on what changed, deprecate it first (docs/plugins/api-policy.md). Then:\n"
        "    python tests/unit/public_surface.py > tests/unit/public_surface.txt\n"
        "and say in the changelog fragment what changed."
    )


def test_no_address_of_an_object_is_frozen() -> None:
    assert [line for line in public_surface.surface() if " at 0x" in line] == []


@pytest.mark.parametrize(
    "line",
    [
        "recdistill_core.RECDISTILL_API = 1",
        "recdistill_core.Student is recdistill_core.interfaces.Student",
        "recdistill_core.interfaces.Student.backbone(self, batch: 'Batch') -> 'Tensor'",
        "recdistill_core.schema.Categorical.side: str = 'context'",
        "recdistill_core.labels.CaptureMode.LEAKY = 'leaky'",
        "classmethod recdistill_core.schema.Schema.from_dict(cls, plain: 'Mapping[str, Any]') -> 'Schema'",
        "recdistill_core.interfaces.Student.width: int",
        "recdistill_core.component.BuildContext.require_schema(self) -> 'Schema'",
        "recdistill_core.interfaces.ServingModule.__init__(self, student: 'Student', main: 'nn.Module') -> 'None'",
    ],
)
def test_all_sorts_of_names_are_in_it(line: str) -> None:
    assert line in public_surface.surface()
