"""U-T&T: a U-Net on the aerial patch and a U-TAE on the satellite series, fused.

    image ── U-Net encoder ── features ──(+)── U-Net decoder ── "aerial" logits
                              metadata ──(+)
    series ── U-TAE ── last map ─ fusion ─┴─── satellite head ── "satellite" logits

In the U-Net's place any other decoder works (`model.decoder`): the levels that it reads are fused.

Sixteen tensors never get a gradient, as in the published model: U-TAE's output block (nobody reads
its logits) and the fusion's level 0 (the U-Net decoder does not read the input image; fewer where
the fusion has one term alone). They are kept so that checkpoints carry over, frozen so that
distributed training does not wait for their gradients, and never computed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flair2_exp.config.model import ModelConfig
from flair2_exp.models.aerial import AerialSegmenter
from flair2_exp.models.fusion import SatelliteFusion
from flair2_exp.models.heads import SatelliteHead
from flair2_exp.models.registry import NetworkSpec, SegmentationModel
from flair2_exp.models.utae import UTAE


class UTT(SegmentationModel):
    """U-T&T.

    Args:
        spec: The description.
        pretrained: Whether the encoder starts from `model.encoder_weights`.
        options: Of the aerial decoder, as for `AerialSegmenter`.
    """

    main_head = "aerial"
    encoder_name = "unet.encoder"

    def __init__(self, spec: NetworkSpec, *, pretrained: bool = True, **options: Any) -> None:
        super().__init__()
        self.unet = AerialSegmenter(spec, pretrained=pretrained, **options)  # whatever its decoder
        self.utae = UTAE(spec.utae, spec.classes)
        channels = spec.utae.decoder_widths[0]
        levels = self.unet.levels
        fused = {0, *levels}  # level 0 always, as published
        widths = [n if i in fused else 0 for i, n in enumerate(self.unet.feature_channels)]
        self.fusion = SatelliteFusion(channels, widths, spec.fusion)
        self.head = SatelliteHead(channels, spec.classes, spec.patch_size)
        unread = [] if 0 in levels else [self.fusion.cropped[0], self.fusion.collapsed[0]]
        for idle in (self.utae.output, *unread):
            if isinstance(idle, nn.Module):
                idle.requires_grad_(False)

    def accelerate(self, options: ModelConfig, backend: str = "inductor") -> None:
        """Accelerate the aerial branch.

        U-TAE always keeps channels last; its packing depends on the data, which would compile anew
        for every count of frames.
        """
        self.unet.accelerate(options, backend)

    def forward(
        self,
        image: Tensor,
        series: Tensor,
        days: Tensor,
        padding: Tensor | None = None,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Segment a batch from both: {"aerial", "satellite"}, each (B, classes, H, W) logits."""
        satellite_map = self.utae(series, days, padding).maps[-1]
        features = self.unet.encode(image, metadata)
        fused = self.fusion(features, satellite_map, levels=self.unet.levels)
        return {"aerial": self.unet.decode(fused), "satellite": self.head(satellite_map)}
