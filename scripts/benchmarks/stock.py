"""U-T&T out of stock parts: the plainest reading of the description, for comparison.

The functions take a model of this package for its weights and do with them what the description
says, in its order, with torch's own layers and no other thought: every term at full resolution,
every level, every intermediate kept. They are what the benchmark measures memory against, and an
independent way to the same numbers for the tests (evaluation mode: no dropout is drawn).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from flair2_exp.models.fusion import SatelliteFusion
from flair2_exp.models.ltae import TemporalEncoder
from flair2_exp.models.utae import UTAE
from flair2_exp.models.utt import UTT


def block(layers: nn.Module, x: Tensor) -> Tensor:
    """Convolution, normalisation, ReLU (not in place)."""
    return functional.relu(layers.norm(layers.conv(x)))  # type: ignore[operator]


def encode(utae: UTAE, series: Tensor, real: Tensor) -> list[Tensor]:
    """Maps (B, T, C, h, w) of the encoder, zero at padded dates, full resolution first."""

    def unpack(packed: Tensor) -> Tensor:
        padded = packed.new_zeros((*real.shape, *packed.shape[1:]))
        padded[real] = packed
        return padded

    x = series[real]
    for layers in utae.encoder.stem:
        x = block(layers, x)
    maps = [unpack(x)]
    for down, widen, residual in utae.encoder.stages:  # type: ignore[misc]
        x = block(widen, block(down, x))  # type: ignore[has-type]
        x = x + block(residual.block, x)  # type: ignore[has-type]
        maps.append(unpack(x))
    return maps


def attend(
    temporal: TemporalEncoder, x: Tensor, days: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """The temporal encoder: (B, T, C, h, w) to (B, C, h, w) and attention (heads, B, T, h, w)."""
    b, t, c, h, w = x.shape
    heads, d_k = temporal.query.shape
    rows = x.permute(0, 3, 4, 2, 1).reshape(b * h * w, c, t)
    normal = torch.empty_like(rows)
    for row in range(len(rows)):
        dates = torch.ones(t, dtype=torch.bool)
        if not temporal.norm_in.padding_counts:
            dates = real[row // (h * w)]
        normal[row] = 0
        normal[row][:, dates] = functional.group_norm(
            rows[row : row + 1, :, dates],
            heads,
            temporal.norm_in.weight,
            temporal.norm_in.bias,
        )[0]
    values = temporal.project(normal.transpose(1, 2))
    channels = values.shape[-1] // heads
    code = torch.zeros(b, t, channels)
    for i in range(channels):
        angle = days / 1000 ** (2 * (i // 2) / channels)
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
    """Averages maps (B, T, C, H, W) over dates: (B, C, H, W)."""
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
    """U-TAE's decoder maps, deepest first."""
    maps = encode(utae, series, ~padding)
    encoded, attention = attend(utae.temporal, maps[-1], days, ~padding)
    decoded = [encoded]
    for stage, skip_maps in zip(utae.decoder, reversed(maps[:-1]), strict=True):
        skip = aggregate(skip_maps, attention, ~padding, utae.options.aggregation)
        joined = torch.cat([block(stage.up, decoded[-1]), block(stage.skip, skip)], dim=1)  # type: ignore[arg-type]
        x = block(stage.merge, joined)  # type: ignore[arg-type]
        decoded.append(x + block(stage.residual.block, x))  # type: ignore[union-attr, arg-type]
    return decoded


def fuse(fusion: SatelliteFusion, features: list[Tensor], satellite_map: Tensor) -> list[Tensor]:
    """Encoder features plus cropped plus collapsed, at every level."""
    edge = (satellite_map.shape[-1] - 10) // 2
    crop = satellite_map[:, :, edge : edge + 10, edge : edge + 10]
    fused = []
    for level, feature in enumerate(features):
        cropped = functional.interpolate(
            fusion.cropped[level](crop),
            size=feature.shape[2:],
            mode="bilinear",
            align_corners=False,
        )
        chosen = satellite_map
        if fusion.options.collapsed == "first_sample":
            chosen = satellite_map[:1].expand_as(satellite_map)
        context = fusion.collapsed[level](chosen.mean((2, 3)))
        collapsed = context[:, :, None, None].repeat(1, 1, *feature.shape[2:])
        fused.append(feature + cropped + collapsed)
    return fused


def utt_logits(
    model: UTT,
    image: Tensor,
    series: Tensor,
    days: Tensor,
    padding: Tensor,
    metadata: Tensor | None = None,
) -> dict[str, Tensor]:
    """The whole U-T&T; U-TAE's own logits are worked out (and dropped), as in the baseline."""
    last_map = utae_maps(model.utae, series, days, padding)[-1]
    unread = last_map
    for layers in model.utae.output or ():
        unread = block(layers, unread)
    features = model.unet.encode(image, metadata)
    aerial = model.unet.decode(fuse(model.fusion, features, last_map))
    edge = (last_map.shape[-1] - 10) // 2
    crop = last_map[:, :, edge : edge + 10, edge : edge + 10]
    satellite = model.head.conv(functional.interpolate(crop, size=image.shape[2:]))
    return {"aerial": aerial, "satellite": satellite}
