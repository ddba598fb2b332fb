"""Optimizers, by their dotted paths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
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
    with _refused_in_words(kind, options):
        return kind(parameters, lr=options.lr, weight_decay=options.weight_decay, **options.options)


def require_step(dimensions: Iterable[int], options: OptimizerConfig) -> None:
    """Refuse an optimizer that takes its options and stumbles over them in its first two steps.

    It is tried on the processor, on small parameters; what it asserts about the device, it may find
    true on another.

    Args:
        dimensions: Of the parameters that are trained: 1 for a vector.
        options: Of the optimizer.

    Raises:
        ConfigError: It cannot make a step.
    """
    parameters = [nn.Parameter(torch.zeros((2,) * count)) for count in set(dimensions)]
    for each in parameters:
        each.grad = torch.zeros_like(each)
    optimizer = build_optimizer(parameters, options)
    with _refused_in_words(type(optimizer), options), suppress(AssertionError):
        for _ in range(2):
            optimizer.step(lambda: 0.0)


@contextmanager
def _refused_in_words(kind: Callable[..., Optimizer], options: OptimizerConfig) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        takes = ", ".join(list(inspect.signature(kind).parameters)[1:])
        given = f" with optimizer.options={dict(options.options)}" if options.options else ""
        raise ConfigError(
            f"optimizer: {str(error).rstrip('.')}{given}.\n{options._target_} takes {takes}."
        ) from error
