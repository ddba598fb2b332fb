"""Composing configs in tests."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from flair2_exp import schema

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
