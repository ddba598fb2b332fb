"""Where the patch lies in the super-patch, and the head that scores the satellite map there."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

FOOTPRINT: Final = 10
"""Satellite pixels (10 m) on a side of a patch, whatever its own pixels: it covers 102.4 m."""


def footprint(satellite_map: Tensor) -> Tensor:
    """Return the patch's part of a super-patch: the central 10×10 of (B, C, S, S)."""
    start = (satellite_map.shape[-1] - FOOTPRINT) // 2
    end = start + FOOTPRINT
    return satellite_map[..., start:end, start:end]


def layout(x: Tensor) -> torch.memory_format:
    """Return the order in which a map (B, C, H, W) lies in memory: channels last, or plain.

    U-TAE works with channels last and the U-Net as configured: maps change their order where
    they are small, at the footprint, and not after they have been resized to the patch.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


class SatelliteHead(nn.Module):
    """1×1 convolution to the classes on the footprint, nearest-resized to the patch.

    The published order is resize, then convolve; a 1×1 convolution and nearest resizing commute,
    and this order does the arithmetic on 100 pixels instead of 262,144.

    Args:
        channels: Of the satellite map.
        classes: Classes.
        patch_size: Aerial pixels on a side of a patch.
    """

    def __init__(self, channels: int, classes: int, patch_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 1)
        self.patch_size = patch_size

    def forward(self, satellite_map: Tensor) -> Tensor:
        """Turn (B, channels, S, S) into logits (B, classes, patch_size, patch_size)."""
        logits: Tensor = self.conv(footprint(satellite_map)).contiguous()
        return functional.interpolate(logits, size=(self.patch_size, self.patch_size))
