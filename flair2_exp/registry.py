"""The one door for parts: from a dotted path of a config to a class, and on to what it builds.

Networks, losses, optimizers, schedules, augmentations, callbacks, loggers, metrics and data sources
all come through here, ours as well as a user's own. Hydra's `instantiate` calls anything that a
config names, and its 1.4 asks for an allow-list. Here the caller says what kind of class it
expects, and anything else is refused, so that a config cannot run code it has no business with.

A part's constructor is *given* values by the names of its arguments (as `classes`, or `optimizer`),
and takes only those that it has arguments for. All its other arguments are its *options*: they are
set in the config, and checked against their annotations.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flair2_exp.errors import ConfigError, nearest
from flair2_exp.projects import is_own, position, shown

Kind = TypeVar("Kind")


def locate(path: str, kind: type[Kind], option: str = "") -> type[Kind]:
    """Return the class at a dotted path, which must derive from `kind`.

    Args:
        path: As `torch.optim.AdamW`.
        kind: The class that it must derive from.
        option: The config's option that holds the path, for messages: as `optimizer._target_`.

    Raises:
        ConfigError: There is nothing of that name, or it is not such a class.
    """
    value = f"{option}={path}" if option else path
    expected = f"Expected the dotted path of a class derived from {kind.__module__}.{kind.__name__}"
    try:
        located = _imported(path)
    except _NotThereError as error:
        raise ConfigError(f"{value}: {error}\n{expected}.") from None
    except Exception as error:  # importing a module runs it, which may raise any kind
        what = error.msg if isinstance(error, SyntaxError) else error
        reason = f"{type(error).__name__}: {what}".splitlines()[0].rstrip(".: ")
        place = position(error)
        where = f" ({place})" if place else ""
        raise ConfigError(f"{value}: cannot be imported: {reason}{where}.\n{expected}.") from error
    if not (isinstance(located, type) and issubclass(located, kind)) or located is kind:
        raise ConfigError(f"{value}: not such a class.\n{expected}.")
    return located


class _NotThereError(Exception):
    """There is nothing of a dotted path; the message says what there is."""


def _imported(path: str) -> Any:
    """Return the object at a dotted path.

    Raises:
        _NotThereError: There is none.
        Exception: Whatever importing its module raises.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise _NotThereError("not a dotted path, as `package.module.Class`.")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            located: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                continue  # it is not a module, and may be a class in one
            raise  # what it imports is missing
        for place, name in enumerate(parts[count:], count):
            if not hasattr(located, name):
                within = ".".join(parts[:place])
                public = [each for each in vars(located) if not each.startswith("_")]
                raise _NotThereError(f"{within} has no {name}; {_near(name, public)}")
            located = getattr(located, name)
        return located
    raise _NotThereError(
        f"there is no module {parts[0]}; one of a folder of your own is found with "
        f"--config-dir {parts[0]}/conf."
    )


def _near(name: str, names: list[str]) -> str:
    """Return the names that are near; not all of them, which may be hundreds."""
    hint = nearest(name, names)
    return hint if hint.startswith("did") else "check the name."


def construct(
    kind: type[Kind],
    path: str,
    where: str,
    *,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    target: str = "",
) -> Kind:
    """Build the part at a dotted path.

    Args:
        kind: The class that it must derive from.
        path: As `torch.optim.AdamW`.
        where: The config's node that holds its options, for messages: as `model.options`.
        given: What the constructor gets by name, of which it takes what it has arguments for.
        options: The config's options of it.
        target: The config's option that holds the path; none: `_target_` in the node `where`.

    Raises:
        ConfigError: There is no such class, or it does not take these options; the message names
            the nearest, or what is expected, and where the class is written.
    """
    located = locate(path, kind, target or f"{where}._target_")
    return located(**arguments_of(located, where, given=given, options=options))


def arguments_of(
    located: Callable[..., Any],
    where: str,
    *,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    skip: int = 0,
) -> dict[str, Any]:
    """Return the keyword arguments of a part's constructor, options checked and converted.

    Args:
        located: The class.
        where: As for `construct`.
        given: As for `construct`.
        options: As for `construct`.
        skip: Arguments that are given by position.

    Raises:
        ConfigError: As `construct`.
    """
    try:
        signature = inspect.signature(located)
    except ValueError:  # written in C, without a signature: it says itself what it does not take
        return dict(options)
    parameters = dict(list(signature.parameters.items())[skip:])
    named = {
        name: each
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    is_open = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    own = [name for name in named if name not in given]
    for name in options:
        if name in given:
            raise ConfigError(
                f"{where}.{name}: {written(located)} is given its {name}: omit the option."
            )
        if name not in named and not is_open:
            hint = nearest(name, own) if own else "it takes no options."
            raise ConfigError(f"{where}.{name}: {written(located)} has no such option; {hint}")
    for name in own:
        if named[name].default is inspect.Parameter.empty and name not in options:
            raise ConfigError(
                f"{where}.{name} has no value, and {written(located)} needs it: set it with "
                f"+{where}.{name}=VALUE."
            )
    hints = _hints(located)
    checked = {
        name: _checked(f"{where}.{name}", value, hints[name], located) if name in hints else value
        for name, value in options.items()
    }
    return {name: value for name, value in given.items() if name in named} | checked


def written(located: Callable[..., Any]) -> str:
    """Return a class's name for a message, with file and line where it is own code."""
    name = getattr(located, "__name__", str(located))
    try:
        file, (_, line) = inspect.getsourcefile(located), inspect.getsourcelines(located)
    except (TypeError, OSError):
        return name
    return f"{name} ({shown(file)}, line {line})" if file and is_own(file) else name


def _hints(located: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a constructor's arguments; none where they cannot be read."""
    try:
        return typing.get_type_hints(getattr(located, "__init__", located))
    except Exception:  # annotations are any code
        return {}


def _checked(name: str, value: Any, hint: Any, located: Callable[..., Any]) -> Any:
    """Return an option's value as its annotation says: a list as a tuple, a node as a dataclass.

    Raises:
        ConfigError: It is something else.
    """
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    try:
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        except PydanticUserError:  # a dataclass brings its own configuration
            adapter = TypeAdapter(hint)
    except Exception:  # not a type that values can be compared with
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        inner = "".join(f".{part}" for part in first["loc"])
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(
            f"{name}{inner}={first['input']}: {reason.rstrip('.')}, for {written(located)}."
        ) from None
