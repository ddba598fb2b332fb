"""Aerial encoders and their first weights: ImageNet's, a file's, or none."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import Tensor, nn

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
    channels and scaled by 3 / channels; one channel gets their sum.

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
    network = _construct(encoder, None, in_channels=in_channels, **sizes)
    _load_encoder(network.encoder, weights, encoder)
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
            f"five levels: {str(error).rstrip('.')}. Choose another, as resnet34."
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
            f"The ImageNet weights of {encoder} cannot be had ({reason}). Set "
            "model.encoder_weights=null (random weights) or to a local file; if the Hugging Face "
            "hub has them, run once online to fill its cache (HF_HOME)."
        ) from error


def _is_timm(encoder: str) -> bool:
    """Whether smp hands this name to timm, which takes `True` and not the weights' name."""
    return encoder.startswith(("tu-", "timm-")) and encoder not in get_encoder_names()


def require_patch_size(network: smp.Unet, encoder: str, in_channels: int, patch_size: int) -> None:
    """Refuse an encoder made for images of one size before any training starts.

    Only timm has such encoders; they are tried without data or arithmetic, on the meta device.

    Raises:
        ModelError: Its patches are not those of `patch_size`.
    """
    if not _is_timm(encoder):
        return
    trial = copy.deepcopy(network.encoder).to("meta").eval()
    try:
        trial(torch.empty(1, in_channels, patch_size, patch_size, device="meta"))
    except AssertionError as error:  # timm's way of refusing a size
        raise ModelError(
            f"model.encoder={encoder} does not take patches of {patch_size} px ({error}). Choose "
            "an encoder for any size, as resnet34."
        ) from error
    except Exception:  # an operation that needs data: only the first batch can tell
        return


def _load_encoder(module: nn.Module, path: str, encoder: str) -> None:
    wanted = module.state_dict()
    given = named_tensors(read_file(path), path)
    found = {_encoder_name(name, wanted): tensor for name, tensor in given.items()}
    found = {
        name: _to_bands(tensor, wanted[name].shape) if name in wanted else tensor
        for name, tensor in found.items()
    }
    # Files older than these counters, as torchvision's, load for torch, too: they start from zero.
    found = {n: t for n, t in wanted.items() if n.endswith(".num_batches_tracked")} | found
    difference = mismatch(_without_heads(found, wanted), wanted)
    if difference:
        raise ModelError(
            f"model.encoder_weights={path} are not those of {encoder} with three channels: "
            f"{difference}."
        )
    module.load_state_dict({name: found[name] for name in wanted})


def _to_bands(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Fits kernels (O, 3, h, w) of the image to `shape`, (O, bands, h, w); leaves all others.

    As smp and timm do for weights that they download: the sum for one band, otherwise the three in
    turn, scaled to the same sum. timm's encoders cannot be asked to do it for others.
    """
    if tensor.dim() != 4 or tensor.shape[1] != 3 or len(shape) != 4 or shape[1] == 3:
        return tensor
    bands = shape[1]
    if bands == 1:
        return tensor.sum(1, keepdim=True)
    return tensor[:, [band % 3 for band in range(bands)]] * (3 / bands)


def _encoder_name(name: str, wanted: Mapping[str, Tensor]) -> str:
    """The encoder's name of a tensor; names that it does not know come back without `encoder.`.

    smp keeps timm's networks under `model.`, and there timm writes the parts of a sequence, as
    `stages.0`, as parts of the network, `stages_0`.
    """
    name = name.removeprefix("encoder.")
    for candidate in (name, f"model.{name}", f"model.{name.replace('.', '_', 1)}"):
        if candidate in wanted:
            return candidate
    return name


def _without_heads(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out the classifier, or what else lies in no part that the encoder has.

    What lies in one of its parts and is not wanted stays: another depth of the same network.
    """
    parts = {_part(name) for name in wanted}
    return {
        name: tensor
        for name, tensor in found.items()
        if name in wanted or {_part(name), _part(name.replace(".", "_", 1))} & parts
    }


def _part(name: str) -> str:
    return name.removeprefix("model.").split(".")[0]
