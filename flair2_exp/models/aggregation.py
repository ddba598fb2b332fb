"""How U-TAE's skips lose their time axis (Garnot and Landrieu 2021, §3.3).

A skip is the encoder's map averaged over dates with the attention of the deepest map, resized to
the skip's resolution. Frames come packed (padded dates left out, which is what masking them after
the softmax without renormalising amounts to) and are worked through a few at a time, so that
neither a padded frame nor the product of all maps and weights ever exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flair2_exp.models.recompute import keeping_nothing


class Segment(NamedTuple):
    """A run of frames of one sample within one pass of the encoder."""

    sample: int
    """Index in the batch."""
    number: int
    """Index of the pass."""
    start: int
    """First frame, counted in the pass."""
    stop: int
    """One past the last."""
    offset: int
    """First frame, counted over all packed frames."""


def segments(counts: Sequence[int], size: int) -> list[Segment]:
    """Cut packed frames into runs that lie in one sample and one pass.

    Args:
        counts: Real frames of each sample, in the order in which they are packed.
        size: Frames in a pass (the last may have fewer).

    Returns:
        The runs, in order; a sample without frames has none.
    """
    runs = []
    first = 0
    for sample, count in enumerate(counts):
        at = first
        while at < first + count:
            number = at // size
            end = min((number + 1) * size, first + count)
            runs.append(Segment(sample, number, at - number * size, end - number * size, at))
            at = end
        first += count
    return runs


def aggregate(
    passes: Sequence[Tensor], attention: Tensor, runs: Sequence[Segment], samples: int, mode: str
) -> Tensor:
    """Average each sample's maps over its dates.

    Args:
        passes: Maps of the packed frames, one tensor (n, C, H, W) per pass.
        attention: (N, heads, h, w), of the packed frames.
        runs: From `segments`.
        samples: B, the batch's size.
        mode: `att_group` (each head weighs its own group of channels), `att_mean` (the heads' mean
            weighs all channels) or `mean` (every real frame weighs the same).

    Returns:
        (B, C, H, W); zero for a sample without frames.
    """
    if mode == "att_mean":
        attention = attention.mean(1, keepdim=True)
    parts: list[list[Tensor]] = [[] for _ in range(samples)]
    counts = [0] * samples
    for run in runs:
        maps = passes[run.number][run.start : run.stop]
        length = run.stop - run.start
        counts[run.sample] += length
        if mode == "mean":
            parts[run.sample].append(maps.sum(0))
        else:
            weights = attention[run.offset : run.offset + length]
            parts[run.sample].append(keeping_nothing(_weighted_sum, maps, weights))
    empty = passes[0].new_zeros(passes[0].shape[1:])
    totals = torch.stack([sum(each[1:], each[0]) if each else empty for each in parts])
    if mode == "mean":
        totals = totals / totals.new_tensor(counts).clamp(min=1).view(-1, 1, 1, 1)
    return totals


def aggregate_padded(maps: Tensor, attention: Tensor, real: Tensor, mode: str) -> Tensor:
    """Average maps over dates as `aggregate` does, padded dates among them: for export.

    Args:
        maps: (B, T, C, H, W), anything at padded dates.
        attention: (B, T, heads, h, w).
        real: (B, T) bool, False at padded dates.
        mode: As for `aggregate`.

    Returns:
        (B, C, H, W); zero for a sample without real dates.
    """
    b, t, c, height, width = maps.shape
    mask = real[:, :, None, None, None].to(attention.dtype)
    if mode == "mean":
        counts = real.sum(1).clamp(min=1).view(-1, 1, 1, 1)
        mean: Tensor = (maps * mask.to(maps.dtype)).sum(1) / counts
        return mean
    weights = attention * mask
    if mode == "att_mean":
        weights = weights.mean(2, keepdim=True)
    heads = weights.shape[2]
    resized = functional.interpolate(
        weights.flatten(0, 1), size=(height, width), mode="bilinear", align_corners=False
    ).view(b, t, heads, 1, height, width)
    grouped = maps.view(b, t, heads, c // heads, height, width)
    summed: Tensor = (grouped * resized).sum(1).flatten(1, 2)
    return summed.to(maps.dtype)


def _weighted_sum(maps: Tensor, weights: Tensor) -> Tensor:
    """Sum over frames of maps (n, C, H, W) by weights (n, heads, h, w): (C, H, W)."""
    n, c, height, width = maps.shape
    heads = weights.shape[1]
    resized = functional.interpolate(
        weights, size=(height, width), mode="bilinear", align_corners=False
    )
    grouped = maps.view(n, heads, c // heads, height, width)
    summed = (grouped * resized.unsqueeze(2)).sum(0).view(c, height, width)
    return summed.to(maps.dtype)  # attention is float32 at least
