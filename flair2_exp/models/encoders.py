"""Aerial encoders and their first weights: ImageNet's, a file's, or none.

Weights are those of three channels, red, green and blue; `filters_of` says how they are adapted to
other bands.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from segmentation_models_pytorch.encoders import get_encoder_names
from torch import Tensor, nn

from flair2_exp.errors import ModelError
from flair2_exp.models.registry import NetworkSpec
from flair2_exp.models.tensors import mismatch, named_tensors, read_file

IMAGENET: Final = "imagenet"
_COLOURS: Final = ("red", "green", "blue")
"""The channels of pretrained weights."""


def require_encoder(encoder: str) -> None:
    """Refuse a name that is none of smp's; timm's (`tu-`) are known when they are built.

    Raises:
        ModelError: The message names the nearest.
    """
    names = get_encoder_names()
    if not encoder.startswith(("tu-", "timm-")) and encoder not in names:
        near = difflib.get_close_matches(encoder, names, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "any encoder of smp, or tu-<timm name>"
        raise ModelError(f"model.encoder={encoder} does not exist ({hint}).")


def is_timm(encoder: str) -> bool:
    """Return whether smp hands this name to timm, which takes `True` and not the weights' name."""
    return encoder.startswith(("tu-", "timm-")) and encoder not in get_encoder_names()


def first_weights(spec: NetworkSpec, *, pretrained: bool) -> str | None:
    """Return where the encoder's first weights come from.

    Args:
        spec: The network's description.
        pretrained: False where other weights will replace them: None.

    Returns:
        `imagenet`, the path of a file, or None: random.

    Raises:
        ModelError: `model.encoder_weights` is something else.
    """
    weights = spec.model.encoder_weights
    if not pretrained:
        return None
    if weights not in (None, IMAGENET) and not Path(weights).expanduser().is_file():
        raise ModelError(
            f"model.encoder_weights={weights}: expected `imagenet`, null (random weights) or the "
            "path of an existing file."
        )
    return weights


def filters_of(bands: int, names: Sequence[str]) -> list[int]:
    """Return for each band which pretrained filter it gets: 0 red, 1 green, 2 blue.

    - One band gets the sum of the three (not said here).
    - Three bands keep the three filters in the network's order, whatever they show: with near
      infrared, green, blue the near infrared gets the red filter.
    - Otherwise red, green and blue get the filters of their names; the other bands, in order, those
      that are left, and then red, green, blue in turn. All are scaled by 3 / bands.

    For red, green, blue, near infrared, elevation, and for bands without names, that is what smp
    and timm do: the filters in turn.

    Args:
        bands: How many.
        names: Of the bands, in the network's order; none where nobody knows them.
    """
    if bands <= len(_COLOURS):
        return list(range(bands))
    own = [_COLOURS.index(name) if name in _COLOURS else None for name in names or [""] * bands]
    others = [filter_ for filter_ in range(3) if filter_ not in own]
    others += [position % 3 for position in range(bands)]
    return [others.pop(0) if filter_ is None else filter_ for filter_ in own]


def order_filters(encoder: nn.Module, spec: NetworkSpec) -> None:
    """Put the filters of a pretrained encoder, which smp or timm adapted, to the bands they are of.

    Raises:
        ModelError: Its first convolution is not to be found.
    """
    wanted = filters_of(spec.bands, spec.band_names)
    if wanted == filters_of(spec.bands, ()):  # theirs
        return
    shaped = (each for each in encoder.parameters() if each.dim() == 4)
    first = next((each for each in shaped if each.shape[1] == spec.bands), None)
    if first is None:
        raise ModelError(
            f"model.encoder={spec.model.encoder} has no first convolution whose pretrained filters "
            f"could be ordered as data.bands=[{','.join(spec.band_names)}].\nUse data.bands="
            "[red,green,blue] or model.encoder_weights=null."
        )
    first.data = first.data[:, wanted].clone()


def load_encoder(module: nn.Module, path: str, spec: NetworkSpec) -> None:
    """Load a file with an encoder's three-channel weights, adapted to the bands.

    Raises:
        ModelError: The weights are of another encoder; with a list of what does not fit.
        CheckpointError: The file is unreadable.
    """
    wanted = module.state_dict()
    filters = filters_of(spec.bands, spec.band_names)
    # Files older than these counters, as torchvision's, load for torch, too: they start from zero.
    tensors = {n: t for n, t in wanted.items() if n.endswith(".num_batches_tracked")}
    for original, tensor in named_tensors(read_file(path), path).items():
        name = _encoder_name(original, wanted)
        tensors[name] = _to_bands(tensor, wanted[name].shape, filters) if name in wanted else tensor
    difference = mismatch(_without_heads(tensors, wanted), wanted)
    if difference:
        raise ModelError(
            f"model.encoder_weights={path} are not those of {spec.model.encoder} with three "
            f"channels: {difference}."
        )
    module.load_state_dict({name: tensors[name] for name in wanted})


def _to_bands(tensor: Tensor, shape: Sequence[int], filters: Sequence[int]) -> Tensor:
    """Fit kernels (O, 3, h, w) of the image to `shape`, (O, bands, h, w); leave all others.

    As smp and timm do for weights that they download, with the filters of `filters_of`. timm's
    encoders cannot be asked to do it for others.
    """
    if tensor.dim() != 4 or tensor.shape[1] != 3 or len(shape) != 4 or shape[1] == 3:
        return tensor
    bands = shape[1]
    if bands == 1:
        return tensor.sum(1, keepdim=True)
    if bands != len(filters):  # another convolution than the first
        return tensor
    return tensor[:, list(filters)] * (3 / bands)


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
