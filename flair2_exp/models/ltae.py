"""The temporal encoder of U-TAE: lightweight attention over dates, for each pixel by itself.

L-TAE (Garnot and Landrieu 2020) as U-TAE applies it to the deepest feature map (Garnot and Landrieu
2021, §3.2).
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

_PERIOD: float = 1000.0
"""Largest wavelength of the date code, over 2π, in days."""
_MASKED_SCORE: float = -1000.0
"""Score of a padded date before the softmax; its share then underflows to zero."""


def date_code(days: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the sinusoidal code of a date (Garnot and Landrieu 2020, §3.1).

    Args:
        days: Day offsets, any shape.
        channels: Length of the code.
        dtype: What it is computed in, or more precisely where `days` are: float32 at least. None:
            torch's default, which is float64 within a run in `64-true`.

    Returns:
        `days`' shape with `channels` appended: sin(days / w) at even i and cos(days / w) at odd i,
        where w = 1000^(2⌊i/2⌋ / channels).
    """
    dtype = torch.promote_types(days.dtype, _at_least_float32(dtype or torch.get_default_dtype()))
    i = torch.arange(channels, device=days.device)
    exponent = 2 * torch.div(i, 2, rounding_mode="floor").to(dtype) / channels
    angle = days.to(dtype).unsqueeze(-1) / _PERIOD**exponent
    return torch.where(i % 2 == 0, angle.sin(), angle.cos())


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return a precision for sums over time, softmax and dates, which want more than half."""
    return torch.promote_types(dtype, torch.float32)


class SequenceNorm(nn.GroupNorm):
    """GroupNorm of a pixel's sequence: over time and a group's channels, not over space.

    The published code normalises over padded dates too (their features are zero), so that a
    sample's result depends on how far its batch is padded. `padding_counts` keeps that; without it
    only real dates enter mean and variance.
    """

    def __init__(self, groups: int, channels: int, *, padding_counts: bool) -> None:
        super().__init__(groups, channels)
        self.padding_counts = padding_counts

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Normalise sequences.

        Args:
            x: (B, P, T, C), zero at padded dates.
            real: (B, T) bool, False at padded dates; None where there are none.

        Returns:
            (B, P, T, C).
        """
        b, p, t, c = x.shape
        if real is None or self.padding_counts:
            rows = x.reshape(b * p, t, c).transpose(1, 2)
            return super().forward(rows).transpose(1, 2).reshape(b, p, t, c)
        grouped = x.to(_at_least_float32(x.dtype)).view(
            b, p, t, self.num_groups, c // self.num_groups
        )
        mask = real.view(b, 1, t, 1, 1)
        count = real.sum(1).clamp(min=1).view(b, 1, 1, 1, 1) * (c // self.num_groups)
        centred = (grouped - grouped.sum((2, 4), keepdim=True) / count) * mask
        variance = centred.square().sum((2, 4), keepdim=True) / count
        normal = (centred * (variance + self.eps).rsqrt()).view(b, p, t, c)
        return (normal * self.weight + self.bias).to(x.dtype)


class TemporalEncoder(nn.Module):
    """Lightweight temporal attention encoder (L-TAE).

    Each head has one learned query, and attends with it to its own group of channels.

    Args:
        channels: Channels of the feature map, in and out.
        heads: Attention heads.
        d_model: Channels of the projected features; a multiple of `heads`.
        d_k: Channels of a key.
        normalise_padding: Let padded dates enter the input's normalisation (`SequenceNorm`).
        attention_dropout: Rate at which attention is dropped in training.
        dropout: Rate at which the output is dropped in training.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        d_model: int,
        d_k: int,
        normalise_padding: bool,
        attention_dropout: float = 0.1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in = SequenceNorm(heads, channels, padding_counts=normalise_padding)
        self.project = nn.Linear(channels, d_model)
        self.query = nn.Parameter(torch.empty(heads, d_k))
        self.key = nn.Linear(d_model, heads * d_k)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.out = nn.Sequential(
            OrderedDict(
                linear=nn.Linear(d_model, channels),
                norm=nn.BatchNorm1d(channels),
                relu=nn.ReLU(inplace=True),
                dropout=nn.Dropout(dropout),
            )
        )
        self.norm_out = nn.GroupNorm(heads, channels)
        for weight in (self.query, self.key.weight):
            nn.init.normal_(weight, std=math.sqrt(2.0 / d_k))

    def forward(self, x: Tensor, days: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode a series of feature maps into one.

        Args:
            x: (B, T, C, h, w), zero at padded dates.
            days: (B, T) day offsets.
            real: (B, T) bool, False at padded dates; None where there are none.

        Returns:
            The encoded map (B, C, h, w) and the attention (B, T, heads, h, w): after softmax and
            dropout, as the decoder's skips are weighed with the same.
        """
        b, t, c, h, w = x.shape
        pixels = x.permute(0, 3, 4, 1, 2).reshape(b, h * w, t, c)
        values = self.project(self.norm_in(pixels, real))
        d_model = values.shape[-1]
        code = date_code(days, d_model // self.heads, values.dtype).repeat(1, 1, self.heads)
        values = values + code.unsqueeze(1).to(values.dtype)

        attention = self.attention_dropout(self._scores(values, real).softmax(dim=-1))
        heads = values.view(b, h * w, t, self.heads, d_model // self.heads).transpose(2, 3)
        mixed = torch.matmul(attention.unsqueeze(-2).to(heads.dtype), heads)

        encoded = self.norm_out(self.out(mixed.reshape(b * h * w, d_model)))
        encoded = encoded.view(b, h, w, c).permute(0, 3, 1, 2)
        return encoded, attention.view(b, h, w, self.heads, t).permute(0, 4, 3, 1, 2)

    def _scores(self, values: Tensor, real: Tensor | None) -> Tensor:
        """Return q·k/√d_k of each date: (B, P, T, d_model) to (B, P, heads, T), float32 at least.

        The query is the same for every pixel, so it goes into the key's weights beforehand.
        """
        d_k = self.query.shape[1]
        keys = self.key.weight.view(self.heads, d_k, -1)
        weight = torch.einsum("gk,gkd->gd", self.query, keys)
        bias = (self.query * self.key.bias.view(self.heads, d_k)).sum(1)
        scores = functional.linear(values, weight, bias).transpose(2, 3)
        scores = scores.to(_at_least_float32(scores.dtype)) / math.sqrt(d_k)
        if real is None:
            return scores
        return scores.masked_fill(~real[:, None, None, :], _MASKED_SCORE)
