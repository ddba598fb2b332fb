"""Sweeps planned and made by hand, for tests: composed as a command composes them, and not run."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig

from flair2_exp.compat import opened_hydra
from flair2_exp.config.compose import JobLoader
from flair2_exp.config.groups import config_folder
from flair2_exp.lifecycle.record import FINISHED, RunRecord
from flair2_exp.sweeps.plan import Job, Plan, Planner, split

SUBDIR = "${name}/seed=${seed}"
NAME = "made"


@functools.cache
def _composed(subdir: str, *sweep: str) -> tuple[DictConfig, JobLoader]:
    """A sweep's config and a loader of its jobs, made once per process: composing is slow."""
    lines = [f"hydra.sweep.subdir='{subdir}'", *sweep]
    with opened_hydra("flair2_exp", config_folder(), None) as hydra:
        master = hydra.compose_config("config", lines, RunMode.MULTIRUN)
        return master, JobLoader(hydra.config_loader)


class OfTheSweep(JobLoader):
    """Composes the jobs of a sweep whose config a test has changed, as before the change."""

    def __init__(self, loader: JobLoader, master: DictConfig) -> None:
        super().__init__(loader)
        self._master = copy.deepcopy(master)

    def load_sweep_config(self, master_config: DictConfig, overrides: list[str]) -> DictConfig:
        return self._loader.load_sweep_config(self._master, overrides)


def sweep_folder(root: Path) -> Path:
    """Where the sweep below a root is."""
    return root / "multirun" / NAME


def of_sweep(root: Path) -> list[str]:
    """The overrides that all jobs of the sweep below a root have."""
    return [f"paths.root={root}", f"sweep.name={NAME}"]


def sweep_config(
    root: Path, subdir: str = SUBDIR, lines: Sequence[str] = ()
) -> tuple[DictConfig, JobLoader]:
    """The config of a sweep below a root, as its sweeper has it, and the loader of its jobs."""
    master, loader = _composed(subdir, *(line for line in lines if line.startswith("sweep=")))
    master = copy.deepcopy(master)
    master.paths.root, master.sweep.name = str(root), NAME
    return master, loader


def plan(root: Path, *lines: str, subdir: str = SUBDIR, **params: str) -> Plan:
    """Plan the jobs of a command's overrides, and of `hydra.sweeper.params`."""
    master, loader = sweep_config(root, subdir, lines)
    return Planner(master, loader).plan(split([*lines, *of_sweep(root)], params, loader))


def planned(root: Path, *lines: str, subdir: str = SUBDIR, **params: str) -> list[Job]:
    """Return the jobs of a plan."""
    return plan(root, *lines, subdir=subdir, **params).jobs


def finish(
    job: Job, status: str = FINISHED, fingerprint: str = "data", seconds: float = 0.0
) -> None:
    """Leave in a job's folder what a run leaves that ended so."""
    record = RunRecord.of(job.config, job.fingerprint or fingerprint, job.folder)
    record.status = status
    record.write(job.folder)
    job.folder.metrics.write_text(json.dumps({"train/seconds": seconds, "test/miou": 0.5}))
    job.refresh()
