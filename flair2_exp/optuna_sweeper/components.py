"""What a config names by dotted paths: samplers and pruners, and the application's functions.

A config may come from anywhere, and a `_target_` runs code: only classes of `optuna.samplers` and
`optuna.pruners`, and those below the prefixes that the user names, are built.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, cast

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler

from .errors import SweepError

_KINDS: Final[Mapping[str, tuple[ModuleType, type]]] = {
    "sampler": (optuna.samplers, BaseSampler),
    "pruner": (optuna.pruners, BasePruner),
}
# Samplers that draw at random, trial by trial. The others (grid, quasi-Monte Carlo, one's own) lay
# out a fixed design from the seed, which therefore must be the same for every trial and worker.
_RANDOM_SAMPLERS: Final = (
    "TPESampler",
    "RandomSampler",
    "CmaEsSampler",
    "NSGAIISampler",
    "NSGAIIISampler",
    "GPSampler",
)

_WARMUP: Final = "n_warmup_steps"
"""Argument of Optuna's pruners: before this step none prunes. They take the first step for 0, and
jobs count from 1."""


def import_function(key: str, path: str | None) -> Callable[..., Any]:
    """Return the function whose dotted path an option gives; for None one that does nothing.

    Raises:
        SweepError: There is no such function.
    """
    if path is None:
        return lambda *_: None
    module_name, _, name = path.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SweepError(f"hydra.sweeper.{key}={path} cannot be imported: {error}.") from None
    if not callable(function):
        raise SweepError(f"hydra.sweeper.{key}={path} is not a function.")
    return function


def target_class(
    role: str, config: object, allowed: Sequence[str] = (), *, part: bool = False
) -> type[Any]:
    """Return the class that the `_target_` of a sampler's or pruner's config names.

    Args:
        role: `sampler` or `pruner`.
        config: A mapping, once it is checked.
        allowed: Prefixes of dotted paths outside of Optuna that may be used.
        part: It is an argument of the sampler or pruner, and may be of another kind.

    Raises:
        SweepError: The path is unknown, not allowed, or names something else.
    """
    home_module, base = _KINDS[role]
    home = home_module.__name__
    path = config.get("_target_") if isinstance(config, Mapping) else None
    if not isinstance(path, str):
        raise SweepError(f"{role}: {config!r} names no class. Give {{_target_: {home}....}}.")
    if not any(path == p or path.startswith(p.rstrip(".") + ".") for p in (home, *allowed)):
        raise SweepError(
            f"{role}: {path} is not of {home}; to use it, add its package to "
            "hydra.sweeper.allowed_targets."
        )
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SweepError(f"{role}: {path} cannot be imported: {error}.") from None
    cls = getattr(module, name, None)
    if not (inspect.isclass(cls) and (part or issubclass(cls, base))):
        names = [n for n in dir(home_module) if n.endswith(role.capitalize())]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"; did you mean {home}.{near[0]}?" if near else f"; there are {', '.join(names)}."
        raise SweepError(f"{role}: there is no {role} {path}{hint}")
    return cls


def _build(
    role: str, config: Mapping[str, Any], allowed: Sequence[str], *, part: bool = False
) -> object:
    cls = target_class(role, config, allowed, part=part)
    arguments = {
        # A pruner around a pruner, a sampler's crossover.
        key: _build(role, value, allowed, part=True)
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for key, value in config.items()
        if not key.startswith("_")
    }
    if cls.__module__.startswith("optuna.") and _WARMUP in inspect.signature(cls).parameters:
        steps = arguments.get(_WARMUP, 0)
        if isinstance(steps, int) and steps >= 0:  # others Optuna refuses
            arguments[_WARMUP] = steps + 1
    try:
        with warnings.catch_warnings():
            # That Optuna calls a sampler or an argument experimental is for this module to know.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise SweepError(f"{role}: {cls.__name__}: {error}.") from None
    except ImportError as error:
        raise SweepError(f"{role}: {cls.__name__} needs another package: {error}.") from None


def build_pruner(config: Mapping[str, Any], allowed: Sequence[str] = ()) -> BasePruner:
    """Return a pruner from its config."""
    return cast("BasePruner", _build("pruner", config, allowed))


class SamplerFactory:
    """The sampler of each trial.

    Two workers that draw from the same seed would draw the same values. So a random sampler is
    built anew for every trial, its seed made from the configured one and the trial's number, which
    the storage hands out once: workers differ, a search with one worker repeats exactly, and one
    that is resumed does not start over.
    """

    def __init__(self, config: Mapping[str, Any], allowed: Sequence[str] = ()) -> None:
        self._config = config
        self._allowed = allowed
        cls = target_class("sampler", config, allowed)
        self.is_grid = cls.__name__ == "GridSampler" and cls.__module__.startswith("optuna.")
        self.seed = config.get("seed")
        self._varies = cls.__name__ in _RANDOM_SAMPLERS and self.seed is not None
        self._kept: BaseSampler | None = None
        if not self.is_grid:
            self._kept = self._make()  # a wrong argument is refused before the study is opened

    def _make(self, **changes: object) -> BaseSampler:
        sampler = _build("sampler", {**self._config, **changes}, self._allowed)
        return cast("BaseSampler", sampler)

    def __call__(self, number: int) -> BaseSampler:
        """Return the sampler for the trial of that number."""
        if self.is_grid:
            return RandomSampler()  # every value of a grid's trial is already fixed
        if self._varies or self._kept is None:
            return self._make(seed=_mix(self.seed, number))
        return self._kept


def _mix(seed: object, number: int) -> int:
    """Return a seed for NumPy's generators: 32 bits that depend on both arguments."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
