"""What training keeps for the backward pass, and what it works out again.

A convolution is dear to repeat; normalisation, ReLU and padding are not, yet their results take
most of the memory. The functions here run a part of a network so that only the dear results are
kept (torch's selective activation checkpointing). Values and gradients stay the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

Result = TypeVar("Result")
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
_KEEP = CheckpointPolicy.MUST_SAVE
_REPEAT = CheckpointPolicy.PREFER_RECOMPUTE

_aten = torch.ops.aten
_CONVOLUTION_OF_FEW = 16
"""Input channels up to which a convolution is repeated, too: a frame's ten bands cost a twentieth
of the encoder to go through, and give one of its two largest maps."""


def _keep_convolutions(
    _: object, operator: object, *args: object, **__: object
) -> CheckpointPolicy:
    if operator is not _aten.convolution.default:
        return _REPEAT
    x = args[0]
    return _REPEAT if isinstance(x, Tensor) and x.shape[1] <= _CONVOLUTION_OF_FEW else _KEEP


_convolutions = functools.partial(create_selective_checkpoint_contexts, _keep_convolutions)


def keeping_convolutions(part: Callable[..., Result], *inputs: Tensor) -> Result:
    """Run `part`, keeping its convolutions' results alone. `part` must not hold a BatchNorm.

    (It would count its batch twice.)
    """
    return _run(part, inputs, _convolutions)


def keeping_nothing(part: Callable[..., Result], *inputs: Tensor) -> Result:
    """Run `part`, keeping its inputs alone. `part` must not hold a BatchNorm."""
    return _run(part, inputs, noop_context_fn)


def _run(
    part: Callable[..., Result], inputs: tuple[Tensor, ...], contexts: Callable[[], Contexts]
) -> Result:
    if not torch.is_grad_enabled():
        return part(*inputs)
    return checkpoint(part, *inputs, use_reentrant=False, context_fn=contexts)
