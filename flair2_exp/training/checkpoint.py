"""Reading the checkpoints that training writes, safely and with an answer for each that is unfit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flair2_exp.errors import CheckpointError

MODEL_KEY = "model"
"""Where the hyper-parameters of a checkpoint describe its network."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this package, on the processor.

    Args:
        path: A file that a run of this package wrote.

    Raises:
        CheckpointError: It is missing, torn, asks for more than tensors and plain values, or was
            not written by this package.
    """
    import torch

    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}: give the path of a run's checkpoints/last.ckpt or best.ckpt."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds objects besides tensors and plain values, or is no checkpoint; it is not "
            "loaded, since that could run code."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read ({first}): it is damaged; take an earlier checkpoint."
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise CheckpointError(
            f"{path} is no checkpoint of this package (no hyper-parameters in it). Released baseline "
            "weights are loaded with model.weights=PATH."
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
    held = content["hyper_parameters"].get(MODEL_KEY, {})
    # Where the first weights came from is history once training has begun.
    ignored = {"encoder_weights", "pretrained"}
    names = [name for name in sorted({*held, *model} - ignored) if held.get(name) != model.get(name)]
    if names:
        differences = ", ".join(f"{n} {held.get(n)!r} (wanted {model.get(n)!r})" for n in names)
        raise CheckpointError(
            f"{path} is of another model: {differences}.\nUse the options that it was trained with."
        )
