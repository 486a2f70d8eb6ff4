"""The engines that ship, as far as nothing has to be started: order, settings, and an absent Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from recdistill_core import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import ConfigError
from recdistill_core.registry import installed


@dataclass
class Noting:
    """Notes what is done when."""

    done: list[Any] = field(default_factory=list)

    def open(self) -> Callable[[Any], Any]:
        self.done.append("open")

        def do(block: Any) -> Any:
            self.done.append(block)
            return -block

        return do


def test_local_does_one_block_after_the_other_as_answers_are_asked_for() -> None:
    job = Noting()
    told = make(installed(), "engine", "local").run(job, (5, 6, 7))
    assert job.done == []
    assert next(told) == (0, -5)
    assert job.done == ["open", 5]
    assert list(told) == [(1, -6), (2, -7)]
    assert job.done == ["open", 5, 6, 7]


def test_local_opens_nothing_for_no_blocks() -> None:
    job = Noting()
    assert list(make(installed(), "engine", "local").run(job, [])) == []
    assert job.done == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"workers": 0}, "workers must be >= 1, got 0"),
        ({"cpus_per_worker": 0.0}, "cpus_per_worker must be > 0, got 0.0"),
        ({"cpus_per_worker": float("nan")}, "cpus_per_worker must be > 0, got nan"),
        ({"retries": -1}, "retries must be >= 0, got -1"),
    ],
)
def test_settings_of_ray_have_ranges(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(installed(), "engine", {"name": "ray", **settings}, BuildContext())


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # what an import of an absent module finds
from recdistill_core.config import make
from recdistill_core.errors import PluginError
from recdistill_core.registry import installed

print([entry.component.name for entry in installed().components("engine")])
for _ in range(2):
    try:
        make(installed(), "engine", "ray")
    except PluginError as error:
        print(error)
"""


def test_without_ray_the_engine_is_listed_and_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_RAY], capture_output=True, text=True, timeout=120
    )
    text = (
        "engine 'ray' needs Ray, which cannot be imported: import of ray halted; None in sys.modules\n"
        "  where: the Python environment of this command\n"
        "  to do: pip install 'recdistill[ray]', or use the engine 'local'\n"
    )
    assert (done.stdout, done.stderr) == (f"['local', 'ray']\n{text}{text}", "")
