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
    if held["name"] != wanted["name"]:  # then their options are others, too
        held, wanted = {"name": held["name"]}, {"name": wanted["name"]}
    differences = _differences(held, wanted)
    if differences:
        raise CheckpointError(
            f"{path} is of another model: {differences}.\nUse the options that it was trained with."
        )


def require_training_state(
    path: Path, content: Mapping[str, Any], options: Mapping[str, Any], *, epochs: int
) -> None:
    """Refuse to train on from a checkpoint that has nothing left to train, or trained otherwise.

    The optimizer goes on with all that the checkpoint holds, its learning rate too: other options
    of the config would be silently ignored.

    Args:
        path: Named in the message.
        content: What `read_checkpoint` returned.
        options: The hyper-parameters of the task that is to go on.
        epochs: `trainer.max_epochs`.

    Raises:
        CheckpointError: It holds no state of a training, or of another optimizer, or of one that
            has ended.
    """
    anew = "Start anew from its weights with model.weights=PATH."
    try:
        trained = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        held = _course(content["hyper_parameters"])
    except KeyError as error:
        raise CheckpointError(
            f"{path} holds no training to go on from (no {error}).\n{anew}"
        ) from error
    wanted = _course(options)
    if held != wanted:
        raise CheckpointError(
            f"{path} would go on in its own way: {_differences(held, wanted)}.\n"
            f"Use the options that it was trained with. {anew}"
        )
    states = content.get("callbacks", {}).values()
    if any(state.get("stopped_epoch", 0) for state in states):
        raise CheckpointError(f"{path} had stopped early, and would at once again.\n{anew}")
    if trained >= epochs:
        raise CheckpointError(
            f"{path} has trained {trained} epochs, trainer.max_epochs={epochs}: ask for more in "
            f"all, or test it with train=false.\n{anew}"
        )


def _course(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a task's options is in its optimizer's and schedule's state, by dotted name."""
    plateau = options["scheduler"]["name"] == "plateau"
    return _flat({"optimizer": options["optimizer"], "scheduler": {"plateau": plateau}})


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The names that differ and how; empty where none does."""
    return ", ".join(
        f"{name} is {held.get(name)} (wanted {wanted.get(name)})"
        for name in sorted({*held, *wanted})
        if held.get(name) != wanted.get(name)
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
