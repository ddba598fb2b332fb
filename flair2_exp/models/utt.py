"""U-T&T: a U-Net on the aerial patch and a U-TAE on the satellite series, fused.

    image ── U-Net encoder ── features ──(+)── U-Net decoder ── "aerial" logits
                              metadata ──(+)
    series ── U-TAE ── last map ─ fusion ─┴─── satellite head ── "satellite" logits

Sixteen tensors never get a gradient, as in the published model: U-TAE's output block (nobody reads
its logits) and the fusion's level 0 (the U-Net decoder does not read the input image; fewer where
the fusion has one term alone). They are kept so that checkpoints carry over, frozen so that
distributed training does not wait for their gradients, and never computed.
"""

from __future__ import annotations

from torch import Tensor, nn

from flair2_exp.models.base import SegmentationModel
from flair2_exp.models.fusion import FusionOptions, SatelliteFusion
from flair2_exp.models.heads import SatelliteHead
from flair2_exp.models.unet import AerialUNet
from flair2_exp.models.utae import UTAE, UTAEOptions


class UTT(SegmentationModel):
    """U-T&T.

    Args:
        unet: The aerial branch.
        utae: Sizes and choices of the satellite branch.
        fusion: Choices of the fusion.
        classes: Classes.
        patch_size: Aerial pixels on a side of a patch.
    """

    main_head = "aerial"

    def __init__(
        self,
        unet: AerialUNet,
        utae: UTAEOptions,
        fusion: FusionOptions,
        *,
        classes: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.utae = UTAE(utae, classes)
        channels = utae.decoder_widths[0]
        self.fusion = SatelliteFusion(channels, unet.feature_channels, fusion)
        self.head = SatelliteHead(channels, classes, patch_size)
        for idle in (self.utae.output, self.fusion.cropped[0], self.fusion.collapsed[0]):
            if isinstance(idle, nn.Module):
                idle.requires_grad_(False)

    def forward(
        self,
        image: Tensor | None = None,
        series: Tensor | None = None,
        days: Tensor | None = None,
        padding: Tensor | None = None,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Segments from both: {"aerial", "satellite"}, each (B, classes, H, W) logits."""
        if series is None or days is None:
            raise ValueError("U-T&T needs `series` and `days`")
        satellite_map = self.utae(series, days, padding).maps[-1]
        features = self.unet.encode(image, metadata)
        fused = self.fusion(features, satellite_map, first_level=1)
        return {"aerial": self.unet.decode(fused), "satellite": self.head(satellite_map)}
