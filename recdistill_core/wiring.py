"""Match what components need with what the dataset and the other components give, before step 0."""

from __future__ import annotations

from collections.abc import Iterable

from recdistill_core.component import CAPABILITIES
from recdistill_core.config import Resolved
from recdistill_core.errors import WiringError
from recdistill_core.schema import Schema


def check(components: Iterable[Resolved], schema: Schema, *, dataset: str, also: Iterable[str] = ()) -> None:
    """Raise one WiringError that lists every unmet need.

    Args:
        components: everything the run will build.
        schema: of the dataset. dataset: its name, for the message.
        also: capabilities from elsewhere, such as ``teacher`` where labels will be captured.
    """
    given = schema.capabilities() | set(also)
    faults = [
        f"{component.label} needs {need} ({CAPABILITIES[need]})"
        for component in components
        for need in sorted(component.needs() - given)
    ]
    if faults:
        raise WiringError(
            f"dataset {dataset!r} does not give what is needed: {'; '.join(faults)}",
            where=f"it gives: {', '.join(sorted(given)) or 'plain rows only'}",
            fix="leave these components out, or import the log with the columns they need",
        )
