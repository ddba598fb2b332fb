"""Learning-rate schedules.

`scheduler._target_` names a class of this module, or any other
`torch.optim.lr_scheduler.LRScheduler`. It is stepped after each epoch, or after each step of the
optimizer (`scheduler.interval=step`); a `ReduceLROnPlateau` with the validation loss.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from flair2_exp.config.training import SchedulerConfig
from flair2_exp.errors import ConfigError
from flair2_exp.registry import construct, locate, written
from flair2_exp.training.whole import require_plain


def build_schedule(
    optimizer: Optimizer, options: SchedulerConfig, epochs: int, steps_per_epoch: int = 1
) -> LRScheduler:
    """Build the course of the learning rate over `epochs` epochs.

    Its constructor is given, by the names of its arguments, `optimizer`, `options` (the
    `SchedulerConfig`), `epochs`, `steps_per_epoch` and `total_steps` (how often it is stepped in an
    epoch, and in all); its other arguments are `scheduler.options`, which may also set the latter
    three.

    Args:
        optimizer: Its rates are those of the beginning.
        options: Of the schedule.
        epochs: Of the training.
        steps_per_epoch: Of the optimizer; counts with `scheduler.interval=step` alone.

    Raises:
        ConfigError: `scheduler._target_` is not a schedule, or does not take its options, or makes
            one rate of the different ones of the optimizer's groups.
    """
    steps = steps_per_epoch if options.interval == "step" else 1
    given = {"epochs": epochs, "steps_per_epoch": steps, "total_steps": epochs * steps}
    given = {name: value for name, value in given.items() if name not in options.options}
    before = {group["lr"] for group in optimizer.param_groups}
    try:
        schedule = construct(
            LRScheduler,
            options._target_,
            "scheduler.options",
            given={"optimizer": optimizer, "options": options, **given},
            options=options.options,
            target="scheduler._target_",
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"scheduler.options: {str(error).rstrip('.')}.\n"
            f"{options._target_} has these options: {dict(options.options)}."
        ) from error
    if len(before) > 1 and len({group["lr"] for group in optimizer.param_groups}) == 1:
        raise ConfigError(
            f"scheduler._target_={options._target_} sets one rate for all parameters: omit "
            "optimizer.encoder_lr_factor and optimizer.layer_decay, or choose another schedule."
        )
    return schedule


def require_kept(schedule: LRScheduler) -> None:
    """Refuse a schedule whose state no checkpoint can hold.

    Raises:
        ConfigError: It is more than tensors and plain values.
    """
    require_plain(schedule.state_dict(), written(type(schedule)))


def is_planned(options: SchedulerConfig) -> bool:
    """Return whether a schedule's state is made for the number of epochs of its training.

    Ours follow whatever number the training that resumes has.
    """
    kind: Callable[..., LRScheduler] = locate(options._target_, LRScheduler, "scheduler._target_")
    if isinstance(kind, type) and issubclass(kind, LambdaLR):
        return False
    return bool(
        {"epochs", "steps_per_epoch", "total_steps"} & set(inspect.signature(kind).parameters)
    )


class Constant(LambdaLR):
    """One rate throughout, after a linear rise over `warmup_epochs`."""

    def __init__(
        self, optimizer: Optimizer, options: SchedulerConfig, steps_per_epoch: int
    ) -> None:
        super().__init__(
            optimizer, warmed_up(lambda _: 1.0, options.warmup_epochs * steps_per_epoch)
        )


class Cosine(LambdaLR):
    """Half a cosine down to `final_factor` in the last step, after a rise as in `Constant`."""

    def __init__(
        self, optimizer: Optimizer, options: SchedulerConfig, total_steps: int, steps_per_epoch: int
    ) -> None:
        warmup, final = options.warmup_epochs * steps_per_epoch, options.final_factor
        span = max(1, total_steps - 1 - warmup)

        def factor(step: int) -> float:
            done = min(1.0, (step - warmup) / span)
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, warmed_up(factor, warmup))


class Plateau(ReduceLROnPlateau):
    """The rate times `factor` after `patience` epochs without a better validation loss."""

    def __init__(self, optimizer: Optimizer, options: SchedulerConfig) -> None:
        super().__init__(optimizer, factor=options.factor, patience=options.patience)


def warmed_up(factor: Callable[[int], float], steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate in each step (from 0), risen linearly to it first."""

    def risen(step: int) -> float:
        return (step + 1) / (steps + 1) if step < steps else factor(step)

    return risen


def rates_of(schedule: LambdaLR, step: int) -> list[float]:
    """Return the learning rates in a step (from 0), one per group of parameters."""
    factors = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    return [float(rate * factor(step)) for rate, factor in factors]
