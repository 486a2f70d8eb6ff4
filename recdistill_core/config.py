"""YAML -> frozen dataclasses -> objects, with every fault reported at once under its YAML path.

Components are named, never imported by dotted path, so a configuration file cannot run code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recdistill_core.component import BuildContext
from recdistill_core.errors import ConfigError, PluginError, Problem, RecdistillError, UsageError, suggest
from recdistill_core.registry import Registered, Registry

T = TypeVar("T")
#: What OmegaConf takes for "not given yet".
MISSING_VALUE = "???"


def load_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML mapping and apply ``key.path=value`` overrides (``students[0].width=64``).

    Raises:
        UsageError: if the file is absent or unreadable, or an override has no ``=``.
    """
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise UsageError("the configuration file does not exist", where=str(path), fix="check the path") from error
    except OSError as error:
        raise UsageError(
            f"the configuration file cannot be read: {error.strerror}", where=str(path), fix="name a readable file"
        ) from error
    except Exception as error:  # PyYAML and omegaconf raise many kinds
        raise UsageError(f"the file is not valid YAML: {error}", where=str(path), fix="mend its syntax") from error
    # omegaconf makes a mapping of a lone word, too; in what is one there is a colon outside of comments
    if not isinstance(loaded, DictConfig) or (loaded and not re.search("[:{]", _without_comments(path))):
        raise UsageError("the file must hold a YAML mapping", where=str(path), fix="write 'key: value' lines")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UsageError(f"override {override!r} is not KEY=VALUE", fix="write for example seeds=[7]")
        try:
            OmegaConf.update(loaded, key, OmegaConf.create(f"v: {value or 'null'}").v, merge=False, force_add=True)
        except Exception as error:
            why = str(error).partition("\n")[0]
            raise UsageError(f"override {override!r} cannot be applied: {why}", where=str(path)) from error
    try:
        plain = OmegaConf.to_container(loaded, resolve=True)
    except OmegaConfBaseException as error:
        why = str(error).replace("\n    full_key: ", ", at ").partition("\n")[0]
        raise UsageError(f"an interpolation cannot be resolved: {why}", where=str(path)) from error
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _without_comments(path: Path) -> str:
    return re.sub(r"(^|\s)#.*", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def fill(cls: type[T], data: Any, path: str, problems: list[Problem], owner: str = "") -> T | None:
    """An instance of the dataclass ``cls`` from ``data``, or None with its faults appended to ``problems``.

    ``owner`` says whose settings they are (``loss 'kl'``), for messages.

    Dataclasses inside it are filled in turn, so that a fault in one carries its own path.
    """
    if not isinstance(data, Mapping):
        problems.append(Problem(path, f"must be a mapping, got {type(data).__name__} {data!r}"))
        return None
    before = len(problems)
    hints = get_type_hints(cls)
    known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]  # cls is a dataclass by contract
    values: dict[str, Any] = {}
    for key, value in data.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and value == MISSING_VALUE:
            problems.append(Problem(where, f"has the value {MISSING_VALUE}, which stands for a missing one"))
        elif key not in known:
            near = suggest(str(key), ["name", *known] if owner else known)
            there = (
                f"{owner + ' has' if owner else 'known'}: {', '.join(known)}" if known else f"{owner} has no settings"
            )
            problems.append(Problem(where, f"unknown key{near}; {there.strip()}"))
        else:
            values[key] = _filled(cls, key, hints[key], value, where, problems)
    for entry in fields(cls):  # type: ignore[arg-type]  # as above
        if entry.name not in data and entry.default is MISSING and entry.default_factory is MISSING:
            problems.append(Problem(f"{path}.{entry.name}" if path else entry.name, "is required"))
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(Problem(path, str(error)))
        return None


def _filled(cls: type[Any], key: str, hint: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    """``value`` as the type of field ``key``: a dataclass, one or None, a list or tuple of them, or something plain."""
    origin, inside = get_origin(hint), [part for part in get_args(hint) if part not in (NoneType, Ellipsis)]
    if isinstance(hint, type) and is_dataclass(hint):
        return fill(hint, value, where, problems)
    if len(inside) == 1 and isinstance(inside[0], type) and is_dataclass(inside[0]):
        if origin in (list, tuple):
            if not isinstance(value, list | tuple):
                problems.append(Problem(where, f"must be a list, got {type(value).__name__} {value!r}"))
                return None
            return origin(fill(inside[0], entry, f"{where}[{i}]", problems) for i, entry in enumerate(value))
        if origin in (Union, UnionType) and value is not None:
            return fill(inside[0], value, where, problems)
    return _converted(cls, key, value, where, problems)


def _converted(cls: type[Any], key: str, value: Any, where: str, problems: list[Problem]) -> Any:
    """``value`` as the type of field ``key``, converted and checked by OmegaConf; tuples stay tuples."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), {key: value})
        plain = OmegaConf.to_container(OmegaConf.masked_copy(merged, [key]), resolve=True)  # type: ignore[arg-type]  # a structured config is a DictConfig
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list for a mapping, or the other way round
        text = str(error).splitlines()[0]
        if isinstance(error, TypeError) or "$VALUE" in text:  # omegaconf leaves messages on tuple elements unfinished
            text = f"{value!r} does not fit the type {str(get_type_hints(cls)[key]).replace('typing.', '')}"
        problems.append(Problem(where, text))
        return None
    found = plain[key] if isinstance(plain, dict) else None
    return tuple(found) if isinstance(found, list) and get_origin(get_type_hints(cls)[key]) is tuple else found


def fill_or_raise(cls: type[T], data: Any, path: str = "") -> T:
    """As :func:`fill`, but raises ConfigError with all faults."""
    problems: list[Problem] = []
    made = fill(cls, data, path, problems)
    if made is None:
        raise ConfigError(problems)
    return made


@dataclass(frozen=True)
class Resolved:
    """A component chosen in a configuration, with its filled config.

    Attributes:
        spelled: its name as the configuration has it, ``distribution:name`` where that was needed.
    """

    entry: Registered
    config: Any
    spelled: str = ""

    @property
    def name(self) -> str:
        """The component's name."""
        return self.entry.component.name

    @property
    def label(self) -> str:
        """``kind 'name'`` for messages."""
        return f"{self.entry.kind} {self.name!r}"

    @property
    def origin(self) -> str:
        """The plugin that it comes from, with distribution and version."""
        return f"plugin {self.entry.plugin.label}"

    def needs(self) -> frozenset[str]:
        """Capabilities this component needs; see ``component.CAPABILITIES``."""
        try:
            return self.entry.component.needs_of(self.config)
        except (Exception, SystemExit) as error:
            raise PluginError(f"{self.label} cannot say what it needs: {error}", where=self.origin) from error

    def build(self, context: BuildContext) -> Any:
        """Make the object.

        Raises:
            PluginError: if the plugin raises anything else than a RecdistillError or returns the wrong type.
        """
        try:
            made = self.entry.component.build(self.config, context)
        except RecdistillError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.label} cannot be built: {type(error).__name__}: {error}",
                where=self.origin,
                fix="mend its configuration, or report it to the plugin's author",
            ) from error
        _require_interface(self, made)
        return made

    def pinned(self) -> dict[str, Any]:
        """As :meth:`plain`, under the name that stays unambiguous whatever else is installed."""
        return {**self.plain(), "name": self.entry.qualified}

    def plain(self) -> dict[str, Any]:
        """``{"name": ..., field: value}`` as YAML would hold it."""
        return {"name": self.spelled or self.name, **asdict(self.config)}


def resolve(registry: Registry, kind: str, spec: Any, path: str, problems: list[Problem]) -> Resolved | None:
    """The component that ``spec`` (``{"name": ..., fields}`` or a bare name) asks for, or None with its faults.

    Raises:
        PluginError: if no installed plugin has the component; an absent plugin is no fault of the YAML alone.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        problems.append(Problem(path, f"must name a {kind}, as in {{name: ..., ...}}, got {spec!r}"))
        return None
    entry = registry.get(kind, str(spec["name"]))
    settings = {key: value for key, value in spec.items() if key != "name"}
    config = fill(entry.component.config, settings, path, problems, f"{kind} {spec['name']!r}")
    return None if config is None else Resolved(entry, config, str(spec["name"]))


def make(registry: Registry, kind: str, spec: Any, context: BuildContext | None = None) -> Any:
    """Build one component in one call: ``make(installed(), "student", {"name": "mlp"}, context)``.

    Raises:
        ConfigError: for a fault in ``spec``. PluginError: if the component is not there or cannot be built.
        WiringError: if it needs what the schema of ``context`` does not give.
    """
    problems: list[Problem] = []
    resolved = resolve(registry, kind, spec, kind, problems)
    if resolved is None:
        raise ConfigError(problems)
    context = context or BuildContext()
    if context.schema is not None:
        from recdistill_core.wiring import check  # it imports this module

        check([resolved], context.schema, dataset="of the context", also={"teacher"})
    return resolved.build(context)


def to_yaml(plain: Mapping[str, Any]) -> str:
    """YAML text of plain values."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(plain)))


def _require_interface(resolved: Resolved, made: Any) -> None:
    from recdistill_core.interfaces import INTERFACES  # needs torch, which listing plugins does not

    wanted = INTERFACES[resolved.entry.kind]
    if isinstance(made, type):
        raise PluginError(
            f"{resolved.label} built the class {made.__name__} itself, no object of it",
            where=resolved.origin,
            fix="return an instance from build",
        )
    if getattr(wanted, "_is_protocol", False):
        members = {*vars(wanted), *vars(wanted).get("__annotations__", {})}
        lacks = [name for name in sorted(members) if not name.startswith("_") and not hasattr(made, name)]
    else:
        lacks = [] if isinstance(made, wanted) else [wanted.__name__]
    if lacks:
        raise PluginError(
            f"{resolved.label} built a {type(made).__name__}, no {wanted.__name__}: lacks {', '.join(lacks)}",
            where=resolved.origin,
            fix=f"return an object with the interface recdistill_core.interfaces.{wanted.__name__}",
        )
