"""U-T&T out of stock parts: the plainest reading of the description, for comparison.

The functions take a network of this package for its weights and do with them what the description
says, in its order, with torch's own layers and no other thought: every term at full resolution,
every level, every intermediate kept. They are what the benchmark measures memory against, and an
independent way to the same numbers for the tests (evaluation mode: no dropout is drawn).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flair2_exp.models.fusion import SatelliteFusion
from flair2_exp.models.ltae import TemporalEncoder
from flair2_exp.models.utae import UTAE
from flair2_exp.models.utt import UTT


def block(layers: Any, x: Tensor) -> Tensor:
    """Run convolution, normalisation, ReLU (not in place)."""
    return functional.relu(layers.norm(layers.conv(x)))


def residual(layers: Any, x: Tensor) -> Tensor:
    """Add a block's output to its input."""
    return x + block(layers.block, x)


def centre(satellite_map: Tensor) -> Tensor:
    """Return the central 10×10 of (B, C, S, S)."""
    edge = (satellite_map.shape[-1] - 10) // 2
    return satellite_map[:, :, edge : edge + 10, edge : edge + 10]


def encode(utae: Any, series: Tensor, real: Tensor) -> list[Tensor]:
    """Return the encoder's maps (B, T, C, h, w), zero at padded dates, full resolution first."""
    x = series[real]
    for layers in utae.encoder.stem:
        x = block(layers, x)
    packed = [x]
    for down, widen, last in utae.encoder.stages:
        packed.append(residual(last, block(widen, block(down, packed[-1]))))
    maps = [x.new_zeros((*real.shape, *x.shape[1:])) for x in packed]
    for padded, x in zip(maps, packed, strict=True):
        padded[real] = x
    return maps


def attend(
    temporal: TemporalEncoder, x: Tensor, days: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn (B, T, C, h, w) into (B, C, h, w) and attention (heads, B, T, h, w)."""
    b, t, c, h, w = x.shape
    heads, d_k = temporal.query.shape
    norm = temporal.norm_in
    rows = x.permute(0, 3, 4, 2, 1).reshape(b, h * w, c, t)
    normal = torch.zeros_like(rows)
    for sample, dates in enumerate(torch.ones_like(real) if norm.padding_counts else real):
        sequences = rows[sample][..., dates]
        normal[sample][..., dates] = functional.group_norm(sequences, heads, norm.weight, norm.bias)
    values = temporal.project(normal.flatten(0, 1).transpose(1, 2))
    channels = values.shape[-1] // heads
    code = values.new_zeros(b, t, channels)
    for i in range(channels):
        angle = days.to(code.dtype) / 1000 ** (2 * (i // 2) / channels)
        code[..., i] = torch.sin(angle) if i % 2 == 0 else torch.cos(angle)
    values = values + code.repeat(1, 1, heads).repeat_interleave(h * w, dim=0)
    keys = temporal.key(values).view(b * h * w, t, heads, d_k)
    scores = (keys * temporal.query).sum(-1) / math.sqrt(d_k)
    scores[~real.repeat_interleave(h * w, dim=0)] = -1000
    attention = scores.softmax(dim=1)
    mixed = attention.unsqueeze(-1) * values.view(b * h * w, t, heads, channels)
    out = temporal.norm_out(temporal.out(mixed.sum(1).flatten(1)))
    return (
        out.view(b, h, w, c).permute(0, 3, 1, 2),
        attention.view(b, h, w, t, heads).permute(4, 0, 3, 1, 2),
    )


def aggregate(maps: Tensor, attention: Tensor, real: Tensor, mode: str) -> Tensor:
    """Average maps (B, T, C, H, W) over dates: (B, C, H, W)."""
    b, t, _, height, width = maps.shape
    mask = real[:, :, None, None, None]
    if mode == "mean":
        return (maps * mask).sum(1) / mask.sum(1)
    if mode == "att_mean":
        attention = attention.mean(0, keepdim=True)
    heads = len(attention)
    resized = functional.interpolate(
        attention.flatten(0, 1), size=(height, width), mode="bilinear", align_corners=False
    ).view(heads, b, t, 1, height, width)
    grouped = torch.stack(maps.chunk(heads, dim=2))
    return torch.cat([group for group in (resized * mask * grouped).sum(2)], dim=1)


def utae_maps(utae: UTAE, series: Tensor, days: Tensor, padding: Tensor) -> list[Tensor]:
    """Return U-TAE's decoder maps, deepest first."""
    maps = encode(utae, series, ~padding)
    encoded, attention = attend(utae.temporal, maps[-1], days, ~padding)
    decoded, stages = [encoded], list[Any](utae.decoder)
    for stage, skip_maps in zip(stages, reversed(maps[:-1]), strict=True):
        skip = aggregate(skip_maps, attention, ~padding, utae.options.aggregation)
        joined = torch.cat([block(stage.up, decoded[-1]), block(stage.skip, skip)], dim=1)
        decoded.append(residual(stage.residual, block(stage.merge, joined)))
    return decoded


def fuse(fusion: SatelliteFusion, features: list[Tensor], satellite_map: Tensor) -> list[Tensor]:
    """Add the cropped and the collapsed term to the encoder's features, at every level."""
    context = satellite_map.mean((2, 3))
    if fusion.options.collapsed == "first_sample":
        context = context[:1].expand_as(context)
    fused = []
    for feature, crop, collapse in zip(features, fusion.cropped, fusion.collapsed, strict=True):
        size = feature.shape[2:]
        cropped = functional.interpolate(
            crop(centre(satellite_map)), size=size, mode="bilinear", align_corners=False
        )
        fused.append(feature + cropped + collapse(context)[:, :, None, None].repeat(1, 1, *size))
    return fused


def utt_logits(
    model: UTT,
    image: Tensor,
    series: Tensor,
    days: Tensor,
    padding: Tensor,
    metadata: Tensor | None = None,
) -> dict[str, Tensor]:
    """Run the whole U-T&T; U-TAE's own logits are worked out (and dropped), as in the baseline."""
    last_map = utae_maps(model.utae, series, days, padding)[-1]
    unread = last_map
    for layers in model.utae.output or ():
        unread = block(layers, unread)
    features = model.unet.encode(image, metadata)
    resized = functional.interpolate(centre(last_map), size=image.shape[2:])
    return {
        "aerial": model.unet.decode(fuse(model.fusion, features, last_map)),
        "satellite": model.head.conv(resized),
    }
