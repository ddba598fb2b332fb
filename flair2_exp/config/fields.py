"""What every group of the config is: a frozen dataclass that checks itself when it is made.

A field's type says what it holds, its `option` what a type cannot say, its docstring what it means.
From these declarations, the only ones, come the schema that Hydra composes on (`composable`), the
typed config (`build`), the names of all options (`options`) and what decides a result.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, Literal, TypeVar

from flair2_exp.errors import ConfigError, nearest
from flair2_exp.files import has_control_characters, unusable

OPEN: Final = math.inf

TWINS: Final = "flair2_exp.config.twins"
"""The module in which the twins of all groups are found by their groups' names."""

Condition = Callable[[Any], bool]
"""Takes a whole config."""
Decides = bool | Condition
"""Whether a result depends on an option: always, never, or where a condition holds."""

G = TypeVar("G", bound="Group")
R = TypeVar("R")


def _once_per_class(function: Callable[[type], R]) -> Callable[[type], R]:
    """Remember what a function says of a class: types are read once per process."""
    results: dict[type, R] = {}

    @functools.wraps(function)
    def remembered(group: type) -> R:
        if group not in results:
            results[group] = function(group)
        return results[group]

    return remembered


def option(
    default: Any,
    minimum: float = -OPEN,
    maximum: float = OPEN,
    *,
    chosen: bool = False,
    decides: Decides = True,
    path: bool = False,
) -> Any:
    """A field of a group.

    Args:
        default: Its value where nobody gives one; a mapping is copied.
        minimum: Of a number, or of each number of a list or a mapping; included.
        maximum: Likewise.
        chosen: The group's files give the value, so that a config without any of them lacks it.
        decides: Whether a run's result depends on it, always (True), never (False: places, names,
            speed), or where a condition holds (`config.relevance`).
        path: It is a file's or a folder's: relative to where the command was given, in whatever
            folder the run works, and `~` is the user's home.
    """
    metadata = {
        "minimum": minimum, "maximum": maximum, "chosen": chosen, "decides": decides, "path": path,
    }  # fmt: skip
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A node of the config.

    Attributes:
        node: Its dotted name in the config, for messages.
        decides: Whether any of its options decides a run's result, likewise.
    """

    node: ClassVar[str] = ""
    decides: ClassVar[Decides] = True

    def __post_init__(self) -> None:
        """Check bounds and words, then the group's own rules.

        Raises:
            ConfigError: The first value that is wrong; the message says what is expected.
        """
        prefix = f"{self.node}." if self.node else ""
        kinds = _kinds(type(self))
        for item in dataclasses.fields(self):
            name = prefix.rstrip(".") if item.metadata.get("parts") else f"{prefix}{item.name}"
            kind = kinds.get(item.name, Any)
            for leaf, value in _leaves(name, getattr(self, item.name)):
                _check(leaf, value, kind, item.metadata)
        self.validate()

    def validate(self) -> None:
        """Refuse what no single field can check; groups with such rules override this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenGroup(Group):
    """A node that holds, beside its own options, further parts under names of the user's choice.

    Each is a node with the path of a class, `_target_`, and options of that class. In a composed
    config, in plain values and in an identity a part stands under its name, like the group's own
    options; a name that is neither an option nor such a node is refused.
    """

    parts: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict, metadata={"minimum": -1e9, "maximum": 1e9, "parts": True}
    )
    """The further parts by name; not an option itself."""

    def __post_init__(self) -> None:
        """Check the parts' names beside all else.

        Raises:
            ConfigError: A name that a dotted option cannot hold, or the first wrong value.
        """
        for name in self.parts:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{self.node}.{name}: expected a name of letters, digits and underscores."
                )
        super().__post_init__()


_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values of an option, those of a mapping with their dotted names; None left out."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if has_control_characters(str(key)):
                raise ConfigError(f"{name}: the name {str(key)!r} holds a control character.")
            yield from _leaves(f"{name}.{key}", each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(name, each)
    elif value is not None:
        yield name, value


def _check(name: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> None:
    if kind is Any and type(value) in (int, float):
        kind = float
    words = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if words and value not in words:
        raise ConfigError(f"{name}={value}: expected one of {', '.join(map(str, words))}.")
    if kind is int and type(value) is not int:  # a bool is an int to Python
        raise ConfigError(f"{name}={value}: expected a whole number.")
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ConfigError(f"{name}={value}: expected a number.")
    if isinstance(value, str) and kind is str and has_control_characters(value):
        raise ConfigError(f"{name}={value!r}: a line break or another control character.")
    low, high = metadata.get("minimum", -OPEN), metadata.get("maximum", OPEN)
    if kind not in (int, float) or (low, high) == (-OPEN, OPEN):
        return
    if not (low <= value <= high and math.isfinite(value)):  # NaN fails this as well
        bounds = f"{low:.10g} to {high:.10g}" if high < OPEN else f"at least {low:.10g}"
        raise ConfigError(f"{name}={value}: expected {bounds}.")


@_once_per_class
def hints(group: type) -> dict[str, Any]:
    """The types of a group's fields, `None` left out of optional ones."""
    named = typing.get_type_hints(group)
    return {item.name: _bare(named[item.name]) for item in _fields(group)}


@_once_per_class
def _optional(group: type) -> frozenset[str]:
    named = typing.get_type_hints(group)
    unions = {item.name for item in _fields(group) if isinstance(named[item.name], types.UnionType)}
    return frozenset(unions | {item.name for item in _fields(group) if named[item.name] is Any})


def is_optional(group: type, name: str) -> bool:
    """Whether an option may be null."""
    return name in _optional(group)


@_once_per_class
def _fields(group: type) -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of a group's options and nodes, an open group's further parts left out."""
    return tuple(each for each in dataclasses.fields(group) if not each.metadata.get("parts"))


def _bare(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    return hint


@_once_per_class
def _kinds(group: type) -> dict[str, Any]:
    """Return what each field of a group holds; of a list or a mapping, what its items are."""
    places = {tuple: 0, Mapping: 1}
    return {
        name: typing.get_args(hint)[places[typing.get_origin(hint)]]
        if typing.get_origin(hint) in places
        else hint
        for name, hint in hints(group).items()
    }


def is_group(hint: Any) -> bool:
    """Whether a field's type is a node of the config rather than an option."""
    return isinstance(hint, type) and issubclass(hint, Group)


def is_open(hint: Any) -> bool:
    """Whether a field's type is a node that takes further parts by name."""
    return is_group(hint) and issubclass(hint, OpenGroup)


def options(group: type[Group], prefix: str = "") -> Iterator[tuple[str, Decides]]:
    """The dotted names of a group's options, and whether each decides a run's result.

    An open group is listed itself beside its options: for the parts that a user adds.
    """
    for item in _fields(group):
        hint, name = hints(group)[item.name], f"{prefix}{item.name}"
        own = _both(group.decides, item.metadata.get("decides", True))
        if is_open(hint):
            yield name, _both(own, hint.decides)
        if is_group(hint):
            for inner, decides in options(hint, f"{name}."):
                yield inner, _both(own, decides)
        else:
            yield name, own


def defaults(group: type[Group], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of a group's options, and their plain values where nobody gives one."""
    for item in _fields(group):
        hint, name = hints(group)[item.name], f"{prefix}{item.name}"
        if is_group(hint):
            yield from defaults(hint, f"{name}.")
        else:
            yield name, _default(item)


def _both(one: Decides, other: Decides) -> Decides:
    """Return what holds where both hold."""
    if isinstance(one, bool):
        return one and other
    if isinstance(other, bool):
        return other and one
    return lambda config: one(config) and other(config)


def with_full_paths(group: G, folder: str) -> G:
    """Return a group whose options that are paths are absolute, and those of its nodes.

    Raises:
        ConfigError: No file can have such a path, or a device or a FIFO has it.
    """
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(group):
        value = getattr(group, item.name)
        if isinstance(value, Group):
            changes[item.name] = with_full_paths(value, folder)
        elif item.metadata.get("path") and value is not None:
            full = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
            require_usable(f"{group.node}.{item.name}".lstrip("."), full)
            changes[item.name] = full
    return dataclasses.replace(group, **changes) if changes else group


def require_usable(name: str, path: str, *, look: bool = True) -> None:
    """Refuse an option's path that no file or folder can have.

    Args:
        name: The option's dotted name.
        path: Its value.
        look: Whether a device or a FIFO that is there is refused as well.

    Raises:
        ConfigError: It is one.
    """
    reason = unusable(path, look=look)
    if reason:
        shown = repr(path) if has_control_characters(path) else path
        raise ConfigError(f"{name}={shown if len(shown) < 300 else shown[:100] + '...'}: {reason}.")


def build(group: type[G], values: Mapping[str, Any], prefix: str = "") -> G:
    """Make a group of plain values, as a composed config or a checkpoint holds them.

    Args:
        group: The group's class.
        values: By field; lists, mappings, numbers, strings and None.
        prefix: Of the group's dotted name, for messages.

    Raises:
        ConfigError: A value is missing, unknown, out of bounds or in conflict with another.
    """
    types_ = hints(group)
    made: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types_:
            target = value.get("_target_") if isinstance(value, Mapping) else None
            if not is_open(group) or not isinstance(target, str):
                raise unknown(group, name, prefix)
            parts[name] = value
            continue
        hint = types_[name]
        if isinstance(value, list) and typing.get_origin(hint) is tuple:
            value = tuple(value)
        elif is_group(hint) and isinstance(value, Mapping):
            value = build(hint, value, f"{prefix}{name}.")
        made[name] = value
    return group(**made, **({"parts": parts} if parts else {}))


def unknown(group: type[Group], name: str, prefix: str = "") -> ConfigError:
    """Return the refusal of a name that a group does not have, with what it could be."""
    names = list(hints(group))
    if not is_open(group):
        return ConfigError(f"{prefix}{name}: no such option; {nearest(name, names)}")
    hint = f" {nearest(name, names)}" if names else ""
    return ConfigError(
        f"{prefix}{name}: no such option;{hint}\n"
        f"A part of your own has a class: +{prefix}{name}._target_=PATH."
    )


def plain(value: Any) -> Any:
    """A group as plain values: what a checkpoint, a file or a hash holds.

    Returns:
        Numbers, strings, None, lists and dictionaries of them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {
            item.name: plain(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if not item.metadata.get("parts")
        }
        return own | plain(value.parts) if isinstance(value, OpenGroup) else own
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


@_once_per_class
def composable(group: type) -> type:
    """The twin of a group that OmegaConf composes on: it knows neither words nor tuples.

    What the group's files must give is missing (`???`) in it until one of them is chosen.

    A launcher pickles what Hydra knows, for its workers. So the twin says where it is found by name
    (`config.twins`): pickled by value, it would come back with fields whose
    defaults are unknown to `dataclasses`, and spoil the class that it was made from.
    """
    from omegaconf import MISSING

    fields = []
    for item in _fields(group):
        twin_or_type = hint = _composable(hints(group)[item.name])
        if hint is not Any and is_optional(group, item.name):
            hint = hint | None
        if item.metadata.get("chosen"):
            default: Any = dataclasses.field(default=MISSING)
        elif is_group(hints(group)[item.name]) and item.default is dataclasses.MISSING:
            default = dataclasses.field(default_factory=twin_or_type)
        else:
            default = dataclasses.field(default_factory=functools.partial(_default, item))
        fields.append((item.name, hint, default))
    twin = dataclasses.make_dataclass(group.__name__, fields, repr=False, eq=False)
    twin.__module__ = TWINS
    return twin


def schema(group: type[Group]) -> Any:
    """Return the node of OmegaConf's that a group is composed on, its open groups open.

    In these OmegaConf takes any further name; `build` then refuses what is not a part.
    """
    from omegaconf import OmegaConf

    node = OmegaConf.structured(composable(group))
    for name in _open_nodes(group):
        OmegaConf.set_struct(OmegaConf.select(node, name), False)
    return node


def _open_nodes(group: type[Group], prefix: str = "") -> Iterator[str]:
    for name, hint in hints(group).items():
        if is_open(hint):
            yield f"{prefix}{name}"
        if is_group(hint) and not is_optional(group, name):
            yield from _open_nodes(hint, f"{prefix}{name}.")


def _composable(hint: Any) -> Any:
    if is_group(hint):
        return composable(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return type(inner[0])
    if origin is tuple:
        return list[_composable(inner[0])]  # type: ignore[misc]
    if origin is Mapping:
        return dict[inner[0], inner[1]]  # type: ignore[valid-type]
    return hint


def _default(item: dataclasses.Field[Any]) -> Any:
    value = item.default
    if value is dataclasses.MISSING and item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    return plain(value)
