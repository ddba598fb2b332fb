"""Composing configs in tests, and running them."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir

from flair2_exp.config.compose import typed
from flair2_exp.config.experiment import Config
from flair2_exp.config.groups import config_folder
from flair2_exp.run.experiment import run as run_experiment
from flair2_exp.run.folder import RunFolder
from flair2_exp.run.record import read_metrics

SMALL_SAMPLE = (
    "dataset.sample.patch_size=64",
    "dataset.sample.domains=6",
    "dataset.sample.areas_per_domain=1",
    "dataset.sample.patches_per_area=4",
)
"""Overrides for the smallest sample on which every split has patches."""


def compose_config(*overrides: str) -> Config:
    """Return the checked config of a command line."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return typed(compose("config", list(overrides)))


def run(root: Path, folder: Path, *overrides: str) -> dict[str, float]:
    """Run an experiment in this process, on the smallest sample below `root`."""
    sample = () if "dataset=flair2" in overrides else SMALL_SAMPLE
    config = compose_config(
        f"paths.root={root}", "preset=debug", "tracking=off", "trainer=cpu", *sample, *overrides
    )
    run_experiment(config, folder, overrides)
    return read_metrics(RunFolder(folder))
