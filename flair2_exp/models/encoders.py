"""Aerial encoders and their first weights: ImageNet's, a file's, or none."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import Tensor, nn

from flair2_exp.errors import ModelError
from flair2_exp.models.registry import NetworkSpec
from flair2_exp.models.tensors import mismatch, named_tensors, read_file

IMAGENET = "imagenet"


def create_unet(spec: NetworkSpec, *, pretrained: bool) -> smp.Unet:
    """Build a `segmentation_models_pytorch.Unet`.

    `model.encoder` is an encoder of depth 5: one of smp's, or `tu-` and a name of timm.
    `model.encoder_weights` is `imagenet` (from the Hugging Face hub, or its local cache), the path
    of a file with the encoder's three-channel weights (`.safetensors`, or a state_dict saved by
    torch), or None for random weights. Weights for three channels are adapted to others as smp
    does: the kernels are repeated over the channels and scaled by 3 / channels; one channel gets
    their sum.

    Args:
        spec: The network's description.
        pretrained: False for random weights, whatever `model.encoder_weights`.

    Raises:
        ModelError: If the encoder does not exist or cannot serve, or its weights are missing.
        CheckpointError: If a weights file is unreadable.
    """
    if spec.patch_size < 32 or spec.patch_size % 32:
        raise ModelError(
            f"A patch of {spec.patch_size} pixels cannot be halved five times: its size must be a "
            "multiple of 32."
        )
    weights = spec.model.encoder_weights if pretrained else None
    if weights == IMAGENET:
        network = _with_imagenet(spec)
    elif weights is None or Path(weights).expanduser().is_file():
        network = _construct(spec, None)
        if weights is not None:
            _load_encoder(network.encoder, weights, spec.model.encoder)
    else:
        raise ModelError(
            f"model.encoder_weights={weights}: expected `imagenet`, null (random weights) or the "
            "path of an existing file."
        )
    _require_patch_size(network, spec)
    return network


def _construct(spec: NetworkSpec, weights: str | bool | None) -> smp.Unet:
    encoder, names = spec.model.encoder, get_encoder_names()
    if not encoder.startswith(("tu-", "timm-")) and encoder not in names:
        near = difflib.get_close_matches(encoder, names, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "any encoder of smp, or tu-<timm name>"
        raise ModelError(f"model.encoder={encoder} does not exist ({hint}).")
    try:
        return smp.Unet(
            encoder,
            encoder_depth=5,
            encoder_weights=weights,
            in_channels=spec.bands,
            classes=spec.classes,
            decoder_channels=list(spec.model.decoder_channels),
        )
    except (KeyError, ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        if weights is not None:
            raise
        raise ModelError(
            f"model.encoder={encoder} cannot be built with {spec.bands} channels and five levels: "
            f"{str(error).rstrip('.')}. Choose another, as resnet34."
        ) from error


def _with_imagenet(spec: NetworkSpec) -> smp.Unet:
    encoder = spec.model.encoder
    try:
        return _construct(spec, True if _is_timm(encoder) else IMAGENET)
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
    """Return whether smp hands this name to timm, which takes `True` and not the weights' name."""
    return encoder.startswith(("tu-", "timm-")) and encoder not in get_encoder_names()


def _require_patch_size(network: smp.Unet, spec: NetworkSpec) -> None:
    """Refuse an encoder made for images of one size before any training starts.

    Only timm has such encoders; they are tried without data or arithmetic, on the meta device.

    Raises:
        ModelError: Its patches are not those of `spec.patch_size`.
    """
    encoder, size = spec.model.encoder, spec.patch_size
    if not _is_timm(encoder):
        return
    trial = copy.deepcopy(network.encoder).to("meta").eval()
    try:
        trial(torch.empty(1, spec.bands, size, size, device="meta"))
    except AssertionError as error:  # timm's way of refusing a size
        raise ModelError(
            f"model.encoder={encoder} does not take patches of {size} px ({error}). Choose an "
            "encoder for any size, as resnet34."
        ) from error
    except Exception:  # an operation that needs data: only the first batch can tell
        return


def _load_encoder(module: nn.Module, path: str, encoder: str) -> None:
    wanted = module.state_dict()
    # Files older than these counters, as torchvision's, load for torch, too: they start from zero.
    tensors = {n: t for n, t in wanted.items() if n.endswith(".num_batches_tracked")}
    for original, tensor in named_tensors(read_file(path), path).items():
        name = _encoder_name(original, wanted)
        tensors[name] = _to_bands(tensor, wanted[name].shape) if name in wanted else tensor
    difference = mismatch(_without_heads(tensors, wanted), wanted)
    if difference:
        raise ModelError(
            f"model.encoder_weights={path} are not those of {encoder} with three channels: "
            f"{difference}."
        )
    module.load_state_dict({name: tensors[name] for name in wanted})


def _to_bands(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Fit kernels (O, 3, h, w) of the image to `shape`, (O, bands, h, w); leave all others.

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
    """Return the encoder's name of a tensor; of one that it does not have, that without `encoder.`.

    smp keeps timm's networks under `model.`, and there timm writes the parts of a sequence, as
    `stages.0`, as parts of the network, `stages_0`.
    """
    name = name.removeprefix("encoder.")
    for candidate in (name, f"model.{name}", f"model.{name.replace('.', '_', 1)}"):
        if candidate in wanted:
            return candidate
    return name


def _without_heads(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Leave out the classifier, or what else lies in no part that the encoder has.

    What lies in one of its parts and is not wanted stays: another depth of the same network.
    """
    parts = {_part(name) for name in wanted}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in wanted or {_part(name), _part(name.replace(".", "_", 1))} & parts
    }


def _part(name: str) -> str:
    return name.removeprefix("model.").split(".")[0]
