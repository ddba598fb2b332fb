"""The checkpoints that training writes: read safely, refused where they are of another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flair2_exp.errors import CheckpointError, ModelError
from flair2_exp.models.build import ModelSpec
from flair2_exp.models.tensors import read_file

_WITHOUT_EFFECT: Final = ("encoder_weights", "utae.checkpointing")
"""Where the first weights came from, and what is worked out twice to save memory."""
_OF_OTHER_MODELS: Final[dict[str, tuple[str, ...]]] = {
    "unet": ("series_size", "utae.", "fusion."),
    "utae": ("encoder", "in_channels", "decoder_channels", "metadata", "fusion."),
    "utt": (),
}
"""How the options of parts begin that a model does not have."""


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

    Options that do not decide the network's results may differ, and those of parts that it does not
    have.

    Args:
        path: Named in the message.
        content: What `read_checkpoint` returned.
        model: The wanted `ModelSpec.to_dict()`.

    Raises:
        CheckpointError: The networks differ; the message lists how. Or the checkpoint describes
            none that this version builds.
    """
    try:
        held = _deciding(content["hyper_parameters"]["model"])
    except (KeyError, TypeError, AttributeError, ValueError, ModelError) as error:
        raise CheckpointError(
            f"{path} describes no model that this version of the package builds ({error}).\n"
            "Weights alone are loaded with model.weights=PATH."
        ) from error
    wanted = _deciding(model)
    names = [name for name in sorted({*held, *wanted}) if held.get(name) != wanted.get(name)]
    if names:
        differences = ", ".join(f"{n} is {held.get(n)} (wanted {wanted.get(n)})" for n in names)
        raise CheckpointError(
            f"{path} is of another model: {differences}.\nUse the options that it was trained with."
        )


def _deciding(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a network's results hang on, by dotted name; what it does not say is the default.

    Raises:
        ModelError: It cannot be built; errors of other kinds where `model` describes nothing.
    """
    spec = ModelSpec.from_dict(model)
    other = (*_WITHOUT_EFFECT, *_OF_OTHER_MODELS[spec.name])
    if not spec.metadata:
        other = (*other, "metadata_fusion")
    return {n: v for n, v in _flat(spec.to_dict()).items() if not n.startswith(other)}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": each for name, each in _flat(value).items()}
        else:
            flat[key] = value
    return flat
