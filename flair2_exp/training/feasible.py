"""Checks of a config that need torch and its companions, and no data: for before a sweep."""

from __future__ import annotations

import torch
from torch import nn

from flair2_exp.config.training import (
    CallbacksConfig,
    LossConfig,
    MetricConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from flair2_exp.models.registry import NetworkSpec, build_network, main_head
from flair2_exp.nomenclature import Nomenclature, flair
from flair2_exp.training.callbacks import build_callbacks
from flair2_exp.training.encoder import encoder_of
from flair2_exp.training.losses import build_loss, require_loss
from flair2_exp.training.metrics import require_metrics
from flair2_exp.training.optimizers import Groups, build_optimizer, parameter_groups, require_step
from flair2_exp.training.schedules import build_schedule, require_kept


def require_feasible(
    spec: NetworkSpec,
    optimizer: OptimizerConfig,
    scheduler: SchedulerConfig,
    loss: LossConfig,
    epochs: int,
    nomenclature: Nomenclature | None = None,
    metric: MetricConfig | None = None,
    callbacks: CallbacksConfig | None = None,
) -> None:
    """Refuse what could not be trained: network, optimizer, schedule, loss, metrics, callbacks.

    No weights are read or downloaded, and whether this machine has the device is not asked: the
    jobs may run on another.

    Args:
        spec: Of the network.
        optimizer: Of the optimizer.
        scheduler: Of the schedule.
        loss: Of the loss.
        epochs: `trainer.max_epochs`.
        nomenclature: Of the data; None is FLAIR #2's of as many classes.
        metric: Of the score, with the further metrics.
        callbacks: Of the callbacks, with the further ones.

    Raises:
        ConfigError: Something does not exist or does not take its options.
        ModelError: The network cannot be built.
    """
    network = _without_memory(spec)
    nomenclature = nomenclature or flair(spec.classes)
    require_loss(build_loss(loss, nomenclature.names, main_head(network, spec.reads)), spec.classes)
    if spec.model.freeze_encoder:
        encoder = encoder_of(network, "model.freeze_encoder")
        if spec.model.freeze_encoder < 0:
            encoder.requires_grad_(False)
    callbacks = callbacks or CallbacksConfig()
    build_callbacks(callbacks)
    require_metrics(
        metric or MetricConfig(),
        callbacks.best,
        spec.classes,
        has_other=nomenclature.has_other,
    )
    image = (spec.bands, spec.patch_size, spec.patch_size)
    groups = _on_the_processor(parameter_groups(network.parameters(), network, optimizer, image))
    require_step({each.ndim for each in network.parameters() if each.requires_grad}, optimizer)
    schedule = build_schedule(build_optimizer(groups, optimizer), scheduler, epochs)
    require_kept(schedule)


def _on_the_processor(groups: Groups) -> Groups:
    """Return groups of parameters of the same shapes: some optimizers look at the device."""

    def stand_in(parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(torch.zeros(()).expand(parameter.shape))

    return [
        {**each, "params": [stand_in(one) for one in each["params"]]}
        if isinstance(each, dict)
        else stand_in(each)
        for each in groups
    ]


def _without_memory(spec: NetworkSpec) -> nn.Module:
    """Build a network on the meta device; where it looks at values while it is built, for real."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build_network(spec, pretrained=False)
        except Exception:  # of whatever kind: the network itself then says what is wrong, if it is
            return build_network(spec, pretrained=False)
