"""What the benchmarks of the networks measure and feed: FLAIR #2's sizes, random values."""

from __future__ import annotations

from typing import Any, Final

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn import functional

from flair2_exp.cli.main import register
from flair2_exp.config.compose import typed
from flair2_exp.config.groups import config_folder
from flair2_exp.lifecycle.assembly import network_spec
from flair2_exp.models.registry import accelerate, build_network

BATCH: Final = 2
"""On a processor."""
PATCH: Final = 512
CLASSES: Final = 13
BANDS: Final = 5
Inputs = dict[str, Tensor]


def network(name: str, *options: str) -> Any:
    """Build a network of conf/model in training mode, with overrides (`model.compile=true`)."""
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = typed(compose("config", [f"model={name}", *options]))
    built = build_network(network_spec(config, PATCH), pretrained=False)
    accelerate(built, config.model)
    return built.train()


def summed_loss(logits: Inputs, label: Tensor) -> Tensor:
    """Return the sum of both heads' cross-entropies."""
    return torch.stack([functional.cross_entropy(each, label) for each in logits.values()]).sum()


def series_inputs(dates: int, *, real: int | None = None, batch: int = BATCH) -> Inputs:
    """Return a random series of `dates` dates, the first `real` of which (or all) are real."""
    padding = torch.arange(dates).expand(batch, dates) >= (dates if real is None else real)
    series = torch.rand(batch, dates, 10, 40, 40)
    series[padding] = 0
    days = torch.linspace(-180, 180, dates).round().expand(batch, dates)
    return {"series": series, "days": days, "padding": padding}
