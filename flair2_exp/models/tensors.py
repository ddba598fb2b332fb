"""Named tensors from a file that may come from anywhere, compared with those of a module.

Nothing is unpickled but tensors and plain containers: a file that needs more is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flair2_exp.compat import COMPILED_PREFIX
from flair2_exp.errors import CheckpointError, first_line, some

_LISTED = 8
"""Names listed of each kind of mismatch; the rest are counted."""


def read_file(path: str | Path) -> object:
    """Return the content of a checkpoint: `.safetensors`, or whatever `torch.save` wrote.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds other objects than tensors and
            plain values.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise CheckpointError(f"No checkpoint at {file}: give the path of an existing file.")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file, device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors and plain values (or is damaged) and is not loaded, "
            f"since that could run its code: save its state_dict alone. ({_unsafe(error)})"
        ) from error
    except Exception as error:  # a damaged pickle is a damaged program: it may raise any kind
        raise CheckpointError(
            f"{file} is not a readable checkpoint (damaged, or cut short): fetch it again. "
            f"({first_line(error)})"
        ) from error


def named_tensors(content: object, path: str | Path) -> dict[str, Tensor]:
    """Return the network's tensors of a file's content, without wrappings.

    Lightning keeps them under `state_dict`, those of the network under `model.`; what a Lightning
    module holds beside its network (class weights of a loss, sums of a metric) is left out.

    Raises:
        CheckpointError: If there are no named tensors in it.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no named tensors: expected a model's state_dict.")
    if any(name.startswith("model.") for name in tensors):
        tensors = {
            name.removeprefix("model."): value
            for name, value in tensors.items()
            if name.startswith("model.")
        }
    return {name.replace(COMPILED_PREFIX, ""): value for name, value in tensors.items()}


def mismatch(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return what keeps `tensors` from being loaded as `expected`: None, or lists of names."""
    lists = {
        "missing": [name for name in expected if name not in tensors],
        "left over": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
    }
    parts = [
        f"{len(names)} {kind}: {some(names, _LISTED)}" for kind, names in lists.items() if names
    ]
    return "; ".join(parts) or None


def _unsafe(error: BaseException) -> str:
    """Return the line of torch's long advice that names the object, or its first."""
    for line in str(error).splitlines():
        if "GLOBAL" in line or "Unsupported" in line:
            return line.strip().split(". ")[0]
    return first_line(error)
