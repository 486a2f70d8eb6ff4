"""Which plugins may load: options of the command, or environment variables for scripts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from recdistill_core.errors import UsageError, suggest

STRICT, WITHOUT, ONLY = "RECDISTILL_STRICT_PLUGINS", "RECDISTILL_NO_PLUGIN", "RECDISTILL_ONLY_PLUGIN"
YES, NO = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True)
class Selection:
    """Which plugins may load.

    A plugin is named by its entry point (``hinge``), its distribution (``recdistill-hinge``, with all its entry points)
    or both (``recdistill-hinge:hinge``).

    Attributes:
        strict: a plugin that fails to load is an error, not a line in ``plugins list``.
        without: plugins that are not loaded.
        only: the only plugins that are loaded; empty: all. The shipped ones are the distribution ``recdistill``.
    """

    strict: bool = False
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Selection:
        """From ``RECDISTILL_STRICT_PLUGINS`` (1 or 0), ``RECDISTILL_NO_PLUGIN`` and ``RECDISTILL_ONLY_PLUGIN`` (a,b,c).

        Raises:
            UsageError: if the first is neither yes nor no.
        """
        environ = os.environ if environ is None else environ
        strict = environ.get(STRICT, "").strip().lower()
        if strict not in (*YES, *NO):
            raise UsageError(f"{STRICT} is {environ[STRICT]!r}", where="environment", fix="set it to 1 or 0")
        return cls(strict in YES, _names(environ.get(WITHOUT, "")), _names(environ.get(ONLY, "")))

    def and_also(self, strict: bool, without: Sequence[str], only: Sequence[str]) -> Selection:
        """This selection and what the options of a command say; its allow-list, where given, replaces this one."""
        return Selection(self.strict or strict, (*self.without, *without), tuple(only) or self.only)

    def environment(self) -> dict[str, str]:
        """The variables that say the same, for child processes."""
        return {STRICT: "1" if self.strict else "0", WITHOUT: ",".join(self.without), ONLY: ",".join(self.only)}

    def why_off(self, name: str, distribution: str) -> str:
        """Why the entry point ``name`` is not loaded, or an empty string."""
        known_as = (name, distribution, f"{distribution}:{name}")
        for wanted in self.without:
            if wanted in known_as:
                return f"switched off by --no-plugin {wanted}"
        if self.only and not any(wanted in known_as for wanted in self.only):
            return f"not among --only-plugin {' '.join(self.only)}"
        return ""

    def check(self, installed: Iterable[tuple[str, str]]) -> None:
        """Raise UsageError for a name that no installed ``(entry point, distribution)`` answers to."""
        pairs = list(installed)
        known = dict.fromkeys(word for name, dist in pairs for word in (name, dist, f"{dist}:{name}"))
        for option, names in (("--no-plugin", self.without), ("--only-plugin", self.only)):
            for name in names:
                if name not in known:
                    raise UsageError(
                        f"{option} names {name!r}, which is no installed plugin{suggest(name, known)}",
                        where=f"{option}, or {WITHOUT if option == '--no-plugin' else ONLY} in the environment",
                        fix="name an entry point or a distribution that 'recdistill plugins list' shows",
                    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
