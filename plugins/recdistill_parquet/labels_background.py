"""A segment that is written by a thread while its writer goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from recdistill_parquet.labels_segments import Columns
from recdistill_parquet.labels_state import Segment


class Writing:
    """Writes one segment; encoding, checksum and disk leave the interpreter to others.

    Attributes:
        columns: what is written. rows: how many rows.

    Args:
        write: writes ``columns`` and says which segment it became.
    """

    def __init__(self, columns: Columns, write: Callable[[Columns], Segment]) -> None:
        self.columns, self.rows = columns, int(columns["example_id"].size)
        self._write = write
        self._made: Segment | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="recdistill-segment")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether :meth:`result` would not wait."""
        return not self._thread.is_alive()

    def result(self) -> Segment:
        """Wait for the segment. Raises what the writing raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._made is None:  # in a fork of the process, which has no such thread
            self._made = self._write(self.columns)
        return self._made

    def _run(self) -> None:
        try:
            self._made = self._write(self.columns)
        except BaseException as error:  # raised where the result is asked for
            self._error = error
