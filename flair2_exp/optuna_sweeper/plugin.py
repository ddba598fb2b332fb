"""The class that Hydra knows: light to import, it hands over to `search` when a sweep starts."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Final

from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from .config import OptunaStudyConf, store_configs
from .errors import SweepError

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction

OPTUNA_RANGE: Final = (4, 6)  # first major version that works, first that is unknown


class OptunaStudySweeper(Sweeper):
    """A sweeper that runs the trials of an Optuna study through Hydra's launchers."""

    def __init__(self, **options: object) -> None:
        self.options = options  # the fields of `OptunaStudyConf`, as Hydra hands them over
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what the sweep needs and make its launcher (called by Hydra)."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run the search; return Hydra's `JobReturn`s, one list for each call of the launcher.

        Raises:
            SweepError: The search cannot be run as configured, or too many of its trials failed.
        """
        check_optuna()
        from .search import Search

        if self.config is None or self.launcher is None or self.hydra_context is None:
            raise RuntimeError("setup() comes before sweep()")
        return Search(
            options=OptunaStudyConf(**{k: _plain(value) for k, value in self.options.items()}),
            config=self.config,
            launcher=self.launcher,
            config_loader=self.hydra_context.config_loader,
            arguments=arguments,
        ).run()


def check_optuna() -> None:
    """Refuse a version of Optuna that the sweeper was not made for.

    Raises:
        SweepError: It is missing or outside of the range.
    """
    low, high = OPTUNA_RANGE
    needed = f"the sweeper needs optuna>={low},<{high} (pip install 'optuna>={low},<{high}')"
    try:
        version = importlib.metadata.version("optuna")
    except importlib.metadata.PackageNotFoundError:
        raise SweepError(f"Optuna is not installed; {needed}.") from None
    if not low <= int(version.partition(".")[0]) < high:
        raise SweepError(f"Optuna {version} is installed; {needed}.")


def _plain(value: object) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def register_plugin(kind: type[Plugin], package: str) -> str:
    """Make a sweeper or launcher known to Hydra, in a package of its own; return its `_target_`.

    That may be repeated.
    """
    plugins = Plugins.instance()
    plugins.register(kind)
    target = f"{kind.__module__}.{kind.__qualname__}"
    if hasattr(plugins, "is_in_toplevel_plugins_module"):
        # Hydra 1.3 instantiates a plugin only by a name below `hydra_plugins`, also one that was
        # registered by hand. It looks that name up in this table; 1.4 has no such rule.
        target = f"hydra_plugins.{package}.{kind.__qualname__}"
        plugins.class_name_to_class[target] = kind
    return target


def register() -> None:
    """Make the sweeper and its config groups known to Hydra; that may be repeated."""
    store_configs(register_plugin(OptunaStudySweeper, "optuna_study"))
