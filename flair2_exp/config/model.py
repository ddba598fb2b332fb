"""The groups that describe a network: model, and utae and fusion for its satellite parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from flair2_exp.config.fields import Decides, Group, option, require_usable
from flair2_exp.config.relevance import (
    if_aerial,
    if_context,
    if_context_drops,
    if_first_weights,
    if_no_checkpoint,
    if_series_drop,
    if_series_may_drop,
    if_trained,
    if_widths,
    in_network,
)
from flair2_exp.errors import ConfigError

Input = Literal["aerial", "satellite", "metadata"]
"""What a network can read of a patch."""

Decoder = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3plus", "upernet",
    "segformer", "dpt",
]  # fmt: skip
"""The decoders of segmentation_models_pytorch for the aerial patch."""
WITH_WIDTHS: Final = ("unet", "unetplusplus", "manet")
"""Those with a block per halving, whose widths are `model.decoder_channels`."""
DILATED: Final = ("pan", "deeplabv3plus")
"""Those for which the encoder's last stages dilate instead of halving."""
_WORDS: Final = {3: "three", 4: "four", 5: "five"}
AUTO: Final = "auto"
"""Encoder weights that `Config` replaces: `imagenet` on real data, none on the sample."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """The network. Its file says which class it is, what it reads and where its options stand."""

    node: ClassVar[str] = "model"

    name: str = option("", chosen=True, decides=False)
    _target_: str = option("", chosen=True)
    """The network's class: a `flair2_exp.models.registry.SegmentationModel`."""
    reads: tuple[Input, ...] = option((), chosen=True, decides=False)
    """The inputs that the network takes; what none takes is not read from the disk."""
    nodes: tuple[str, ...] = option((), decides=False)
    """Other groups that hold options of the network, as `utae`."""
    options: Mapping[str, Any] = option({}, -1e9, 1e9)
    """Further options of the network, by the names of its constructor's arguments."""
    patch_multiple: int | None = option(None, 1, 65_536, decides=False)
    """The aerial patch's size must be a multiple of this number of pixels; null: of what decoder
    and depth need."""
    encoder: str = option("resnet34", decides=if_aerial)
    """The aerial encoder: one of segmentation_models_pytorch, or `tu-` and a name of timm."""
    encoder_weights: str | None = option(AUTO, decides=if_first_weights)
    """`imagenet`, null (random), a local file, or `auto`: ImageNet's on real data, else random."""
    decoder: Decoder = option("unet", decides=if_aerial)
    """The aerial decoder."""
    depth: int = option(5, 3, 5, decides=if_aerial)
    """How often the encoder halves the patch; for `dpt`, how many of its blocks are read."""
    decoder_channels: tuple[int, ...] = option((256, 128, 64, 32, 16), 1, 65_536, decides=if_widths)
    """Widths of the blocks of `unet`, `unetplusplus` and `manet`, deepest first, one per level."""
    freeze_encoder: int = option(0, -1, 1_000_000, decides=if_trained)
    """Epochs for which the encoder's weights stay as they are, its norms in evaluation mode; -1:
    the whole training."""
    weights: str | None = option(None, decides=if_no_checkpoint, path=True)
    """A released baseline checkpoint, or weights saved by this package, to start from."""
    channels_last: bool = option(False, decides=False)
    """Keep the aerial branch's maps with channels last: faster on some devices."""
    compile: bool = option(False, decides=False)
    """Compile the aerial branch with torch's compiler."""

    def validate(self) -> None:
        """Refuse a decoder without a width per level, and weights that no file can hold."""
        if self.encoder_weights not in (None, "imagenet", AUTO):
            require_usable("model.encoder_weights", self.encoder_weights)
        widths = len(self.decoder_channels)
        if "aerial" in self.reads and self.has_widths and widths != self.depth:
            raise ConfigError(
                f"model.decoder_channels={list(self.decoder_channels)}: expected "
                f"{_WORDS[self.depth]} widths, deepest first, one for each halving of the encoder "
                f"(model.depth={self.depth})."
            )

    @property
    def has_widths(self) -> bool:
        """Whether the decoder takes `decoder_channels`."""
        return self.decoder in WITH_WIDTHS

    @property
    def is_published_decoder(self) -> bool:
        """Whether the decoder is the published U-Net's."""
        return (self.decoder, self.depth) == ("unet", 5)

    @property
    def patch_step(self) -> int:
        """Of what the aerial patch's size must be a multiple."""
        if self.patch_multiple is not None:
            return self.patch_multiple
        if self.decoder == "dpt":  # which halves the deepest of its maps, all of 1/16, once more
            return max(32, int(2 ** (self.depth + 1)))
        stride = self.options.get("encoder_output_stride", 16) if self.decoder in DILATED else 32
        return min(int(2**self.depth), stride if isinstance(stride, int) else 32)


@dataclass(frozen=True, kw_only=True)
class UTAEConfig(Group):
    """U-TAE, the satellite branch (Garnot and Landrieu, 2021)."""

    node: ClassVar[str] = "utae"
    decides: ClassVar[Decides] = in_network(node)

    encoder_widths: tuple[int, ...] = option((64, 64, 128, 128), 4, 65_536)
    """Channels of the four scales, full resolution first."""
    decoder_widths: tuple[int, ...] = option((64, 64, 128, 128), 4, 65_536)
    """Channels of the decoder's four scales; the last one of both lists is the deepest map's."""
    heads: int = option(16, 1, 1024)
    """Heads of the temporal attention; each takes an equal share of the channels."""
    d_model: int = option(256, 4, 65_536)
    """Width of the temporal encoder."""
    d_k: int = option(4, 1, 4096)
    """Width of a key."""
    aggregation: Literal["att_group", "att_mean", "mean"] = "att_group"
    """How skips are averaged over time: by each head's attention (`att_group`), by the heads' mean
    attention (`att_mean`), or evenly (`mean`)."""
    head_widths: tuple[int, ...] = option((32,), 1, 65_536)
    """Widths of the output block between the last map and the classes."""
    normalise_padding: bool = False
    """Whether padded frames enter the first normalisation (the baseline)."""
    checkpointing: bool = option(False, decides=False)
    """Recompute activations in the backward pass: less memory, more time."""

    def validate(self) -> None:
        """Refuse widths and heads that do not fit each other."""
        if len(self.encoder_widths) != 4 or len(self.decoder_widths) != 4:
            raise ConfigError(
                "utae.encoder_widths and utae.decoder_widths hold four widths each, full "
                f"resolution first; these hold {len(self.encoder_widths)} and "
                f"{len(self.decoder_widths)}."
            )
        if self.encoder_widths[-1] != self.decoder_widths[-1]:
            raise ConfigError(
                f"utae.encoder_widths ends in {self.encoder_widths[-1]} and utae.decoder_widths "
                f"in {self.decoder_widths[-1]}: the deepest map is the same, so they must agree."
            )
        if any(
            width % 4 for width in self.encoder_widths
        ):  # the encoder's GroupNorms have four groups
            odd = [width for width in self.encoder_widths if width % 4]
            raise ConfigError(f"utae.encoder_widths: expected multiples of 4, not {odd}.")
        widths = self.encoder_widths
        # Heads share the channels of the deepest scale; with att_group those of every scale.
        by_head = widths if self.aggregation == "att_group" else widths[-1:]
        uneven = [width for width in (*by_head, self.d_model) if width % self.heads]
        if uneven:
            raise ConfigError(
                f"utae.heads={self.heads} does not divide {uneven[0]}, one of utae.encoder_widths "
                f"and utae.d_model: with utae.aggregation={self.aggregation} every head takes an "
                "equal share of the channels."
            )
        if self.heads == self.encoder_widths[-1]:
            raise ConfigError(
                f"utae.heads={self.heads} leaves each head one channel of the deepest map, which "
                "the normalisation by heads makes the same for all inputs: use at most "
                f"{self.heads // 2}."
            )


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Group):
    """How the satellite map joins the aerial encoder's features (U-T&T)."""

    node: ClassVar[str] = "fusion"
    decides: ClassVar[Decides] = in_network(node)

    terms: Literal["both", "cropped", "collapsed"] = "both"
    """What joins: the map under the patch (cropped), its mean over the super-patch (collapsed)."""
    collapsed: Literal["each_sample", "first_sample"] = option("each_sample", decides=if_context)
    """Which mean over the super-patch a sample gets: its own, or that of the batch's first sample
    (the baseline)."""
    dropout: Literal["each_sample", "always_batch"] = option("each_sample", decides=if_series_drop)
    """How modality dropout works: for each sample by itself and in training only, or for whole
    batches and in validation and test too (the baseline)."""
    dropout_rate: float = option(0.0, 0.0, 1.0, decides=if_series_may_drop)
    """Probability of leaving the satellite features out (modality dropout)."""
    mlp_dropout: float = option(0.3, 0.0, 0.9, decides=if_context_drops)
    """Dropout within the perceptrons of the collapsed term."""
