"""The engines as Hydra's launchers: `hydra/launcher=slots`, `slurm`, `ray`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from flair2_exp.config.compose import as_hydra_runs, folder_of, typed
from flair2_exp.config.engines import EngineConfig, RayConfig, SlotsConfig, SlurmConfig
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import build, plain
from flair2_exp.engines.commands import command_of
from flair2_exp.engines.engine import DONE, STOPPED, Ending
from flair2_exp.engines.job import JobCommand
from flair2_exp.engines.pool import Pool
from flair2_exp.engines.watching import build_engine
from flair2_exp.errors import FlairError
from flair2_exp.lifecycle.experiment import objective
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord, read_metrics
from flair2_exp.optuna_sweeper.config import store_once
from flair2_exp.optuna_sweeper.plugin import register_plugin
from flair2_exp.signals import Terminated

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.types import HydraContext, TaskFunction


class JobFailedError(FlairError):
    """A job of an engine failed."""


class EngineLauncher(Launcher):
    """Runs each job as a process of its own.

    Sweepers that know it use `pool` and `command`; for others it is a launcher as any.
    """

    name: ClassVar[str]
    group: ClassVar[type[EngineConfig]]

    def __init__(self, **options: Any) -> None:
        values: Any = OmegaConf.to_container(OmegaConf.create(options), resolve=True)
        self.options = build(self.group, values, "hydra.launcher.")
        self.config: DictConfig | None = None
        self.loader: ConfigLoader | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what the jobs' commands are made of (called by Hydra)."""
        self.config, self.loader = config, hydra_context.config_loader

    def pool(self) -> Pool:
        """Return a pool for this command's jobs on a new engine.

        Raises:
            FlairError: The engine cannot be used here.
        """
        return Pool(build_engine(self.name, self.options), self.options.retries)

    def command(self, overrides: Sequence[str], number: int, title: str = "") -> EngineJob:
        """Compose a job.

        Args:
            overrides: As a sweeper makes them; `hydra.sweep.subdir` may be among them.
            number: Of the job.
            title: What it is called in queues; empty: by its sweep, row and seed.

        Raises:
            FlairError: Its config is refused.
        """
        if self.config is None or self.loader is None:
            raise RuntimeError("setup() comes before command()")
        config = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        root = Path(folder_of(config, "sweep.dir")).absolute()
        folder = RunFolder(root / folder_of(config, "sweep.subdir"))
        with as_hydra_runs(config, str(folder)):
            experiment = typed(config)
        command = command_of(self.config, experiment, overrides, folder, number, title)
        return EngineJob(command, experiment)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs and wait for all (called by Hydra's other sweepers)."""
        pool = self.pool()
        jobs = [
            self.command(list(overrides), initial_job_idx + place)
            for place, overrides in enumerate(job_overrides)
        ]
        pool.engine.require([job.command for job in jobs])
        returns: dict[int, JobReturn] = {}
        with pool.until_ended():
            for job in jobs:
                pool.add(job.command)
            while len(pool):
                for command, ending in pool.poll():
                    place = command.number - initial_job_idx
                    returns[place] = jobs[place].result(ending)
                time.sleep(pool.engine.interval)
        return [returns[place] for place in range(len(jobs))]


class EngineJob:
    """A job that is ready to be started.

    Attributes:
        command: What an engine starts.
        config: Its checked config.
    """

    def __init__(self, command: JobCommand, config: Config) -> None:
        self.command = command
        self.config = config

    def result(self, ending: Ending) -> JobReturn:
        """Return what the job came to, as a launcher does: the objective, or what was raised."""
        result = JobReturn(overrides=list(self.command.words), status=JobStatus.FAILED)
        try:
            if ending.cause == STOPPED:
                raise Terminated
            record = RunRecord.read(self.command.folder)
            if ending.cause != DONE:
                from flair2_exp.training.pruning import UnknownObjectiveError

                if record is not None and record.error.startswith(UnknownObjectiveError.__name__):
                    raise UnknownObjectiveError(ending.reason)
                raise JobFailedError(f"{ending.reason} ({self.command.folder.output})")
            scores = record.scores if record else read_metrics(self.command.folder)
            result.return_value = objective(self.config, scores)
            result.status = JobStatus.COMPLETED
        except (FlairError, Terminated) as error:
            result.return_value = error
        return result


class SlotsLauncher(EngineLauncher):
    """`hydra/launcher=slots`."""

    name, group = "slots", SlotsConfig


class SlurmLauncher(EngineLauncher):
    """`hydra/launcher=slurm`."""

    name, group = "slurm", SlurmConfig


class RayLauncher(EngineLauncher):
    """`hydra/launcher=ray`."""

    name, group = "ray", RayConfig


LAUNCHERS: Final = (SlotsLauncher, SlurmLauncher, RayLauncher)


def engine_of(launcher: DictConfig) -> str:
    """Return the name of the engine that `hydra.launcher` names; "" for launchers of others."""
    package, _, kind = str(launcher._target_).rpartition(".")
    names = {each.__name__: each.name for each in LAUNCHERS}
    return names.get(kind, "") if "flair2_exp" in package else ""


def register() -> None:
    """Make the engines known to Hydra as launchers; that may be repeated."""
    for kind in LAUNCHERS:
        node = {"_target_": register_plugin(kind, "flair2_exp"), **plain(kind.group())}
        store_once("hydra/launcher", kind.name, node, provider="flair2_exp")
