"""Sweeps whose jobs only write their record, in place of training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf, open_dict

from flair2_exp.config.experiment import Config
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FINISHED, RunRecord, read_metrics
from flair2_exp.sweeps.ablation import AblationSweeper
from flair2_exp.sweeps.failures import Traced
from tests.sweeps.plans import OfTheSweep, of_sweep, planned, sweep_config, sweep_folder

Behaviour = Callable[[int, Path], None]
"""What a job with this seed does in its folder."""

FIXED = ("tracking=off", "preset=debug")
SUBDIR = "seed=${seed}"


class LauncherError(Exception):
    """A launcher's own exception, which ends the launch of a whole batch."""


@cache
def _config(root: Path) -> Config:
    (job,) = planned(root, "seed=1", *FIXED, subdir=SUBDIR)
    return job.config


def config_of(seed: int, root: Path) -> Config:
    """The config of a job of the sweep below a root, composed once for all its jobs."""
    return dataclasses.replace(_config(root), seed=seed)


def ends(seed: int, path: Path, status: str = FINISHED, error: str = "") -> None:
    """Leave a run's record in its folder, and a score if it has finished."""
    folder = RunFolder(path)
    record = RunRecord.of(config_of(seed, path.parents[2]), "data", folder)
    record.status, record.error = status, error
    record.write(folder)
    if status == FINISHED:
        folder.metrics.write_text(json.dumps(read_metrics(folder) | {"test/miou": 0.5}))


def record_of(path: Path) -> RunRecord:
    """The record in a folder, which must hold one."""
    record = RunRecord.read(RunFolder(path))
    assert record is not None
    return record


class Launcher:
    """Runs jobs in turn as a launcher of several does; it lets `LauncherError` through."""

    def __init__(self, folder: Path, behaviour: Behaviour) -> None:
        self.folder, self.behaviour = folder, behaviour
        self.launches: list[list[int]] = []

    def launch(self, jobs: list[list[str]], first: int) -> list[JobReturn]:
        seeds = [int(str(job).partition("seed=")[2][0]) for job in jobs]
        self.launches.append(seeds)
        returns = []
        for seed in seeds:
            task = Traced(lambda _, s=seed: self.behaviour(s, self.folder / f"seed={s}"))
            result = JobReturn(status=JobStatus.COMPLETED)
            try:
                task(OmegaConf.create())
            except LauncherError:
                raise
            except Exception as error:
                result.status, result.return_value = JobStatus.FAILED, error
            returns.append(result)
        return returns


class MadeSweep:
    """A sweep over four seeds, with jobs that only behave."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, sweep_folder(root)
        self.launcher = Launcher(self.folder, lambda seed, folder: None)

    def run(
        self, behaviour: Behaviour, *options: str, overrides: Sequence[str] = (), **launcher: Any
    ) -> None:
        """Run it, with options of the node `sweep`, jobs' overrides, and parts of the launcher."""
        sweeper = AblationSweeper()
        config, loader = sweep_config(self.root, SUBDIR)
        sweeper.config_loader = OfTheSweep(loader, config)
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(options)))
        with open_dict(config):
            config.hydra.launcher = {"_target_": "Launcher", **launcher}
        sweeper.config = config  # type: ignore[assignment]
        self.launcher = sweeper.launcher = Launcher(self.folder, behaviour)  # type: ignore[assignment]
        sweeper.sweep(["seed=1,2,3,4", *FIXED, *overrides, *options, *of_sweep(self.root)])

    @property
    def launches(self) -> list[list[int]]:
        """The seeds of each launch."""
        return self.launcher.launches


def works(seed: int, folder: Path) -> None:
    """Finish."""
    ends(seed, folder)
