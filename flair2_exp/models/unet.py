"""The aerial U-Net: an encoder of segmentation_models_pytorch, metadata, the U-Net decoder."""

from __future__ import annotations

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from flair2_exp.config.model import ModelConfig
from flair2_exp.models.blocks import as_weights
from flair2_exp.models.decoder import decode
from flair2_exp.models.encoders import create_unet
from flair2_exp.models.metadata import MetadataFusion
from flair2_exp.models.registry import NetworkSpec, SegmentationModel


class AerialUNet(SegmentationModel):
    """U-Net on the aerial patch."""

    main_head = "aerial"

    def __init__(self, spec: NetworkSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        network = create_unet(spec, pretrained=pretrained)
        self.encoder: nn.Module = network.encoder
        self.decoder: UnetDecoder = network.decoder
        self.segmentation_head: nn.Module = network.segmentation_head
        self.feature_channels: tuple[int, ...] = tuple(network.encoder.out_channels)
        self.layout = torch.contiguous_format
        self._decode = decode
        self.metadata: MetadataFusion | None = None
        if "metadata" in spec.reads:
            self.metadata = MetadataFusion(
                self.feature_channels[-1], spec.patch_size // 32, fusion=spec.metadata.fusion
            )

    def accelerate(self, options: ModelConfig, backend: str = "inductor") -> None:
        """Keep weights and maps with channels last; compile encoder and decoder."""
        if options.channels_last:
            self.layout = torch.channels_last
            self.to(memory_format=torch.channels_last)
        if options.compile:
            self.encoder.compile(backend=backend)
            self._decode = torch.compile(decode, backend=backend)

    def encode(self, image: Tensor, metadata: Tensor | None) -> list[Tensor]:
        """Return the encoder's maps, the image (B, bands, H, W) first; metadata are in the deepest.

        Raises:
            ValueError: The network was built with metadata, and they are None.
        """
        image = as_weights(image, self.encoder).contiguous(memory_format=self.layout)
        features: list[Tensor] = list(self.encoder(image))
        if self.metadata is not None:
            if metadata is None:
                raise ValueError("a network with metadata fusion needs `metadata`")
            features[-1] = self.metadata(features[-1], as_weights(metadata, self.metadata))
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, classes, H, W) of the encoder's maps."""
        logits: Tensor = self.segmentation_head(self._decode(self.decoder, features))
        return logits

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> dict[str, Tensor]:
        """Segment a batch from the aerial patch alone: {"aerial": (B, classes, H, W)}."""
        return {"aerial": self.decode(self.encode(image, metadata))}
