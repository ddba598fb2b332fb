"""Starting a whole model from a file: `model.weights=PATH`."""

from __future__ import annotations

import logging
from pathlib import Path

from flair2_exp.errors import CheckpointError
from flair2_exp.models.base import SegmentationModel
from flair2_exp.models.reference import is_reference, translate
from flair2_exp.models.tensors import mismatch, named_tensors, read_file
from flair2_exp.models.utt import UTT

log = logging.getLogger(__name__)


def load_weights(model: SegmentationModel, path: str | Path) -> None:
    """Loads all weights of a model from a checkpoint of the published baseline or of this package.

    Args:
        model: Filled in place; untouched where the file is refused.
        path: A state_dict or a Lightning checkpoint, saved by torch, or a `.safetensors` file; with
            or without the `model.` prefix.

    Raises:
        CheckpointError: If the file is missing, damaged, unsafe to load, or not of this model: then
            with a list of what is missing, left over, or of another shape.
    """
    tensors = named_tensors(read_file(path), path)
    released = is_reference(tensors)
    kind = "the FLAIR #2 baseline" if released else "this package"
    if released:
        tensors = translate(tensors, fused=isinstance(model, UTT))
    difference = mismatch(tensors, model.state_dict())
    if difference:
        raise CheckpointError(
            f"{path} (a checkpoint of {kind}) is of another model than the one configured "
            f"(model, encoder, classes, bands, patch size, metadata, utae, fusion): {difference}."
        )
    model.load_state_dict(tensors)
    if released:
        log.info("%s: the published baseline's weights; as published with compat=reference", path)
