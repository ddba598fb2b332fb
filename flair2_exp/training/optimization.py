"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from flair2_exp.errors import ConfigError
from flair2_exp.registry import locate


@dataclass(frozen=True)
class OptimizerOptions:
    """An optimizer of `torch.optim` by its dotted path, and its arguments."""

    target: str = "torch.optim.SGD"
    lr: float = 1e-3
    weight_decay: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SchedulerOptions:
    """The learning rate's course: `none`, `cosine` or `plateau`; the latter has no warm-up."""

    name: str = "none"
    warmup_epochs: int = 0
    final_factor: float = 0.01
    factor: float = 0.5
    patience: int = 10

    def __post_init__(self) -> None:
        """Refuses a warm-up that would not happen.

        Raises:
            ConfigError: If one is asked of `plateau`.
        """
        if self.name == "plateau" and self.warmup_epochs:
            raise ConfigError(
                f"scheduler.warmup_epochs={self.warmup_epochs}: scheduler=plateau has no warm-up; "
                "use scheduler=none or cosine, or warmup_epochs=0."
            )


def build_scheduler(
    optimizer: Optimizer, options: SchedulerOptions, *, epochs: int
) -> LambdaLR | ReduceLROnPlateau:
    """The learning rate's course over `epochs` epochs."""
    if options.name == "plateau":
        return ReduceLROnPlateau(optimizer, factor=options.factor, patience=options.patience)
    return LambdaLR(optimizer, learning_rate_course(options, epochs))


def build_optimizer(parameters: Iterable[nn.Parameter], options: OptimizerOptions) -> Optimizer:
    """The optimizer over `parameters`.

    Raises:
        ConfigError: It does not exist or does not take its options.
    """
    kind: Callable[..., Optimizer] = locate(options.target, Optimizer)
    try:
        optimizer: Optimizer = kind(
            parameters, lr=options.lr, weight_decay=options.weight_decay, **options.options
        )
    except (TypeError, ValueError) as error:
        takes = ", ".join(list(inspect.signature(kind).parameters)[1:])
        raise ConfigError(f"optimizer: {error}. {options.target} takes {takes}.") from error
    return optimizer


def learning_rate_course(options: SchedulerOptions, epochs: int) -> Callable[[int], float]:
    """The factor on the learning rate in each epoch, counted from 0.

    Warm-up rises linearly to 1 over `warmup_epochs`; then it stays (`none`) or falls along half a
    cosine to `final_factor` in the last epoch.
    """

    def factor(epoch: int) -> float:
        if epoch < options.warmup_epochs:
            return (epoch + 1) / (options.warmup_epochs + 1)
        if options.name != "cosine":
            return 1.0
        span = max(1, epochs - 1 - options.warmup_epochs)
        done = min(1.0, (epoch - options.warmup_epochs) / span)
        return (
            options.final_factor + (1 - options.final_factor) * (1 + math.cos(math.pi * done)) / 2
        )

    return factor
