"""The aerial U-Net: an encoder of segmentation_models_pytorch, metadata, the U-Net decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from flair2_exp.models.base import SegmentationModel
from flair2_exp.models.blocks import as_weights
from flair2_exp.models.decoder import decode
from flair2_exp.models.encoders import create_unet, require_patch_size
from flair2_exp.models.metadata import MetadataFusion


class AerialUNet(SegmentationModel):
    """U-Net on the aerial patch.

    Args:
        encoder: An encoder of segmentation_models_pytorch.
        encoder_weights: `imagenet`, a file, or None.
        in_channels: Aerial bands.
        classes: Classes.
        decoder_channels: Channels of the decoder's blocks, deepest first.
        patch_size: Aerial pixels on a side of a patch.
        metadata_fusion: How metadata join: `channels`, `rows`, or None for no metadata.
    """

    main_head = "aerial"

    def __init__(
        self,
        *,
        encoder: str,
        encoder_weights: str | None,
        in_channels: int,
        classes: int,
        decoder_channels: Sequence[int],
        patch_size: int,
        metadata_fusion: str | None,
    ) -> None:
        super().__init__()
        network = create_unet(
            encoder,
            weights=encoder_weights,
            in_channels=in_channels,
            classes=classes,
            decoder_channels=decoder_channels,
        )
        require_patch_size(network, encoder, in_channels, patch_size)
        self.encoder: nn.Module = network.encoder
        self.decoder: UnetDecoder = network.decoder
        self.segmentation_head: nn.Module = network.segmentation_head
        self.feature_channels: tuple[int, ...] = tuple(network.encoder.out_channels)
        self.layout = torch.contiguous_format
        self._decode = decode
        self.metadata: MetadataFusion | None = None
        if metadata_fusion is not None:
            self.metadata = MetadataFusion(
                self.feature_channels[-1], patch_size // 32, fusion=metadata_fusion
            )

    def use_channels_last(self) -> None:
        """Keeps weights and maps of this branch with channels last from here on."""
        self.layout = torch.channels_last
        self.to(memory_format=torch.channels_last)

    def compile_parts(self, backend: str) -> None:
        """Compiles encoder and decoder with torch's compiler at their next use."""
        self.encoder.compile(backend=backend)
        self._decode = torch.compile(decode, backend=backend)

    def encode(self, image: Tensor | None, metadata: Tensor | None) -> list[Tensor]:
        """The encoder's maps, the image (B, bands, H, W) first; metadata are in the deepest."""
        if image is None:
            raise ValueError("the aerial U-Net needs `image`")
        image = as_weights(image, self.encoder).contiguous(memory_format=self.layout)
        features: list[Tensor] = list(self.encoder(image))
        if self.metadata is not None:
            if metadata is None:
                raise ValueError("a model with metadata fusion needs `metadata`")
            features[-1] = self.metadata(features[-1], as_weights(metadata, self.metadata))
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Encoder maps to logits (B, classes, H, W)."""
        logits: Tensor = self.segmentation_head(self._decode(self.decoder, features))
        return logits

    def forward(
        self,
        image: Tensor | None = None,
        series: Tensor | None = None,
        days: Tensor | None = None,
        padding: Tensor | None = None,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Segments from the aerial patch alone: {"aerial": (B, classes, H, W)}."""
        del series, days, padding
        return {"aerial": self.decode(self.encode(image, metadata))}
