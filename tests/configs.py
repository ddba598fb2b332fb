"""Composing configs in tests, and running them."""

from __future__ import annotations

import json
from pathlib import Path

from hydra import compose, initialize_config_dir

from flair2_exp.config import schema
from flair2_exp.run import experiment, results

SMALL_SAMPLE = (
    "dataset.sample.patch_size=64",
    "dataset.sample.domains=6",
    "dataset.sample.areas_per_domain=1",
    "dataset.sample.patches_per_area=4",
)
"""Overrides for the smallest sample on which every split has patches."""


def compose_config(*overrides: str) -> schema.Config:
    """The checked config of a command line."""
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        return schema.typed(compose("config", list(overrides)))


def run(root: Path, folder: Path, *overrides: str) -> dict[str, float]:
    """Run an experiment in this process, on the smallest sample below `root`; its metrics."""
    sample = () if "dataset=flair2" in overrides else SMALL_SAMPLE
    config = compose_config(
        f"paths.root={root}", "preset=debug", "tracking=off", "trainer=cpu", *sample, *overrides
    )
    experiment.run(config, folder, overrides)
    metrics: dict[str, float] = json.loads((folder / results.METRICS).read_text())
    return metrics
