"""U-TAE: a U-Net whose bottleneck attends over time (Garnot and Landrieu 2021, §3); its use alone.

    series ─ encoder, each real frame ─┬─ maps of 4 scales ─ aggregation ─ skips ─┐
                                       └─ deepest map ─ temporal encoder ─────────┴─ decoder ─ maps

Frames are packed before the encoder (padded dates are left out) and go through it in passes. How
many there are depends on the data, which no graph for export can follow: `UTAE.packs` is off there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from flair2_exp.config.model import UTAEConfig
from flair2_exp.models.aggregation import aggregate, aggregate_padded, segments
from flair2_exp.models.blocks import ConvBlock, PointBlock, Residual, UpBlock, as_weights
from flair2_exp.models.heads import SatelliteHead
from flair2_exp.models.ltae import TemporalEncoder
from flair2_exp.models.recompute import keeping_convolutions, keeping_nothing
from flair2_exp.models.registry import NetworkSpec, SegmentationModel
from flair2_exp.nomenclature import SATELLITE_BANDS

_GROUPS: Final = 4
"""Groups of the encoder's GroupNorms."""
_BYTES_A_PASS: Final = 12 * 2**20
"""Of the largest feature map of a pass, on a processor. Buffers of this size are handed out again
by the allocator; larger ones are fresh pages from the system each time, and clearing those costs
more than the normalisation that fills them."""


class UTAEMaps(NamedTuple):
    """What U-TAE returns."""

    maps: tuple[Tensor, ...]
    """The decoder's maps (B, width, h, w), deepest first; the last has the series' resolution."""
    attention: Tensor
    """(B, T, heads, h, w) at the deepest map's resolution."""


class FrameEncoder(nn.Module):
    """The encoder's convolutions, the same for every frame (§3.1)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(
            ConvBlock(len(SATELLITE_BANDS), first, groups=_GROUPS),
            ConvBlock(first, first, groups=_GROUPS),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvBlock(inputs, inputs, groups=_GROUPS, kernel=4, stride=2),
                ConvBlock(inputs, outputs, groups=_GROUPS),
                Residual(outputs, groups=_GROUPS),
            )
            for inputs, outputs in itertools.pairwise(widths)
        )

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Return a map per width of (n, 10, S, S), full resolution first, each half as wide."""
        maps = [self.stem(frames.contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return tuple(maps)


class DecoderStage(nn.Module):
    """One step up: upsample, concatenate with the skip, two 3×3 blocks (§3.3)."""

    def __init__(self, inputs: int, outputs: int, skip: int) -> None:
        super().__init__()
        self.up = UpBlock(inputs, outputs)
        self.skip = PointBlock(skip)
        self.merge = ConvBlock(outputs + skip, outputs)
        self.residual = Residual(outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join (B, inputs, h, w) with the skip (B, ·, 2h, 2w) to (B, outputs, 2h, 2w)."""
        y: Tensor = self.residual(self.merge(torch.cat([self.up(x), self.skip(skip)], dim=1)))
        return y


class UTAE(nn.Module):
    """U-TAE.

    Args:
        options: Sizes and choices.
        classes: Classes of the output block; None leaves the block out.

    Attributes:
        packs: Whether padded dates are left out before the encoder. Off, they go through it and
            count for nothing: more work, the same results up to rounding, and no step whose shape
            depends on the data.
    """

    def __init__(self, options: UTAEConfig, classes: int | None = None) -> None:
        super().__init__()
        self.options = options
        self.packs = True
        encoder, decoder = options.encoder_widths, options.decoder_widths
        self.encoder = FrameEncoder(encoder)
        self.temporal = TemporalEncoder(
            encoder[-1],
            heads=options.heads,
            d_model=options.d_model,
            d_k=options.d_k,
            normalise_padding=options.normalise_padding,
        )
        self.decoder = nn.ModuleList(
            DecoderStage(decoder[level + 1], decoder[level], encoder[level])
            for level in reversed(range(len(encoder) - 1))
        )
        self.output: nn.Sequential | None = None
        if classes is not None:
            widths = (decoder[0], *options.head_widths, classes)
            self.output = nn.Sequential(*(ConvBlock(a, b) for a, b in itertools.pairwise(widths)))

    def forward(self, series: Tensor, days: Tensor, padding: Tensor | None = None) -> UTAEMaps:
        """Encode a batch of series.

        Args:
            series: (B, T, 10, S, S), float.
            days: (B, T) day offsets.
            padding: (B, T) bool, True at padded dates; None: those that are zero everywhere.

        Returns:
            The decoder's maps and the attention.
        """
        b, t = series.shape[:2]
        if padding is None:
            padding = (series == 0).flatten(2).all(dim=2)
        if not self.packs:
            return self._forward_padded(series, days, ~padding)
        counts = (~padding).sum(1).tolist()
        real = None if sum(counts) == b * t else ~padding
        frames = as_weights(series.flatten(0, 1) if real is None else series[real], self)

        passes = self._encode(frames)
        deepest = torch.cat([maps[-1] for maps in passes])
        encoded, attention = self.temporal(_unpack(deepest, real, (b, t)), days, real)
        packed = attention.flatten(0, 1) if real is None else attention[real]
        packed = packed.contiguous(memory_format=torch.channels_last)

        runs = segments(counts, len(passes[0][0]))
        maps = [encoded]
        for level, stage in zip(reversed(range(len(self.decoder))), self.decoder, strict=True):
            level_maps = [maps_of_pass[level] for maps_of_pass in passes]
            skip = aggregate(level_maps, packed, runs, b, self.options.aggregation)
            maps.append(stage(maps[-1], skip))
        return UTAEMaps(tuple(maps), attention)

    def _forward_padded(self, series: Tensor, days: Tensor, real: Tensor) -> UTAEMaps:
        """Do what `forward` does, with every frame; `real` is (B, T), False at padded dates."""
        b, t = series.shape[:2]
        frames = self.encoder(as_weights(series.flatten(0, 1), self))
        levels = [level.view(b, t, *level.shape[1:]) for level in frames]
        encoded, attention = self.temporal(
            levels[-1] * real[:, :, None, None, None].to(levels[-1].dtype), days, real
        )
        maps = [encoded]
        for level, stage in zip(reversed(levels[:-1]), self.decoder, strict=True):
            skip = aggregate_padded(level, attention, real, self.options.aggregation)
            maps.append(stage(maps[-1], skip))
        return UTAEMaps(tuple(maps), attention)

    def classify(self, last_map: Tensor) -> Tensor:
        """Return the output block's logits (B, classes, S, S) of the last map, none below 0."""
        if self.output is None:
            raise ValueError("this U-TAE was built without an output block")
        logits: Tensor = self.output(last_map)
        return logits

    def _encode(self, frames: Tensor) -> list[tuple[Tensor, ...]]:
        """Return the maps of packed frames (N, 10, S, S), one tuple per pass."""
        size = max(1, len(frames))
        if frames.device.type == "cpu":
            map_bytes = 4 * self.options.encoder_widths[0] * frames.shape[-2] * frames.shape[-1]
            size = min(size, max(1, _BYTES_A_PASS // map_bytes))
        run = keeping_nothing if self.options.checkpointing else keeping_convolutions
        return [run(self.encoder, part) for part in torch.split(frames, size)]


def _unpack(packed: Tensor, real: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """Spread packed frames (N, ...) to (B, T, ...), zero at padded dates."""
    if real is None:
        return packed.view(*shape, *packed.shape[1:])
    padded = packed.new_zeros((*shape, *packed.shape[1:]))
    padded[real] = packed
    return padded


class SatelliteSegmenter(SegmentationModel):
    """U-TAE alone: its last map through the satellite head that U-T&T has too."""

    main_head = "satellite"

    def __init__(self, spec: NetworkSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        self.utae = UTAE(spec.utae)
        self.head = SatelliteHead(spec.utae.decoder_widths[0], spec.classes, spec.patch_size)

    def forward(
        self, series: Tensor, days: Tensor, padding: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Segment a batch from the series alone: {"satellite": (B, classes, patch, patch)}."""
        return {"satellite": self.head(self.utae(series, days, padding).maps[-1])}
