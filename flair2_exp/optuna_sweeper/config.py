"""The sweeper's config and its registration with Hydra.

The group option is `hydra/sweeper=optuna_study`, so that the published `hydra-optuna-sweeper`,
whose option is `optuna`, may be installed beside it. Samplers and pruners are groups of their own:
`hydra/sweeper/sampler` (tpe, random, grid, cmaes, nsgaii, gp) and `hydra/sweeper/pruner` (median,
hyperband, none). Nothing here imports Optuna.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from .errors import SweepError

NAME: Final = "optuna_study"


@dataclass
class OptunaStudyConf:
    """One search: what is varied, what is sought, where the study is kept, when to stop.

    The one declaration of the sweeper's options. It checks itself when it is made.

    Raises:
        SweepError: A value that no search can run with.
    """

    defaults: list[Any] = field(
        default_factory=lambda: [{"sampler": "tpe"}, {"pruner": "median"}, "_self_"]
    )
    _target_: str = MISSING
    _recursive_: bool = False  # the sweeper builds sampler and pruner itself, from an allow-list
    sampler: Any = MISSING
    """`_target_` of a class of `optuna.samplers` and its keyword arguments."""
    pruner: Any = MISSING
    """`_target_` of a class of `optuna.pruners` and its keyword arguments."""
    allowed_targets: list[str] = field(default_factory=list)
    """Prefixes of further dotted paths that sampler and pruner may come from."""
    params: dict[str, Any] = field(default_factory=dict)
    """Search space: override key to a sweep in Hydra's grammar; the command line comes after."""
    custom_search_space: str | None = None
    """Dotted path of a function `(config, trial)` that suggests further values: the command's
    config, and Optuna's trial, whose `params` are the values drawn so far."""
    first: list[Any] = field(default_factory=list)
    """Parameter values tried before any other, each a mapping by override key."""
    n_trials: int | None = None
    """Complete and pruned trials of the study in total; null: the whole grid, or 20."""
    n_jobs: int | None = None
    """Trials at a time; null: as many as a launcher that starts jobs one by one has room for, with
    any other one. More than 1 needs a parallel launcher."""
    objective: Any = None
    """Name of what the job returns, or names; picked from the mapping if the job returns one."""
    direction: Any = "minimize"
    """`minimize` or `maximize`, one for all objectives or a list."""
    forbidden_objectives: list[str] = field(default_factory=lambda: ["test/*"])
    """Patterns of names that may not be an objective."""
    max_failures: int | None = 5
    """Failed trials, counted from the start of this command, that end the search; null: never."""
    study_name: str | None = None
    """null: the job's name."""
    storage: str | None = None
    """A journal's path or a database's URL, without a password; null: in the sweep's folder."""
    storage_timeout: float = 10.0
    """Seconds within which the storage must answer at the start."""
    heartbeat_grace: float = 120.0
    """Seconds of silence after which a worker on another machine counts as dead."""
    poll: float = 0.5
    """Seconds between two looks at the study while other workers finish it."""
    on_change: str = "refuse"
    """`refuse` a study of another search (space, direction, facts), or open a `new_study`."""
    may_change: Any = field(default_factory=list)
    """Patterns of the override keys that may differ between two commands on one study; or the
    dotted path of a function `(key) -> bool`."""
    on_start: str | None = None
    """Dotted path of a function `(config) -> mapping | None`, called by every worker before it
    opens the study; what it raises ends the command. What it returns are facts, plain values by
    name, such as which data are read. The study keeps them, and a command that has another value
    is refused, as one with another space is; a fact that is not returned is not compared."""
    on_create: str | None = None
    """Dotted path of a function `(config) -> mapping`, called by the one worker that makes the
    study, before any trial; what it returns (plain values) becomes the study's attributes."""
    on_finish: str | None = None
    """Dotted path of a function `(result, config)`, called by every worker at the end."""

    def __post_init__(self) -> None:
        for key, most in (("n_trials", 1_000_000), ("max_failures", 1_000_000), ("n_jobs", 1024)):
            value = getattr(self, key)
            if value is not None and not 1 <= value <= most:
                raise _wrong(key, value, f"at least 1 and at most {most}")
        for key, longest in (("storage_timeout", 600), ("heartbeat_grace", 86_400), ("poll", 600)):
            if not 0 < getattr(self, key) <= longest:  # NaN fails this as well
                wanted = f"more than 0 seconds and at most {longest}"
                raise _wrong(key, getattr(self, key), wanted)
        if self.on_change not in ("refuse", "new_study"):
            raise _wrong("on_change", self.on_change, "refuse or new_study")
        if not isinstance(self.may_change, str | list):
            raise _wrong("may_change", self.may_change, "a list of patterns, or a function's path")
        for params in self.first:
            if not isinstance(params, Mapping):
                raise _wrong("first", params, "mappings, such as [{lr: 0.1}]")
        objectives, directions = self.objectives, self.directions
        for name, pattern in itertools.product(objectives, self.forbidden_objectives):
            if fnmatch.fnmatch(name, pattern):
                raise SweepError(
                    f"objective {name} is refused ({pattern}): a search that picks by the test "
                    "score has seen the test data, and its result means nothing. Use a validation "
                    "metric."
                )
        if objectives and len(directions) != len(objectives):
            raise SweepError(
                f"hydra.sweeper.direction={self.direction}: {len(directions)} directions for "
                f"{len(objectives)} objectives; expected one for each."
            )

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives' names; empty where the job returns its value without a name."""
        return () if self.objective is None else _names("objective", self.objective)

    @property
    def directions(self) -> tuple[str, ...]:
        """`minimize` or `maximize` of each objective."""
        directions = _names("direction", self.direction)
        for direction in directions:
            if direction not in ("minimize", "maximize"):
                raise _wrong("direction", direction, "minimize or maximize")
        one_for_all = isinstance(self.direction, str)
        return directions * max(1, len(self.objectives)) if one_for_all else directions


def _names(key: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise _wrong(key, value, "a name or a list of names")
    return tuple(names)


def _wrong(key: str, value: object, expected: str) -> SweepError:
    return SweepError(f"hydra.sweeper.{key}={value}: expected {expected}.")


_SAMPLERS: Final[dict[str, dict[str, Any]]] = {
    # Constant liar: a trial that runs elsewhere counts as a bad one, so that workers spread out.
    "tpe": {
        "_target_": "optuna.samplers.TPESampler",
        "seed": 1,
        "n_startup_trials": 10,
        "constant_liar": True,
    },
    "random": {"_target_": "optuna.samplers.RandomSampler", "seed": 1},
    "grid": {"_target_": "optuna.samplers.GridSampler", "seed": None},
    "cmaes": {"_target_": "optuna.samplers.CmaEsSampler", "seed": 1},
    "nsgaii": {"_target_": "optuna.samplers.NSGAIISampler", "seed": 1},
    "gp": {"_target_": "optuna.samplers.GPSampler", "seed": 1},
}
_PRUNERS: Final[dict[str, dict[str, Any]]] = {
    # Optuna's own values: five trials make a median worth comparing with. A step is an epoch,
    # counted from 1; after the first `n_warmup_steps` epochs trials may be pruned.
    "median": {
        "_target_": "optuna.pruners.MedianPruner",
        "n_startup_trials": 5,
        "n_warmup_steps": 0,
        "interval_steps": 1,
    },
    "hyperband": {"_target_": "optuna.pruners.HyperbandPruner"},
    "none": {"_target_": "optuna.pruners.NopPruner"},
}


def store_configs(target: str) -> None:
    """Put the sweeper's groups into Hydra's ConfigStore; `target` is its class's name there."""
    groups: dict[str, Mapping[str, Any]] = {
        "hydra/sweeper": {NAME: OptunaStudyConf(_target_=target)},
        "hydra/sweeper/sampler": _SAMPLERS,
        "hydra/sweeper/pruner": _PRUNERS,
    }
    for group, options in groups.items():
        for name, node in options.items():
            store_once(group, name, node, provider="optuna_study_sweeper")


def store_once(group: str, name: str, node: Any, *, provider: str) -> None:
    """Put a config into Hydra's ConfigStore, where it is not there yet: 1.4 warns of a second."""
    store = ConfigStore.instance()
    stored: list[str] = []
    with contextlib.suppress(OSError):  # Hydra's answer where there is no such group
        stored = store.list(group)
    if f"{name}.yaml" not in stored:
        store.store(name, node, group, provider=provider)
