"""Aerial encoders and their first weights: ImageNet's, a file's, or none."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import nn

from flair2_exp.errors import ModelError
from flair2_exp.models.tensors import mismatch, named_tensors, read_file

IMAGENET = "imagenet"


def create_unet(
    encoder: str,
    *,
    weights: str | None,
    in_channels: int,
    classes: int,
    decoder_channels: Sequence[int],
) -> smp.Unet:
    """A `segmentation_models_pytorch.Unet`.

    Weights for three channels are adapted to others as smp does: the kernels are repeated over the
    channels and scaled by 3 / channels.

    Args:
        encoder: Name of an encoder of depth 5: one of smp's, or `tu-` and a name of timm.
        weights: `imagenet` (from the Hugging Face hub, or its local cache), the path of a file with
            the encoder's three-channel weights (`.safetensors`, or a state_dict saved by torch), or
            None for random weights.
        in_channels: Aerial bands.
        classes: Classes.
        decoder_channels: Channels of the five decoder blocks, deepest first.

    Raises:
        ModelError: If the encoder does not exist or cannot serve, or its weights cannot be had.
        CheckpointError: If a weights file is missing or unreadable.
    """
    if len(decoder_channels) != 5:
        raise ModelError(
            f"model.decoder_channels={list(decoder_channels)}: expected five, one for each halving."
        )
    sizes: dict[str, int | list[int]] = {
        "classes": classes,
        "decoder_channels": list(decoder_channels),
    }
    if weights is None:
        return _construct(encoder, None, in_channels=in_channels, **sizes)
    if weights == IMAGENET:
        return _pretrained(encoder, in_channels=in_channels, **sizes)
    if not Path(weights).expanduser().is_file():
        raise ModelError(
            f"model.encoder_weights={weights}: expected `imagenet`, null (random weights) or the "
            "path of an existing file."
        )
    network = _construct(encoder, None, in_channels=3, **sizes)
    _load_encoder(network.encoder, weights, encoder)
    network.encoder.set_in_channels(in_channels, pretrained=True)
    return network


def _construct(encoder: str, weights: str | bool | None, **sizes: int | list[int]) -> smp.Unet:
    known = get_encoder_names()
    if not encoder.startswith(("tu-", "timm-")) and encoder not in known:
        near = difflib.get_close_matches(encoder, known, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "any encoder of smp, or tu-<timm name>"
        raise ModelError(f"model.encoder={encoder} does not exist ({hint}).")
    try:
        return smp.Unet(encoder, encoder_depth=5, encoder_weights=weights, **sizes)
    except (KeyError, ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        if weights is not None:
            raise
        raise ModelError(
            f"model.encoder={encoder} cannot be built with {sizes['in_channels']} channels and "
            f"five levels: {error}. Choose another, as resnet34."
        ) from error


def _pretrained(encoder: str, **sizes: int | list[int]) -> smp.Unet:
    weights: str | bool = True if _is_timm(encoder) else IMAGENET
    try:
        return _construct(encoder, weights, **sizes)
    except ModelError:
        raise
    except Exception as error:  # hub, HTTP client and timm each raise their own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The ImageNet weights of {encoder} are neither cached nor reachable ({reason}). "
            "Set model.encoder_weights=null (random weights) or to a local file, or run once "
            "online to fill the cache (HF_HOME)."
        ) from error


def _is_timm(encoder: str) -> bool:
    """Whether smp hands this name to timm, which takes `True` and not the weights' name."""
    return encoder.startswith(("tu-", "timm-")) and encoder not in get_encoder_names()


def _load_encoder(module: nn.Module, path: str, encoder: str) -> None:
    found = named_tensors(read_file(path), path)
    found = {name.removeprefix("encoder."): tensor for name, tensor in found.items()}
    wanted = module.state_dict()
    if all(f"model.{name}" in wanted for name in found):  # timm's own names
        found = {f"model.{name}": tensor for name, tensor in found.items()}
    heads = ("fc.", "last_linear.", "classifier.", "head.", "_fc.")
    found = {n: t for n, t in found.items() if n in wanted or not n.startswith(heads)}
    difference = mismatch(found, wanted)
    if difference:
        raise ModelError(
            f"model.encoder_weights={path} are not those of {encoder} with three channels: "
            f"{difference}."
        )
    module.load_state_dict(found)
