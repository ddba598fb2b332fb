"""Trying a network on one patch before any training: does it fit, and what of it is used?

Nothing is computed: shapes and gradients are followed on torch's meta device. Where an operation
there needs data, a copy is run on the processor.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from flair2_exp.errors import ModelError, first_line
from flair2_exp.models.registry import NetworkSpec


class _Branch(Protocol):
    """What is tried: an encoder and a decoder."""

    feature_channels: tuple[int, ...]

    def encode(self, image: Tensor, metadata: Tensor | None) -> list[Tensor]: ...

    def decode(self, features: list[Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Trial:
    """What a network makes of a patch."""

    levels: tuple[int, ...]
    """The encoder's maps that the decoder reads, by their numbers."""
    deepest: int
    """Rows of the deepest map."""
    idle: frozenset[str]
    """The parameters that get no gradient, by name."""


def try_out(network: nn.Module, spec: NetworkSpec) -> Trial:
    """Try a network with `encode` and `decode`, which stays as it is, on one patch.

    Args:
        network: In whatever state; the trial is in evaluation mode.
        spec: Its description.

    Raises:
        ModelError: It does not take patches of `spec.patch_size`, or gives other logits.
    """
    try:
        return _followed(_copy(network, meta=True), spec, "meta")
    except AssertionError as error:  # timm's way of refusing a size
        raise _unsuitable(spec, error) from error
    except ModelError:
        raise
    except Exception:  # an operation that needs data, or a size that does not fit
        if any(each.is_meta for each in network.parameters()):
            raise  # who builds networks without memory tries again with it
    try:
        return _followed(_copy(network, meta=False), spec, "cpu")
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unsuitable(spec, error) from error


def _unsuitable(spec: NetworkSpec, error: Exception) -> ModelError:
    model = spec.model
    reason = first_line(error)
    return ModelError(
        f"model.encoder={model.encoder} does not take patches of {spec.patch_size} px with "
        f"model.decoder={model.decoder} and model.depth={model.depth} ({reason[:200]}).\n"
        "Choose an encoder for any size, as resnet34, another decoder or larger patches."
    )


def _copy(network: nn.Module, *, meta: bool) -> nn.Module:
    """Return a copy in evaluation mode, on the meta device without memory for its weights."""
    instead: dict[int, Tensor] = {}
    if meta:
        for parameter in network.parameters():
            instead[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
        for buffer in network.buffers():
            instead[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, instead).eval()


def _followed(network: nn.Module, spec: NetworkSpec, device: str) -> Trial:
    branch = cast(_Branch, network)
    size, channels = spec.patch_size, branch.feature_channels
    image = torch.zeros(1, spec.bands, size, size, device=device)
    with torch.enable_grad():
        features = branch.encode(image, None)
        seen = [each.detach().requires_grad_() for each in features]
        logits = branch.decode(list(seen))
        wanted = (1, spec.classes, size, size)
        if tuple(logits.shape) != wanted:
            raise AssertionError(f"its logits are {tuple(logits.shape)} instead of {wanted}")
        deepest = features[len(channels) - 1].shape[2]
        if spec.model.is_published_decoder:  # which reads all but the image, and idles nowhere
            levels = tuple(level for level, width in enumerate(channels) if level and width)
            return Trial(levels, deepest, frozenset())
        torch.autograd.backward(logits.sum())
        _backward(features, seen)
    levels = tuple(
        level for level, width in enumerate(channels) if width and seen[level].grad is not None
    )
    idle = frozenset(name for name, each in network.named_parameters() if each.grad is None)
    return Trial(levels, deepest, idle)


def _backward(features: Sequence[Tensor], seen: Sequence[Tensor]) -> None:
    """Take the gradients that the decoder gave its inputs on through the encoder."""
    read = [
        (feature, each.grad)
        for feature, each in zip(features, seen, strict=True)
        if each.grad is not None and feature.requires_grad
    ]
    torch.autograd.backward([each for each, _ in read], [gradient for _, gradient in read])
