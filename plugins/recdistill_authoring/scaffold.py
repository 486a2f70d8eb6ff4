"""A new plugin from the files in ``templates/``: the common ones and those of its kind, with four words replaced.

``common`` is for every kind, ``component`` for every kind but commands. Where two folders have one file, the later one
counts.

The templates are a plugin themselves: valid Python that runs once the words stand for something.

=========================  =====================================================  ====================================
in a template              stands for                                             of the name ``two-tower``
=========================  =====================================================  ====================================
``my-plugin``              the component's name                                   ``two-tower``
``recdistill_myplugin``    the package                                            ``recdistill_two_tower``
``MyPlugin``               what its classes start with                            ``TwoTower``
``mykind``                 the kind                                               ``student``
=========================  =====================================================  ====================================
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from recdistill_core.errors import UsageError, suggest
from recdistill_core.files import whole_or_absent
from recdistill_core.hookspecs import HOOKS

KINDS = (*HOOKS, "command")
#: Longest name for which no line of a template passes the line length.
MOST_LETTERS = 24
NAME = re.compile("[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
USAGE_MARK, USAGE = "<!-- usage -->\n", "usage.md"


@dataclass(frozen=True)
class Scaffold:
    """A plugin that is to be made.

    Attributes:
        kind: one of :data:`KINDS`. name: of the component, or of the verb.

    Raises:
        UsageError: for an unknown kind, or a name that cannot name a component, a distribution and a package.
    """

    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(
                f"unknown kind {self.kind!r}{suggest(self.kind, KINDS)}", fix=f"use one of: {', '.join(KINDS)}"
            )
        if len(self.name) > MOST_LETTERS or not NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot name a plugin",
                fix=f"use 1 to {MOST_LETTERS} letters (a to z), digits, '_' and '-', these two neither first nor last",
            )

    @property
    def distribution(self) -> str:
        """``recdistill-NAME``: the folder, and what pip calls it."""
        return f"recdistill-{self.name}"

    @property
    def package(self) -> str:
        """``recdistill_name``: what Python calls it."""
        return f"recdistill_{self.name.replace('-', '_').lower()}"

    @property
    def prefix(self) -> str:
        """What the names of its classes start with."""
        camel = "".join(part[:1].upper() + part[1:] for part in re.split("[-_]+", self.name))
        return f"Plugin{camel}" if camel[0].isdigit() else camel

    def files(self) -> dict[str, str]:
        """``{path in the project: text}``."""
        home = importlib.resources.files("recdistill_authoring") / "templates"
        parts = ["common", self.kind] if self.kind == "command" else ["common", "component", self.kind]
        found = {path: text for part in parts for path, text in _walk(home / part)}
        found["README.md"] = found["README.md"].replace(USAGE_MARK, found.pop(USAGE, ""))
        return {self._filled(path): self._filled(text) for path, text in sorted(found.items())}

    def write(self, parent: Path) -> Path:
        """Make the project in ``parent / distribution``, whole or not at all; returns that folder.

        Raises:
            UsageError: if the folder is there and not empty, or cannot be written.
        """
        home = parent / self.distribution
        if not parent.is_dir():
            raise UsageError("there is no such folder", where=str(parent), fix="make it, or give another --dir")
        if home.is_symlink() or home.is_file() or (home.is_dir() and any(home.iterdir())):
            raise UsageError(
                f"{home.name} is there already and is no empty folder",
                where=str(home),
                fix="choose another name, give another --dir, or remove it",
            )
        try:
            with whole_or_absent(home) as place:
                for path, text in self.files().items():
                    file = place / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"the project cannot be written: {error.strerror or error}", where=str(home), fix="give another --dir"
            ) from error
        return home

    def _filled(self, text: str) -> str:
        words = {
            "recdistill_myplugin": self.package,
            "my-plugin": self.name,
            "MyPlugin": self.prefix,
            "mykind": self.kind,
        }
        return re.sub("|".join(words), lambda match: words[match.group()], text)


def _walk(folder: Traversable, path: str = "") -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _walk(entry, f"{path}{entry.name}/")
        else:
            yield f"{path}{entry.name}", entry.read_text(encoding="utf-8")
