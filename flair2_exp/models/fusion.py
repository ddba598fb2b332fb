"""How the satellite map joins the aerial encoder's features: the fusion of U-T&T.

For each level of the encoder the satellite map gives two terms: *cropped*, the part that lies under
the patch, which keeps where things are; and *collapsed*, the mean over the whole super-patch, which
tells what surrounds the patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flair2_exp.config.model import FusionConfig
from flair2_exp.models.heads import footprint, layout


def _perceptron(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """Return three layers: widths in equal steps, or by twice where both ends are equal."""
    if inputs == outputs:
        first = second = 2 * inputs
    else:
        step = (outputs - inputs) // 3 if outputs > inputs else -((inputs - outputs) // 3)
        first, second = inputs + step, inputs + 2 * step
    return nn.Sequential(
        nn.Linear(inputs, first),
        nn.Dropout(dropout),
        nn.ReLU(inplace=True),
        nn.Linear(first, second),
        nn.Dropout(dropout),
        nn.ReLU(inplace=True),
        nn.Linear(second, outputs),
    )


class SatelliteFusion(nn.Module):
    """Adds a satellite map to the features of an aerial encoder.

    A level without channels (some encoders have no map at half resolution) has nothing to add to.

    Args:
        satellite_channels: Channels of the satellite map.
        feature_channels: Channels of each encoder level, the input image first.
        options: The choices.
    """

    def __init__(
        self, satellite_channels: int, feature_channels: Sequence[int], options: FusionConfig
    ) -> None:
        super().__init__()
        self.options = options

        def each_level(term: str, build: Callable[[int], nn.Module]) -> nn.ModuleList:
            built = options.terms in ("both", term)
            return nn.ModuleList(
                build(channels) if built and channels else nn.Identity()
                for channels in feature_channels
            )

        self.cropped = each_level("cropped", lambda n: nn.Conv2d(satellite_channels, n, 1))
        self.collapsed = each_level(
            "collapsed", lambda n: _perceptron(satellite_channels, n, options.mlp_dropout)
        )

    def forward(
        self,
        features: Sequence[Tensor],
        satellite_map: Tensor,
        *,
        levels: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Fuse levels of the encoder.

        The collapsed term is the same everywhere, so it is added before the resizing, to 100 pixels
        instead of to all: bilinear weights sum to one.

        Args:
            features: A map (B, channels, h, w) per level, the input image first.
            satellite_map: (B, satellite channels, S, S).
            levels: The numbers of those to fuse, all others being returned as they are; None: all.

        Returns:
            Maps of the features' shapes.
        """
        crop = footprint(satellite_map)
        context = satellite_map.mean((2, 3))
        if self.options.collapsed == "first_sample":
            context = context[:1].expand_as(context)
        keep = self._keep(context.shape[0], context)

        fused = list(features)
        for level in range(len(fused)) if levels is None else levels:
            feature = fused[level]
            if not feature.shape[1]:
                continue
            terms = self._terms(level, crop, context)
            if keep is not None:
                terms = terms * keep
            terms = terms.contiguous(memory_format=layout(feature))
            resized = functional.interpolate(
                terms, size=feature.shape[2:], mode="bilinear", align_corners=False
            )
            fused[level] = (
                resized.add_(feature) if resized.dtype == feature.dtype else (resized + feature)
            )
        return fused

    def _terms(self, level: int, crop: Tensor, context: Tensor) -> Tensor:
        """Return what joins a level: (B, channels, 10, 10), or (B, channels, 1, 1) of context."""
        if self.options.terms == "cropped":
            cropped: Tensor = self.cropped[level](crop)
            return cropped
        collapsed: Tensor = self.collapsed[level](context)[:, :, None, None]
        if self.options.terms == "collapsed":
            return collapsed
        both: Tensor = self.cropped[level](crop) + collapsed
        return both

    def _keep(self, samples: int, like: Tensor) -> Tensor | None:
        """Draw modality dropout: (B, 1, 1, 1), 0 for samples whose satellite terms are left out."""
        options = self.options
        always = options.dropout == "always_batch"
        if options.dropout_rate == 0 or not (self.training or always):
            return None
        draws = torch.rand(1 if always else samples, device=like.device)
        kept = (draws >= options.dropout_rate).to(like.dtype)
        return kept.expand(samples).view(-1, 1, 1, 1)
