"""Checks of a config that need torch and its companions, and no data: for before a sweep."""

from __future__ import annotations

import torch
from torch import nn

from flair2_exp.config.training import LossConfig, OptimizerConfig, SchedulerConfig
from flair2_exp.models.registry import NetworkSpec, build_network, main_head
from flair2_exp.nomenclature import Nomenclature, flair
from flair2_exp.training.losses import build_loss
from flair2_exp.training.optimizers import build_optimizer, require_step
from flair2_exp.training.schedules import build_schedule


def require_feasible(
    spec: NetworkSpec,
    optimizer: OptimizerConfig,
    scheduler: SchedulerConfig,
    loss: LossConfig,
    epochs: int,
    nomenclature: Nomenclature | None = None,
) -> None:
    """Refuse what could not be trained: network, optimizer, schedule and loss.

    No weights are read or downloaded, and whether this machine has the device is not asked: the
    jobs may run on another.

    Args:
        spec: Of the network.
        optimizer: Of the optimizer.
        scheduler: Of the schedule.
        loss: Of the loss.
        epochs: `trainer.max_epochs`.
        nomenclature: Of the data; None is FLAIR #2's of as many classes.

    Raises:
        ConfigError: Something does not exist or does not take its options.
        ModelError: The network cannot be built.
    """
    network = _without_memory(spec)
    names = (nomenclature or flair(spec.classes)).names
    build_loss(loss, names, main_head(network, spec.reads))
    # Of the parameters' shapes, on the processor: some optimizers look at the device.
    parameters = [
        nn.Parameter(torch.zeros(()).expand(each.shape))
        for each in network.parameters()
        if each.requires_grad
    ]
    require_step({each.ndim for each in parameters}, optimizer)
    build_schedule(build_optimizer(parameters, optimizer), scheduler, epochs)


def _without_memory(spec: NetworkSpec) -> nn.Module:
    """Build a network on the meta device; where it looks at values while it is built, for real."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build_network(spec, pretrained=False)
        except Exception:  # of whatever kind: the network itself then says what is wrong, if it is
            return build_network(spec, pretrained=False)
