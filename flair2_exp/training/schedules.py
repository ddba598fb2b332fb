"""Learning-rate schedules.

`scheduler._target_` names a class of this module, or another that derives from `Schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from flair2_exp.config.training import SchedulerConfig
from flair2_exp.registry import locate


class Schedule(LRScheduler):
    """What every schedule is: one of torch's, made from (optimizer, options, epochs).

    It is stepped after each epoch; a `ReduceLROnPlateau` with the validation loss. Its attributes
    go into checkpoints and so must be plain values.
    """


def build_schedule(optimizer: Optimizer, options: SchedulerConfig, epochs: int) -> Schedule:
    """Build the course of the learning rate over `epochs` epochs.

    Raises:
        ConfigError: `scheduler._target_` is not a schedule.
    """
    kind: Callable[..., Schedule] = locate(options._target_, Schedule, "scheduler._target_")
    return kind(optimizer, options, epochs)


class Constant(LambdaLR, Schedule):
    """One rate throughout, after a linear rise over `warmup_epochs`."""

    def __init__(self, optimizer: Optimizer, options: SchedulerConfig, epochs: int) -> None:
        super().__init__(optimizer, warmed_up(lambda _: 1.0, options.warmup_epochs))


class Cosine(LambdaLR, Schedule):
    """Half a cosine down to `final_factor` in the last epoch, after a rise as in `Constant`."""

    def __init__(self, optimizer: Optimizer, options: SchedulerConfig, epochs: int) -> None:
        warmup, final = options.warmup_epochs, options.final_factor
        span = max(1, epochs - 1 - warmup)

        def factor(epoch: int) -> float:
            done = min(1.0, (epoch - warmup) / span)
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, warmed_up(factor, warmup))


class Plateau(ReduceLROnPlateau, Schedule):
    """The rate times `factor` after `patience` epochs without a better validation loss."""

    def __init__(self, optimizer: Optimizer, options: SchedulerConfig, epochs: int) -> None:
        super().__init__(optimizer, factor=options.factor, patience=options.patience)


def warmed_up(factor: Callable[[int], float], epochs: int) -> Callable[[int], float]:
    """Return the factor on the learning rate in each epoch (from 0), risen linearly to it first."""

    def risen(epoch: int) -> float:
        return (epoch + 1) / (epochs + 1) if epoch < epochs else factor(epoch)

    return risen


def rates_of(schedule: LambdaLR, epoch: int) -> list[float]:
    """Return the learning rates in an epoch (from 0), one per group of parameters."""
    factors = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    return [float(rate * factor(epoch)) for rate, factor in factors]
