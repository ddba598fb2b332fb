"""From Hydra's composed config to the typed one, in one pass.

A command composes once: what preflight checks is what the run gets. The jobs of a sweep are
composed by `JobLoader`, which composes anew only where jobs differ in more than plain values.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import TWINS, build, require_usable, schema, with_full_paths
from flair2_exp.config.tracking import PathsConfig
from flair2_exp.config.training import best_direction
from flair2_exp.errors import ConfigError
from flair2_exp.files import unusable
from flair2_exp.projects import make_importable
from flair2_exp.ranks import ranks_from_outside, step_name


@functools.cache
def register() -> None:
    """Make schema and resolvers known to Hydra: conf/config.yaml begins with `schema`."""
    from hydra.core.config_store import ConfigStore

    importlib.import_module(TWINS)  # pickle looks only among the modules that are there
    ConfigStore.instance().store(name="schema", node=schema(Config))
    resolvers: dict[str, Callable[..., Any]] = {
        "best_direction": best_direction,
        "widths_around": widths_around,
        "common": _common,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _common(moment: str) -> str:
    """Return a name of a run that all its processes know: the moment, or that of an srun.

    Raises:
        ConfigError: Several were started that have no name in common; in the first one.
        SystemExit: In the others.
    """
    rank = ranks_from_outside()
    if rank is None:
        return moment
    name = step_name()
    if name is None and not rank.first:
        raise SystemExit(ConfigError.status)
    if name is None:
        raise ConfigError(
            f"{rank.starter} has started {rank.world} processes, which would each make a folder of "
            "their own.\nGive all the same one with hydra.run.dir=FOLDER."
        )
    return name


def widths_around(widths: Sequence[int]) -> str:
    """Return a search over U-TAE's widths: the first two halved, as they are, and doubled.

    Args:
        widths: Full resolution first. None is halved below 16, so that up to 16 heads divide it.

    Returns:
        A `choice(...)` of Hydra's grammar.
    """
    fine, deep = [int(each) for each in widths[:2]], [int(each) for each in widths[2:]]
    halved = [max(min(16, each), each // 2) for each in fine]
    choices = [[*first, *deep] for first in (halved, fine, [each * 2 for each in fine])]
    texts = dict.fromkeys(str(each).replace(" ", "") for each in choices)
    return f"choice({','.join(texts)})"


def typed(config: DictConfig) -> Config:
    """Return a composed config as checked dataclasses: interpolations resolved, paths absolute.

    Args:
        config: As Hydra composed it, with or without its own node.

    Raises:
        ConfigError: A value is missing, out of bounds, or in conflict with another.
    """
    try:
        _require_plain_paths(config.paths)
        # Node by node, since Hydra's is large, and not ours.
        values = {str(key): _plain(config, str(key)) for key in config if key != "hydra"}
    except MissingMandatoryValue as error:
        missing = [key for key in OmegaConf.missing_keys(config) if not key.startswith("hydra.")]
        key = min(missing, key=lambda key: (not key.endswith(".name"), key))
        raise ConfigError(
            f"{key} has no value: choose an option of its group, or set it."
        ) from error
    return with_full_paths(build(Config, values), _folder_of_the_command())


def make_sources_importable(sources: Iterable[Any]) -> None:
    """Let a job name the classes of the projects whose configs it was composed from.

    A launcher may have started its process, on any machine, with nothing but the job's config.
    """
    for source in sources:
        if source.schema == "file" and source.provider != "hydra":
            make_importable(source.path)


def folder_of(config: DictConfig, setting: str) -> str:
    """Return a folder that Hydra's node names by the job's options.

    Args:
        config: A job's, with Hydra's node.
        setting: Its place there, as `run.dir`.

    Raises:
        ConfigError: An option that the name is made of is wrong, which says more than the name.
        OmegaConfBaseException: The name itself is.
    """
    for name in ("job.name", "output_subdir"):  # of a file and a folder in it
        value = str(OmegaConf.select(config.hydra, name) or "-")
        reason = (
            "it holds a slash" if {"/", ".."} & {value, *value} else unusable(value, look=False)
        )
        if reason:
            raise ConfigError(f"hydra.{name}={value[:80]}: expected a plain name; {reason}.")
    try:
        return str(OmegaConf.select(config.hydra, setting))
    except OmegaConfBaseException as error:
        # Our resolver's: OmegaConf keeps its words alone, behind its own and before the place.
        said = str(error).partition("ConfigError raised while resolving interpolation: ")[2]
        if said:
            raise ConfigError(said.partition("\n    full_key:")[0]) from error
        typed(config)
        raise


def _folder_of_the_command() -> str:
    """Return where the command was given: a job may work elsewhere (`hydra.job.chdir=true`)."""
    config: Any = HydraConfig.instance().cfg
    return os.getcwd() if config is None else str(config.hydra.runtime.cwd)


def _plain(config: DictConfig, key: str) -> Any:
    value = config[key]
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value


def _require_plain_paths(paths: DictConfig) -> None:
    """Refuse what Hydra, which names the run's folder before anything is typed, reads otherwise."""
    for name in (item.name for item in dataclasses.fields(PathsConfig)):
        path = str(paths[name])
        if not path:
            reason = (
                " (FLAIR2_EXP_ROOT is set and empty)" if "FLAIR2_EXP_ROOT" in os.environ else ""
            )
            raise ConfigError(f"paths.{name} is empty{reason}: expected a folder, as `.`.")
        if path.startswith("~"):
            full = os.path.expanduser(path)
            raise ConfigError(f"paths.{name}={path}: ~ is not expanded here; write {full}.")
        require_usable(f"paths.{name}", path)


@contextmanager
def as_hydra_runs(config: DictConfig, folder: str) -> Iterator[None]:
    """Let `${hydra:…}` resolve as in a run: Hydra sets its own config only when a job begins."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    with open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = os.path.abspath(folder)
    hydra.cfg = cast(HydraConf, config)  # not by `set_config`, which copies all of it
    try:
        yield
    finally:
        hydra.cfg = before


class JobLoader(ConfigLoader):
    """Hydra's config loader, with a memory for the jobs of a sweep.

    Hydra composes each job from its files, in 0.2 s. Jobs that choose the same groups and differ in
    plain values alone, as in `seed=1,2,3`, come from one composition here, whose values are set as
    Hydra sets them.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._parser = OverridesParser.create(loader)
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Return a job's config, as Hydra's own loader composes it."""
        plain, others = self._divided(sweep_overrides)
        if not plain:
            return self._loader.load_sweep_config(master_config, sweep_overrides)
        key = tuple(others)
        if key not in self._bases:
            self._bases[key] = self._loader.load_sweep_config(master_config, others)
        config = copy.deepcopy(self._bases[key])
        try:
            for override in plain:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except Exception:  # a mistake: let Hydra say what is wrong, in words that are explained
            return self._loader.load_sweep_config(master_config, sweep_overrides)
        self._note_overrides(config, sweep_overrides)
        return config

    def _note_overrides(self, config: DictConfig, overrides: Sequence[str]) -> None:
        """Set what Hydra's node says of a job's overrides."""
        naming = config.hydra.job.config.override_dirname
        parsed = self._parser.parse_overrides(list(overrides))
        parts = sorted(
            str(each.input_line) for each in parsed if each.key_or_group not in naming.exclude_keys
        )
        with open_dict(config.hydra):
            config.hydra.overrides.task = list(overrides)
            config.hydra.job.override_dirname = naming.item_sep.join(parts).replace(
                "=", naming.kv_sep
            )

    def _divided(self, overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
        """Return the overrides that only set a value, and all others; the former only if safe."""
        plain: list[Override] = []
        others: list[str] = []
        for override in self._parser.parse_overrides(list(overrides)):
            if self._sets_a_value(override):
                plain.append(override)
            else:
                others.append(str(override.input_line))
        # An override of Hydra's or one that adds or removes may look at the values.
        if all(self._is_group(line.partition("=")[0]) for line in others):
            return plain, others
        return [], list(overrides)

    def _sets_a_value(self, override: Override) -> bool:
        name = override.key_or_group
        own = not override.is_hydra_override() and override.package is None
        sets = not (override.is_add() or override.is_force_add() or override.is_delete())
        whole = not isinstance(override.value(), dict | list) and not override.is_sweep_override()
        return own and sets and whole and not self._is_group(name)

    def _is_group(self, name: str) -> bool:
        if name not in self._groups:
            # Not by the loader's own lists of options, each of which copies all it has read.
            self._groups[name] = any(each.is_group(name) for each in self._loader.get_sources())
        return self._groups[name]

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose as Hydra's own loader does."""
        return self._loader.load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )

    def get_search_path(self) -> ConfigSearchPath:
        """Return the search path of Hydra's own loader."""
        return self._loader.get_search_path()

    def get_sources(self) -> list[ConfigSource]:
        """Return the sources of Hydra's own loader."""
        return self._loader.get_sources()

    def list_groups(self, parent_name: str) -> list[str]:
        """Return the groups that Hydra's own loader knows."""
        return self._loader.list_groups(parent_name)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Return a group's options that Hydra's own loader knows."""
        return self._loader.get_group_options(group_name, results_filter, config_name, overrides)

    def compute_defaults_list(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode
    ) -> Any:
        """Compute the defaults list as Hydra's own loader does."""
        return self._loader.compute_defaults_list(config_name, overrides, run_mode)
