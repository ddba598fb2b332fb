"""The application's functions that a search calls, named in the sweeper's options."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .errors import SweepError

if TYPE_CHECKING:
    import optuna
    from omegaconf import DictConfig

    from .config import OptunaStudyConf
    from .results import SearchResult


def import_function(key: str, path: str | None) -> Callable[..., Any] | None:
    """Return the function of a dotted path.

    Args:
        key: The option that names it, for messages.
        path: Package, module and name; None for no function.

    Raises:
        SweepError: There is no such function.
    """
    if path is None:
        return None
    module_name, _, name = path.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SweepError(f"hydra.sweeper.{key}={path} cannot be imported: {error}.") from None
    if not callable(function):
        raise SweepError(f"hydra.sweeper.{key}={path} is not a function.")
    return function


class Hooks:
    """The functions of one command; each is optional.

    Args:
        options: Name them; their meanings are in `OptunaStudyConf`.
        config: The composed config of the command, which they receive.

    Raises:
        SweepError: One of them cannot be imported.
    """

    def __init__(self, options: OptunaStudyConf, config: DictConfig) -> None:
        self._config = config
        self._custom = import_function("custom_search_space", options.custom_search_space)
        self._start = import_function("on_start", options.on_start)
        self._create = import_function("on_create", options.on_create)
        self._finish = import_function("on_finish", options.on_finish)
        named = options.may_change if isinstance(options.may_change, str) else None
        self._may_change = import_function("may_change", named)
        self._patterns: list[str] = [] if named else options.may_change

    @property
    def extends_space(self) -> bool:
        """Whether trials have values beyond the search space."""
        return self._custom is not None

    def may_change(self, key: str) -> bool:
        """Return whether an override may differ between two commands on one study."""
        if self._may_change is not None:
            return bool(self._may_change(key))
        return any(fnmatch.fnmatch(key, pattern) for pattern in self._patterns)

    def start(self) -> Mapping[str, Any]:
        """Check the command, and return the facts that the study keeps."""
        return (self._start(self._config) if self._start else None) or {}

    def create(self) -> Mapping[str, Any]:
        """Return the attributes of a new study."""
        return (self._create(self._config) if self._create else None) or {}

    def further_values(self, trial: optuna.Trial) -> dict[str, Any]:
        """Let the application suggest values beyond those that the trial has, and return them."""
        if self._custom is None:
            return {}
        before = trial.params.keys()
        self._custom(self._config, trial)
        return {name: value for name, value in trial.params.items() if name not in before}

    def finish(self, result: SearchResult) -> None:
        """Hand over what the search came to."""
        if self._finish is not None:
            self._finish(result, self._config)
