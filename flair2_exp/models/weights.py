"""Starting a whole model from a file: `model.weights=PATH`."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from flair2_exp.errors import CheckpointError
from flair2_exp.models.reference import is_reference, translate
from flair2_exp.models.tensors import mismatch, named_tensors, read_file

log = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load all weights of a network from a checkpoint of the published baseline or of this package.

    Args:
        model: Filled in place; untouched where the file is refused.
        path: A state_dict or a Lightning checkpoint, saved by torch, or a `.safetensors` file; with
            or without the `model.` prefix.

    Raises:
        CheckpointError: If the file is missing, damaged, unsafe to load, or not of this model: then
            with a list of what is missing, left over, or of another shape.
    """
    tensors, expected = named_tensors(read_file(path), path), model.state_dict()
    released = is_reference(tensors)
    kind = "the FLAIR #2 baseline" if released else "this package"
    if released:
        tensors = translate(tensors, fused=any(name.startswith("unet.") for name in expected))
    difference = mismatch(tensors, expected)
    if difference:
        raise CheckpointError(
            f"{path} (a checkpoint of {kind}) is of another network than the one configured "
            f"(model, encoder, classes, bands, patch size, metadata, utae, fusion): {difference}."
        )
    model.load_state_dict(tensors)
    if released:
        log.info("%s: the published baseline's weights; as published with compat=reference", path)
