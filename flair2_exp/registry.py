"""The one place that turns a dotted path of a config into a class.

Hydra's `instantiate` calls anything that a config names; its 1.4 asks for an allow-list. Here the
caller says what kind of class it expects, and anything else is refused, so that a config cannot run
code it has no business with.
"""

from __future__ import annotations

from typing import TypeVar

from flair2_exp.errors import ConfigError

Kind = TypeVar("Kind")


def locate(path: str, kind: type[Kind]) -> type[Kind]:
    """The class at a dotted path, which must be a `kind`.

    Args:
        path: As `torch.optim.AdamW`.
        kind: The class that it must be or derive from.

    Raises:
        ConfigError: There is nothing of that name, or it is not such a class.
    """
    from hydra.utils import get_object

    try:
        found = get_object(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: cannot be imported: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{path}: expected a class derived from {kind.__name__}.")
    return found
