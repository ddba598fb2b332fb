"""The U-Net decoder of segmentation_models_pytorch, worked through with less arithmetic.

A decoder block resizes its input by two (nearest), joins it with the skip and convolves both, 3×3.
Of a map resized so, a 3×3 kernel sees at most 2×2 different pixels. Which of its weights fall on
the same one depends only on whether the output's row and column are even: so four 2×2 kernels, sums
of the block's own weights, give the same from the map as it was, with 4/9 of the products. What the
skip adds is a convolution of its own. The resized map and the joined one never exist.

Weights, names and results (up to rounding) are smp's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder, UnetDecoderBlock
from torch import Tensor
from torch.nn import functional

from flair2_exp.models.heads import layout


def decode(decoder: UnetDecoder, features: Sequence[Tensor]) -> Tensor:
    """Return the decoder's last map of the encoder's maps.

    Args:
        decoder: smp's.
        features: A map (B, channels, h, w) per level, the input image first.

    Returns:
        (B, channels of the last block, H, W).
    """
    sizes = [tuple(feature.shape[2:]) for feature in reversed(features)]
    skips: list[Tensor | None] = [*reversed(features[1:-1]), None]
    x: Tensor = decoder.center(features[-1])
    for block, skip, size in zip(decoder.blocks, skips, sizes[1:], strict=True):
        if size == (2 * x.shape[2], 2 * x.shape[3]):
            x = _block(block, x, skip)
        else:  # an encoder that does not halve exactly
            x = block(x, *size, skip_connection=skip)
    return x


def _block(block: UnetDecoderBlock, x: Tensor, skip: Tensor | None) -> Tensor:
    """Run a decoder block: x (B, C, h, w) and skip (B, ·, 2h, 2w) to (B, ·, 2h, 2w)."""
    convolution, *normalisation = block.conv1
    weight = convolution.weight
    y = convolve_doubled(x, weight[:, : x.shape[1]])
    if skip is not None and skip.shape[1]:
        y = y.add_(functional.conv2d(skip, weight[:, x.shape[1] :], padding=1))
    for layer in normalisation:
        y = layer(y)
    z: Tensor = block.conv2(y)
    return z


def convolve_doubled(x: Tensor, weight: Tensor) -> Tensor:
    """Return a 3×3 convolution (padding 1) of x resized by two (nearest), from x itself.

    Args:
        x: (B, C, h, w).
        weight: (O, C, 3, 3).

    Returns:
        (B, O, 2h, 2w).
    """
    height, width = x.shape[2:]
    phases = []
    for row, kernel_rows in enumerate(_fold(weight, dim=2)):
        for column, kernel in enumerate(_fold(kernel_rows, dim=3)):
            y = functional.conv2d(x, kernel, padding=1)
            phases.append(y[:, :, row : row + height, column : column + width])
    doubled = functional.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), 2)
    return doubled.contiguous(memory_format=layout(x))


def _fold(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sum a kernel's three weights along `dim` that fall on one pixel: at even, at odd outputs.

    Output 2i sees the pixels i-1, i, i; output 2i+1 sees i, i, i+1.
    """
    first, middle, last = weight.split(1, dim)  # type: ignore[no-untyped-call]
    even = torch.cat([first, middle + last], dim)
    odd = torch.cat([first + middle, last], dim)
    return even, odd
