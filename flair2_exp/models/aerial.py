"""Segmentation of the aerial patch: an encoder, metadata in its deepest map, any of smp's decoders.

image ── encoder ── features ── decoder ── head ── logits
            metadata ──(+)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flair2_exp.config.model import ModelConfig
from flair2_exp.models.blocks import as_weights
from flair2_exp.models.decoder import decode
from flair2_exp.models.decoders import create_network
from flair2_exp.models.metadata import MetadataFusion
from flair2_exp.models.registry import NetworkSpec, SegmentationModel
from flair2_exp.models.trial import try_out


class AerialSegmenter(SegmentationModel):
    """An encoder and a decoder of segmentation_models_pytorch on the aerial patch.

    Parts that a choice leaves unused (the last stages of an encoder of which fewer levels are
    read, the last norm of a vision transformer) are frozen: distributed training does not wait for
    their gradients.

    Args:
        spec: The description; `model.decoder`, `model.encoder` and `model.depth` choose.
        pretrained: Whether the encoder starts from `model.encoder_weights`.
        options: Of the decoder, by the names of its class in segmentation_models_pytorch.

    Attributes:
        feature_channels: Channels of each of the encoder's maps.
        levels: The maps that the decoder reads, by their numbers.
    """

    main_head = "aerial"

    def __init__(self, spec: NetworkSpec, *, pretrained: bool = True, **options: Any) -> None:
        super().__init__()
        network = create_network(spec, options, pretrained=pretrained)
        self.encoder: nn.Module = network.encoder
        self.decoder: nn.Module = network.decoder
        self.segmentation_head: nn.Module = network.segmentation_head
        self.feature_channels: tuple[int, ...] = tuple(network.encoder.out_channels)
        self.layout = torch.contiguous_format
        self._decode = _decoding(spec.model.decoder, options)
        self.metadata: MetadataFusion | None = None
        trial = try_out(self, spec)
        self.levels = trial.levels
        for name, parameter in self.named_parameters():
            if name in trial.idle:
                parameter.requires_grad_(False)
        if "metadata" in spec.reads:
            self.metadata = MetadataFusion(
                self.feature_channels[-1], trial.deepest, fusion=spec.metadata.fusion
            )

    def accelerate(self, options: ModelConfig, backend: str = "inductor") -> None:
        """Keep weights and maps with channels last; compile encoder and decoder."""
        if options.channels_last:
            self.layout = torch.channels_last
            self.to(memory_format=torch.channels_last)
        if options.compile:
            self.encoder.compile(backend=backend)
            self._decode = torch.compile(self._decode, backend=backend)

    def encode(self, image: Tensor, metadata: Tensor | None) -> list[Tensor]:
        """Return the encoder's maps of an image (B, bands, H, W); metadata are in the deepest.

        The image itself comes first, but of a vision transformer: its maps have one size, and its
        prefix tokens (B, tokens, channels) of each follow them.

        Raises:
            ValueError: The network was built with metadata, and they are None.
        """
        image = as_weights(image, self.encoder).contiguous(memory_format=self.layout)
        encoded = self.encoder(image)
        tokens: list[Tensor] = []
        if isinstance(encoded, tuple):
            encoded, tokens = encoded[0], [each for each in encoded[1] if each is not None]
        features: list[Tensor] = list(encoded)
        if self.metadata is not None:
            if metadata is None:
                raise ValueError("a network with metadata fusion needs `metadata`")
            features[-1] = self.metadata(features[-1], as_weights(metadata, self.metadata))
        return [*features, *tokens]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, classes, H, W) of what `encode` returned."""
        logits: Tensor = self.segmentation_head(self._decode(self.decoder, features))
        return logits

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> dict[str, Tensor]:
        """Segment a batch from the aerial patch alone: {"aerial": (B, classes, H, W)}."""
        return {"aerial": self.decode(self.encode(image, metadata))}


def _decoding(decoder: str, options: dict[str, Any]) -> Any:
    """Return how a decoder is run; the U-Net's quicker way knows none of its options."""
    if decoder == "dpt":
        return _decode_with_tokens
    return decode if decoder == "unet" and not options else _decode_plainly


def _decode_plainly(decoder: nn.Module, features: Sequence[Tensor]) -> Tensor:
    y: Tensor = decoder(list(features))
    return y


def _decode_with_tokens(decoder: Any, features: Sequence[Tensor]) -> Tensor:
    maps = len(decoder.reassemble_blocks)
    tokens: list[Tensor | None] = list(features[maps:])
    tokens = tokens or [None] * maps
    y: Tensor = decoder(list(features[:maps]), tokens)
    return y
