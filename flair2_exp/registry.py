"""The one place that turns a dotted path of a config into a class.

Hydra's `instantiate` calls anything that a config names; its 1.4 asks for an allow-list. Here the
caller says what kind of class it expects, and anything else is refused, so that a config cannot run
code it has no business with.
"""

from __future__ import annotations

from typing import TypeVar

from flair2_exp.errors import ConfigError

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
    from hydra.utils import get_object

    value = f"{option}={path}" if option else path
    expected = f"Expected the dotted path of a class derived from {kind.__module__}.{kind.__name__}"
    try:
        located = get_object(path)
    except Exception as error:  # importing a module runs it, which may raise any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{value}: cannot be imported: {reason}\n{expected}.") from error
    if not (isinstance(located, type) and issubclass(located, kind)) or located is kind:
        raise ConfigError(f"{value}: not such a class.\n{expected}.")
    return located
