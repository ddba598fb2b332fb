"""A trained network as a safetensors file, which runs no code, with a model card beside it.

    model.safetensors     the tensors; in its header, as JSON, all that rebuilds the network
    model.md              the card: data, scores, use and limits, origin, licence

`Predictor.from_run("model.safetensors")` predicts with it, bit by bit as the run does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp import __version__
from flair2_exp.config.experiment import Config
from flair2_exp.errors import CheckpointError
from flair2_exp.files import replacing
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.lifecycle.results import SYNTHETIC
from flair2_exp.results.finding import WEIGHTS
from flair2_exp.score import convention_of
from flair2_exp.tracking.scrub import scrub
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Member

SUFFIX: Final = WEIGHTS
_OPTIONS: Final = "flair2_exp.hyper_parameters"
_ORIGIN: Final = "flair2_exp.origin"


@dataclass(frozen=True)
class Intervals:
    """Intervals of a run's scores, as its report computes them."""

    ends: Mapping[str, tuple[float, float]]
    """Lower and upper end: of `mIoU`, and of the IoU of classes by name; those that are known."""
    over: str
    """What they are over, in words: `95 %, over 10 domains of the test set`."""


def card_path(path: Path) -> Path:
    """Return where the card of a safetensors file lies."""
    return path.with_suffix(".md")


def write_weights(member: Member, path: Path, card: str | None = None) -> None:
    """Write a network's weights, and its card beside them; both appear whole.

    Args:
        member: The network.
        path: Of the weights, `*.safetensors`; one that is there is replaced, like its card.
        card: What `model_card` returned; None: no card.

    Raises:
        OSError: They cannot be written.
    """
    from safetensors.torch import save

    # Plain order in memory, and no two tensors in one: the file knows neither.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in member.task.state_dict().items()
    }
    header = {
        "format": "pt",
        _OPTIONS: json.dumps(dict(member.task.hparams)),
        _ORIGIN: json.dumps(_origin(member)),
    }
    with replacing(path) as fresh:
        fresh.write_bytes(save(tensors, header))
        if card is not None:
            with replacing(card_path(path)) as fresh_card:
                fresh_card.write_text(card, encoding="utf-8")


def read_weights(path: Path) -> dict[str, Any]:
    """Return what `write_weights` wrote, as a checkpoint holds it.

    Returns:
        `state_dict` and `hyper_parameters`.

    Raises:
        CheckpointError: The file is missing, damaged, or not one of this package's.
    """
    from safetensors import SafetensorError, safe_open

    from flair2_exp.models.tensors import read_file

    tensors = read_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        options = json.loads(header[_OPTIONS])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds weights alone, not what they are of (no {_OPTIONS} in its header).\n"
            "Expected a file of `export --format safetensors`; other weights are loaded with "
            "model.weights=PATH."
        ) from error
    return {"state_dict": tensors, "hyper_parameters": options}


def _origin(member: Member) -> dict[str, str]:
    """Return where a network comes from, by a short name each; what is not known is left out."""
    record = member.stored.record
    tags = record.tags if record else {}
    values = {
        "run": str(member.stored.folder or member.stored.checkpoint),
        "MLflow run": record.run_id if record else "",
        "identity": tags.get(Tag.IDENTITY, ""),
        "commit": tags.get(Tag.COMMIT, "") + _changed(tags),
        "trained with": tags.get(Tag.VERSION, ""),
        "packages": tags.get(Tag.PACKAGES, ""),
        "exported with": __version__,
    }
    return {name: scrub(value) for name, value in values.items() if value}


def _changed(tags: Mapping[str, str]) -> str:
    return " (with changes)" if tags.get(Tag.DIRTY) == "true" and tags.get(Tag.COMMIT) else ""


def model_card(member: Member, file: str, intervals: Intervals | None = None) -> str:
    """Return a network's card in Markdown.

    Args:
        member: The network.
        file: The name of its weights.
        intervals: Of the scores of its run; None where there are none.
    """
    config, record = member.stored.config, member.stored.record
    name = config.name if config else member.task.spec.model.name
    data = _NO_RUN
    if config and record:
        data = _data(config, record) + "\n\n"
        tested = member.stored.is_own and "test/miou" in record.scores
        data += _scores(member, record, intervals) if tested else _NOT_TESTED
    parts = [
        f"# {name}",
        f"A network that segments land cover into {len(member.task.class_names)} classes: "
        f"{', '.join(member.task.class_names)}. Written by flair2-exp {__version__}.",
        _USE.format(file=file),
        "## Inputs",
        _table(_inputs(member)),
        "## Data and scores",
        data,
        "## Intended use and limits",
        _limits(member, config),
        "## Origin",
        _table(_origin(member)),
        "## Licence",
        _LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


_USE: Final = """```python
from flair2_exp.inference.predictor import Predictor

predictor = Predictor.from_run("{file}")
```"""

_NO_RUN: Final = "Not known: the network was exported from a checkpoint without its run."

_NOT_TESTED: Final = "This checkpoint has not been tested."

_LICENCE: Final = (
    "The code is under the Apache License 2.0. The weights follow from the training data: see that "
    "data set's licence (IGN publishes the FLAIR data under the Licence Ouverte / Open Licence "
    "2.0 of Etalab, as far as known), and that of the weights from which the encoder started, if "
    "any."
)


def _inputs(member: Member) -> dict[str, object]:
    inputs, spec = member.inputs, member.task.spec
    values: dict[str, object] = {"patch": f"{spec.patch_size} x {spec.patch_size} pixels"}
    if "aerial" in member.reads:
        resolution = f"{inputs.resolution:g} m per pixel" if inputs.resolution else "not known"
        values |= {
            "bands": ", ".join(inputs.bands),
            "pixels": f"{inputs.image_type}, divided by {inputs.scale:g}",
            "resolution": resolution,
        }
    if "satellite" in member.reads:
        side = inputs.s2_preproc.size
        values["satellite series"] = (
            f"Sentinel-2, {side} x {side} pixels of 10 m, s2_preproc={inputs.s2_preproc.name}"
        )
    if "metadata" in member.reads:
        values["metadata"] = f"place, date and camera; month={inputs.metadata.month}"
    return values


def _data(config: Config, record: RunRecord) -> str:
    turned = config.test_time.symmetries
    values: dict[str, object] = {
        "data set": "synthetic sample" if config.is_synthetic else config.dataset.name,
        "fingerprint of the data": record.fingerprint,
        "split": config.split.name,
        "seed": config.seed,
        "what mIoU means": convention_of(config.metric.other_pixels),
        "test-time augmentation": turned,
    }
    note = f"\n\n**{SYNTHETIC}**" if config.is_synthetic else ""
    return _table(values) + note


def _scores(member: Member, record: RunRecord, intervals: Intervals | None) -> str:
    names = {"mIoU": "test/miou"} | {each: f"test/iou/{each}" for each in member.task.class_names}
    scores = {shown: record.scores[name] for shown, name in names.items() if name in record.scores}
    ends = intervals.ends if intervals else {}
    lines = ["| test | IoU | interval |", "| --- | --- | --- |"]
    for name, value in scores.items():
        interval = f"[{ends[name][0]:.4f}, {ends[name][1]:.4f}]" if name in ends else "–"
        lines.append(f"| {name} | {value:.4f} | {interval} |")
    if intervals:
        lines += ["", f"Intervals: {intervals.over}."]
    return "\n".join(lines)


def _limits(member: Member, config: Config | None) -> str:
    lines = [
        "For maps of land cover from imagery like that of the training: the same bands, the same "
        "ground resolution, a like season and landscape. On other sensors, resolutions or regions "
        "its quality is not known.",
        "The scores are means over a test set. Single objects, borders and rare classes can be "
        "wrong where the mean is good: check a map before a decision rests on it.",
        "Probabilities are the network's own and not calibrated.",
    ]
    if config is not None and config.is_synthetic:
        lines.insert(0, "**Trained on the synthetic sample: for trying the tools, not for maps.**")
    unscored = member.task.nomenclature.names[member.task.nomenclature.scored :]
    if unscored:
        lines.append(f"Not scored: {', '.join(unscored)}.")
    return "\n".join(f"- {line}" for line in lines)


def _table(values: Mapping[str, object]) -> str:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])
