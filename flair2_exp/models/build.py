"""From a description of a model to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

from flair2_exp.errors import ModelError
from flair2_exp.models.base import SegmentationModel
from flair2_exp.models.fusion import FusionOptions
from flair2_exp.models.heads import FOOTPRINT
from flair2_exp.models.metadata import FUSIONS
from flair2_exp.models.unet import AerialUNet
from flair2_exp.models.utae import SatelliteSegmenter, UTAEOptions
from flair2_exp.models.utt import UTT

NAMES: Final[tuple[str, ...]] = ("unet", "utae", "utt")


@dataclass(frozen=True)
class ModelSpec:
    """A model as plain values: what a checkpoint keeps to be rebuilt from.

    Attributes:
        name: `unet`, `utae` or `utt`.
        encoder: The aerial encoder (an encoder of segmentation_models_pytorch).
        encoder_weights: `imagenet`, None, or a file.
        in_channels: Aerial bands.
        classes: Classes.
        decoder_channels: Channels of the U-Net decoder's blocks, deepest first.
        metadata: Whether the metadata join the aerial encoder.
        metadata_fusion: `channels` or `rows` (published).
        patch_size: Aerial pixels on a side of a patch; a multiple of 32 where there is an encoder.
        series_size: Satellite pixels on a side of a super-patch.
        utae: Sizes and choices of the satellite branch.
        fusion: Choices of the fusion.
    """

    name: str
    encoder: str = "resnet34"
    encoder_weights: str | None = None
    in_channels: int = 5
    classes: int = 13
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    metadata: bool = False
    metadata_fusion: str = "channels"
    patch_size: int = 512
    series_size: int = 40
    utae: UTAEOptions = field(default_factory=UTAEOptions)
    fusion: FusionOptions = field(default_factory=FusionOptions)

    def __post_init__(self) -> None:
        """Refuses what cannot be built.

        Raises:
            ModelError: If values are unknown or do not fit each other.
        """
        if self.name not in NAMES:
            raise ModelError(f"model.name={self.name}: expected one of {NAMES}.")
        if self.metadata_fusion not in FUSIONS:
            raise ModelError(f"metadata.fusion={self.metadata_fusion}: expected one of {FUSIONS}.")
        if self.name != "utae" and (self.patch_size < 32 or self.patch_size % 32):
            raise ModelError(
                f"A patch of {self.patch_size} pixels cannot be halved five times: its size must "
                "be a multiple of 32."
            )
        step = 2 ** (len(self.utae.encoder_widths) - 1)
        smallest = max(FOOTPRINT, 2 * step)
        if self.name != "unet" and (self.series_size % step or self.series_size < smallest):
            raise ModelError(
                f"s2_preproc.size={self.series_size}: a U-TAE of {len(self.utae.encoder_widths)} "
                f"scales needs a multiple of {step}, at least {smallest}."
            )
        if self.metadata and self.name == "utae":
            raise ModelError(
                "model=utae does not read metadata, which join the aerial encoder: set "
                "metadata=off, or model=unet or utt."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries of them."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The spec that `to_dict` described."""
        given = dict(values)
        utae = UTAEOptions(**_frozen(given.pop("utae", {})))
        fusion = FusionOptions(**_frozen(given.pop("fusion", {})))
        return cls(utae=utae, fusion=fusion, **_frozen(given))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def build_model(spec: ModelSpec, *, pretrained: bool = True) -> SegmentationModel:
    """Builds a model with its first weights.

    Args:
        spec: The description.
        pretrained: False where a checkpoint or `load_weights` will replace all weights anyway:
            encoder weights are then neither read nor downloaded.

    Raises:
        ModelError: If the encoder does not exist or its weights cannot be had.
    """
    if spec.name == "utae":
        return SatelliteSegmenter(spec.utae, classes=spec.classes, patch_size=spec.patch_size)
    unet = AerialUNet(
        encoder=spec.encoder,
        encoder_weights=spec.encoder_weights if pretrained else None,
        in_channels=spec.in_channels,
        classes=spec.classes,
        decoder_channels=spec.decoder_channels,
        patch_size=spec.patch_size,
        metadata_fusion=spec.metadata_fusion if spec.metadata else None,
    )
    if spec.name == "unet":
        return unet
    return UTT(unet, spec.utae, spec.fusion, classes=spec.classes, patch_size=spec.patch_size)


def accelerate(
    model: SegmentationModel,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    backend: str = "inductor",
) -> SegmentationModel:
    """Applies the options that change speed and not results, in place; names stay the same.

    Args:
        model: The model, on any device: the order in memory moves with it to another, and what is
            compiled is compiled at its first use.
        channels_last: Keep the aerial branch's maps with channels last (U-TAE always does).
        compiled: Compile the aerial branch with torch's compiler. U-TAE's packing depends on the
            data, which would compile anew for every count of frames, so it stays as it is.
        backend: Of torch's compiler.

    Returns:
        The same model.
    """
    unet = model.unet if isinstance(model, UTT) else model
    if isinstance(unet, AerialUNet):
        if channels_last:
            unet.use_channels_last()
        if compiled:
            unet.compile_parts(backend)
    return model


def count_parameters(model: nn.Module) -> int:
    """How many numbers a model's parameters hold."""
    return sum(parameter.numel() for parameter in model.parameters())
