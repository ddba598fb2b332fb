"""Composing configs in tests, and running them."""

from __future__ import annotations

import functools
from pathlib import Path

from hydra import version
from hydra.types import RunMode
from omegaconf import DictConfig

from flair2_exp.compat import opened_hydra
from flair2_exp.config.compose import JobLoader, typed
from flair2_exp.config.experiment import Config
from flair2_exp.config.groups import config_folder
from flair2_exp.lifecycle.experiment import run as run_experiment
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_metrics

SMALL_SAMPLE = (
    "dataset.sample.patch_size=64",
    "dataset.sample.domains=6",
    "dataset.sample.areas_per_domain=1",
    "dataset.sample.patches_per_area=4",
)
"""Overrides for the smallest sample on which every split has patches."""


@functools.cache
def _loader() -> tuple[DictConfig, JobLoader]:
    """A command's config and a loader of its jobs, made once per process: composing is slow."""
    with opened_hydra("flair2_exp", config_folder(), None) as hydra:
        return hydra.compose_config("config", [], RunMode.RUN), JobLoader(hydra.config_loader)


def compose_config(*overrides: str) -> Config:
    """Return the checked config of a command line."""
    master, loader = _loader()
    version.setbase("1.3")  # tests of Hydra's own may have set it back
    if any(each.startswith(("sweep=", "tune=")) for each in overrides):  # are no job's
        return typed(loader.load_configuration("config", list(overrides), RunMode.RUN))
    return typed(loader.load_sweep_config(master, list(overrides)))


def run(root: Path, folder: Path, *overrides: str) -> dict[str, float]:
    """Run an experiment in this process, on the smallest sample below `root`."""
    sample = () if "dataset=flair2" in overrides else SMALL_SAMPLE
    config = compose_config(
        f"paths.root={root}", "preset=debug", "tracking=off", "trainer=cpu", *sample, *overrides
    )
    run_experiment(config, folder, overrides)
    return read_metrics(RunFolder(folder))
