"""A component as data: what a plugin registers. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recdistill_core.errors import suggest
from recdistill_core.schema import Schema

if TYPE_CHECKING:
    from recdistill_core.interfaces import SampleSource

#: Version of the contracts between the core and its plugins.
RECDISTILL_API = 1
#: The oldest version that is still served; a component that was written for an older or a newer one is refused.
OLDEST_API = 1

#: What a component may need of the data or of its neighbours; ``wiring.check`` compares it with what they give.
CAPABILITIES: Mapping[str, str] = {
    "history": "events before each row",
    "position": "the position at which each row was shown",
    "propensity": "the probability with which each row was shown",
    "keep_rates": "the known keep rates of the negative down-sampling",
    "request_groups": "requests with at least 2 rows",
    "teacher": "teacher labels in a logit store",
}


@dataclass(frozen=True)
class BuildContext:
    """What a component is told when it is built.

    Attributes:
        schema: features, vocabularies and tasks of the dataset, or None where no dataset takes part.
        tasks: names of the tasks to predict, in order.
        source: the dataset, where a teacher is built that may have to look up raw ids in it; None for everything else.
    """

    schema: Schema | None = None
    tasks: tuple[str, ...] = ()
    source: SampleSource | None = field(default=None, repr=False, compare=False)

    def require_schema(self) -> Schema:
        """The schema; raises ValueError where none was given."""
        if self.schema is None:
            raise ValueError("this component needs a dataset's schema to be built")
        return self.schema


@dataclass(frozen=True)
class Component:
    """One thing that does work, registered as data through a hook.

    Attributes:
        name: the name by which YAML refers to it.
        config: a frozen dataclass; its ``__post_init__`` checks ranges and raises ValueError.
        build: ``build(config, context)`` makes the object; heavy imports belong inside it.
        summary: one line for ``recdistill plugins list``.
        example: field values with which the conformance kit builds it; or a function of an empty folder that returns
            them and may write the files that they name into that folder.
        needs: capabilities it needs, or a function of its config that returns them.
        expected_failures: checks of the conformance kit that it fails by design -> the reason.
        api_version: the ``RECDISTILL_API`` it was written for, as a literal number: 1. Naming the constant would claim
            that it suits every version to come.
    """

    name: str
    config: type[Any]
    build: Callable[[Any, BuildContext], Any]
    summary: str
    example: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] = field(default_factory=dict)
    needs: frozenset[str] | Callable[[Any], frozenset[str]] = frozenset()
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    api_version: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"component name {self.name!r} must hold only letters, digits, '_' and '-'")
        if not (isinstance(self.config, type) and is_dataclass(self.config)):
            raise TypeError(f"component {self.name!r}: config must be a dataclass type, not {self.config!r}")
        if not self.config.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # every dataclass has it
            raise TypeError(
                f"component {self.name!r}: config {self.config.__name__} must be frozen: @dataclass(frozen=True)"
            )
        if not isinstance(self.api_version, int):
            raise TypeError(f"component {self.name!r}: api_version must be a whole number, got {self.api_version!r}")
        if not callable(self.needs):
            self._require_known(self.needs)
        if not callable(self.build):
            raise TypeError(f"component {self.name!r}: build must be callable")
        for check, reason in self.expected_failures.items():
            if not reason.strip():
                raise ValueError(f"component {self.name!r}: the expected failure of {check!r} needs a reason")

    def example_in(self, folder: Path) -> Mapping[str, Any]:
        """The example's field values; files that they name are written into ``folder``."""
        return self.example(folder) if callable(self.example) else self.example

    def needs_of(self, config: Any) -> frozenset[str]:
        """The capabilities that this component needs under ``config``."""
        needs = self.needs(config) if callable(self.needs) else self.needs
        self._require_known(needs)
        return needs

    def _require_known(self, needs: Any) -> None:
        if not isinstance(needs, set | frozenset):
            raise TypeError(f"component {self.name!r}: needs must be a set of names, got {needs!r}")
        unknown = sorted(needs - set(CAPABILITIES))
        if unknown:
            raise ValueError(
                f"component {self.name!r} needs unknown capabilities {', '.join(unknown)}"
                f"{suggest(unknown[0], CAPABILITIES)}; known: {', '.join(CAPABILITIES)}"
            )


@dataclass(frozen=True)
class Command:
    """A verb, or a group of verbs, that a plugin adds to the ``recdistill`` command.

    Attributes:
        name: the verb (``run``) or group (``data``), or both (``data check``): a verb in a group that this or another
            plugin, or the shell (``plugins``), adds.
        load: returns a ``typer.Typer`` app (a group) or a function (a verb); imported only when used.
        summary: one line for ``recdistill --help``.
        group: True where ``load`` returns a ``typer.Typer``.
    """

    name: str
    load: Callable[[], Any]
    summary: str
    group: bool = False

    def __post_init__(self) -> None:
        words = self.name.split(" ")
        if not all(word.replace("_", "").replace("-", "").isalnum() for word in words) or len(words) > 2:
            raise ValueError(f"command name {self.name!r} must be a verb, or a group and a verb")
        if self.group and len(words) > 1:
            raise ValueError(f"command {self.name!r}: a group holds verbs, no groups")
