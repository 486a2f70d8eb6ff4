"""What every test leaves as it found it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from torch import distributed

from recdistill_core.cli import NOTES


@pytest.fixture(autouse=True)
def no_notes_of_the_shell_stay() -> Iterator[None]:
    """The command shell shows on stderr what is logged; where it runs in the tests' process, it must not go on."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [entry for entry in root.handlers if entry.get_name() == NOTES]:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.fixture(autouse=True)
def no_process_group_stays() -> Iterator[None]:
    """A strategy for several processes leaves its group, which a page that runs in a fork could only wait for."""
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()
