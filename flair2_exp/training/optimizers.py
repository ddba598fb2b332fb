"""Optimizers, by their dotted paths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import Optimizer

from flair2_exp.config.training import OptimizerConfig
from flair2_exp.errors import ConfigError
from flair2_exp.registry import locate


def build_optimizer(parameters: Iterable[nn.Parameter], options: OptimizerConfig) -> Optimizer:
    """Build the optimizer over `parameters`.

    Raises:
        ConfigError: It does not exist, or does not take its options or these parameters.
    """
    kind: Callable[..., Optimizer] = locate(options._target_, Optimizer, "optimizer._target_")
    try:
        return kind(parameters, lr=options.lr, weight_decay=options.weight_decay, **options.options)
    except (TypeError, ValueError, RuntimeError) as error:
        takes = ", ".join(list(inspect.signature(kind).parameters)[1:])
        raise ConfigError(
            f"optimizer: {str(error).rstrip('.')}.\n{options._target_} takes {takes}."
        ) from error
