"""Optimizers, by their dotted paths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flair2_exp.config.training import OptimizerConfig
from flair2_exp.errors import ConfigError
from flair2_exp.registry import arguments_of, locate
from flair2_exp.training.encoder import encoder_of, stages_of

Groups = Sequence[nn.Parameter | dict[str, Any]]
"""What torch's optimizers take: the parameters, or groups of them with options of their own."""


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    network: nn.Module,
    options: OptimizerConfig,
    image: Sequence[int],
) -> Groups:
    """Return the parameters that are trained, in groups of one learning rate and weight decay.

    With the default options they are one list, as they came. Otherwise the group at the optimizer's
    own rate comes first.

    Args:
        parameters: Of all that is trained, the network's among them.
        network: Its encoder may have rates of its own.
        options: Of the optimizer.
        image: Bands, height and width of the encoder's images.

    Raises:
        ConfigError: The network has no encoder, or one whose stages cannot be told apart.
    """
    trained = [each for each in parameters if each.requires_grad]
    factors = _encoder_factors(network, options, image)
    if not factors and options.decay_norms:
        return trained
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for each in trained:
        decays = options.decay_norms or each.ndim > 1
        grouped.setdefault((factors.get(id(each), 1.0), decays), []).append(each)
    groups: list[nn.Parameter | dict[str, Any]] = []
    for factor, decays in sorted(grouped, key=lambda key: (key[0] != 1, -key[0], not key[1])):
        group: dict[str, Any] = {"params": grouped[factor, decays], "lr": options.lr * factor}
        groups.append(group if decays else {**group, "weight_decay": 0.0})
    return groups


def _encoder_factors(
    network: nn.Module, options: OptimizerConfig, image: Sequence[int]
) -> dict[int, float]:
    """Return the factor on the rate of each of the encoder's parameters, by the parameter's id."""
    if options.encoder_lr_factor == 1 and options.layer_decay == 1:
        return {}
    option = "encoder_lr_factor" if options.encoder_lr_factor != 1 else "layer_decay"
    encoder = encoder_of(network, f"optimizer.{option}")
    trained = [each for each in encoder.parameters() if each.requires_grad]
    if options.layer_decay == 1 or not trained:
        return dict.fromkeys(map(id, trained), options.encoder_lr_factor)
    stages = stages_of(encoder, image)
    return {
        key: options.encoder_lr_factor * options.layer_decay ** (max(stages.values()) - stage)
        for key, stage in stages.items()
    }


def build_optimizer(
    parameters: Iterable[nn.Parameter | dict[str, Any]], options: OptimizerConfig
) -> Optimizer:
    """Build the optimizer over parameters, or groups of them (`parameter_groups`).

    Raises:
        ConfigError: It does not exist, or does not take its options or these parameters.
    """
    kind: Callable[..., Optimizer] = locate(options._target_, Optimizer, "optimizer._target_")
    given = {"lr": options.lr, "weight_decay": options.weight_decay}
    arguments = arguments_of(
        kind, "optimizer.options", given=given, options=options.options, skip=1
    )
    if options.weight_decay and "weight_decay" not in arguments:
        raise ConfigError(
            f"optimizer.weight_decay={options.weight_decay}: {options._target_} has no weight "
            "decay; use optimizer.weight_decay=0."
        )
    with _refused_in_words(kind, options):
        return kind(parameters, **arguments)


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
