"""The checkpoints that training writes: read safely, refused where they are of another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flair2_exp.errors import CheckpointError
from flair2_exp.models.tensors import read_file

_HISTORY = frozenset({"encoder_weights"})
"""Where the first weights came from no longer matters once training has begun."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this package, on the processor.

    Args:
        path: A file that a run of this package wrote.

    Raises:
        CheckpointError: It is missing, torn, asks for more than tensors and plain values, or was
            not written by this package.
    """
    content = read_file(path)
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise CheckpointError(
            f"{path} is no checkpoint of this package (no hyper-parameters in it).\nReleased "
            "baseline weights are loaded with model.weights=PATH."
        )
    return content


def require_same_model(path: Path, content: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another network than the config asks for.

    Args:
        path: Named in the message.
        content: What `read_checkpoint` returned.
        model: The wanted `ModelSpec.to_dict()`.

    Raises:
        CheckpointError: The networks differ; the message lists how.
    """
    held, wanted = _flat(content["hyper_parameters"].get("model", {})), _flat(model)
    names = [
        name for name in sorted({*held, *wanted} - _HISTORY) if held.get(name) != wanted.get(name)
    ]
    if names:
        differences = ", ".join(f"{n} is {held.get(n)} (wanted {wanted.get(n)})" for n in names)
        raise CheckpointError(
            f"{path} is of another model: {differences}.\nUse the options that it was trained with."
        )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": each for name, each in _flat(value).items()}
        else:
            flat[key] = value
    return flat
