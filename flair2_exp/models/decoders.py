"""The decoders of segmentation_models_pytorch, each with an aerial encoder: built from a config."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Final

import segmentation_models_pytorch as smp
from torch import nn

from flair2_exp.errors import ConfigError, ModelError, first_line, nearest
from flair2_exp.models.encoders import (
    IMAGENET,
    first_weights,
    is_timm,
    load_encoder,
    order_filters,
    require_encoder,
)
from flair2_exp.models.registry import NetworkSpec
from flair2_exp.registry import arguments_of, written

DECODERS: Final[Mapping[str, type[nn.Module]]] = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "linknet": smp.Linknet,
    "fpn": smp.FPN,
    "pspnet": smp.PSPNet,
    "pan": smp.PAN,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
    "dpt": smp.DPT,
}
"""The class of each `model.decoder`."""

_UNBUILDABLE = (
    AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError,
    TypeError, ValueError, ZeroDivisionError,
)  # fmt: skip
"""What smp and timm raise for combinations that do not exist."""


_NEED_HALF: Final = ("unetplusplus", "linknet")
"""The decoders that smp refuses for encoders without a map at half resolution."""


def create_network(spec: NetworkSpec, options: Mapping[str, Any], *, pretrained: bool) -> Any:
    """Build a network of segmentation_models_pytorch, its encoder with its first weights.

    Args:
        spec: The description: `model.encoder`, `model.decoder`, `model.depth`.
        options: Of the decoder, by the names of its class's arguments.
        pretrained: False for random weights, whatever `model.encoder_weights`.

    Returns:
        An instance of the class, with `encoder`, `decoder` and `segmentation_head`.

    Raises:
        ConfigError: If the decoder does not take the options.
        ModelError: If encoder, decoder, depth or patch size do not go together, or the encoder's
            weights are missing.
        CheckpointError: If a weights file is unreadable.
    """
    step = spec.model.patch_step
    if spec.patch_size % step or spec.patch_size < step:
        raise ModelError(
            f"Patches of {spec.patch_size} px do not suit model.decoder={spec.model.decoder} with "
            f"model.depth={spec.model.depth}: expected a multiple of {step} px, which the encoder "
            "halves."
        )
    require_encoder(spec.model.encoder)
    arguments = _arguments(spec, options)
    source = first_weights(spec, pretrained=pretrained)
    if source != IMAGENET:
        network = _construct(spec, arguments, None)
        if source is not None:
            load_encoder(network.encoder, source, spec)
        return network
    network = _with_imagenet(spec, arguments)
    order_filters(network.encoder, spec)
    return network


def _arguments(spec: NetworkSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the decoder's class, options checked."""
    model, kind = spec.model, DECODERS[spec.model.decoder]
    given: dict[str, Any] = {
        "encoder_name": model.encoder,
        "encoder_depth": model.depth,
        "in_channels": spec.bands,
        "classes": spec.classes,
        "activation": None,
        "aux_params": None,
        "encoder_weights": None,
    }
    if model.has_widths:
        given["decoder_channels"] = list(model.decoder_channels)
    if model.decoder in ("fpn", "pspnet"):  # smp's own is right for one depth alone
        given["upsampling"] = 2 ** (model.depth - (3 if model.decoder == "fpn" else 0))
    else:
        given["upsampling"] = 4
    # smp's classes take further arguments, for timm: a misspelt option would be one of them.
    own = [
        name
        for name, each in inspect.signature(kind).parameters.items()
        if each.kind is not each.VAR_KEYWORD and name not in given
    ]
    for name in options:
        if name not in own and name not in given:
            hint = nearest(name, own) if own else "it takes none."
            raise ConfigError(f"model.options.{name}: {written(kind)} has no such option; {hint}")
    arguments = arguments_of(kind, "model.options", given=given, options=options)
    del arguments["encoder_weights"]
    return arguments


def _construct(spec: NetworkSpec, arguments: Mapping[str, Any], weights: str | bool | None) -> Any:
    model = spec.model
    try:
        if model.decoder == "dpt":
            return _construct_dpt(arguments, weights)
        return DECODERS[model.decoder](**arguments, encoder_weights=weights)
    except _UNBUILDABLE as error:
        if weights is not None:
            raise
        reason = first_line(error).rstrip(".!")
        if model.encoder.startswith("mit_b") and model.decoder in _NEED_HALF:
            reason = "it has no map at half resolution, which the decoder needs"
        instead = "tu-vit_base_patch16_224" if model.decoder == "dpt" else "resnet34"
        raise ModelError(
            f"model.encoder={model.encoder} cannot be built with {spec.bands} channels, "
            f"model.decoder={model.decoder} and model.depth={model.depth}: {reason}.\n"
            f"Choose another encoder, as {instead}, or another decoder."
        ) from error


def _construct_dpt(arguments: Mapping[str, Any], weights: str | bool | None) -> Any:
    """Build a DPT whose vision transformer takes patches of any size, where timm's can."""
    with warnings.catch_warnings():
        # smp's, of encoders without a class token: for them every readout is `ignore` or near it.
        warnings.filterwarnings("ignore", "Encoder does not have prefix tokens")
        try:
            network = smp.DPT(
                **arguments, encoder_weights=weights, num_classes=0, dynamic_img_size=True
            )
        except TypeError:  # not a transformer whose position code timm resizes
            network = smp.DPT(**arguments, encoder_weights=weights, num_classes=0)
    if len(set(network.encoder.output_strides)) > 1:
        raise ValueError("it is not a plain vision transformer, with maps of one size")
    return network


def _with_imagenet(spec: NetworkSpec, arguments: Mapping[str, Any]) -> Any:
    encoder = spec.model.encoder
    try:
        return _construct(spec, arguments, True if is_timm(encoder) else IMAGENET)
    except ModelError:
        raise
    except Exception as error:  # hub, HTTP client and timm each raise their own kinds
        reason = first_line(error)
        raise ModelError(
            f"The ImageNet weights of {encoder} cannot be had ({reason}). Set "
            "model.encoder_weights=null (random weights) or to a local file; if the Hugging Face "
            "hub has them, run once online to fill its cache (HF_HOME)."
        ) from error
