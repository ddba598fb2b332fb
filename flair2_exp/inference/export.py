"""A trained network as one file for other programs: ONNX, or a program of `torch.export`.

Both hold the same graph: scaling and normalisation of the inputs, the network, and a softmax. What
goes in and what comes out stands in the file's metadata, which `description` gives.

    image      (B, bands, P, P) float32, pixel values / 255, whatever their type: what QGIS's
               Deepness plugin feeds. The bands in the order of the metadata.
    series     (B, T, 10, S, S) float32, preprocessed as the run was trained, not scaled
    days       (B, T) int64, days to 15 May, or as `s2_preproc.days` has them
    padding    (B, T) bool, true at frames that only fill up a shorter series
    metadata   (B, 45) float32, as `data.metadata.encode` gives them
    →          probabilities, (B, classes, P, P) float32

A network has those that it reads, in this order. A batch is of any size, but where a quirk lets a
batch's other patches into a patch's scores: there it is one patch, without padding.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flair2_exp import __version__
from flair2_exp.config.fields import plain
from flair2_exp.config.relevance import drops_always, scores_by_batches
from flair2_exp.data import sentinel2
from flair2_exp.data.normalisation import SMALLEST_STD, Moments
from flair2_exp.errors import ConfigError, ModelError, UsageError, first_line
from flair2_exp.files import replacing
from flair2_exp.inference.predictor import Member, Predictor
from flair2_exp.models.registry import build_network
from flair2_exp.models.utae import UTAE
from flair2_exp.nomenclature import METADATA_VALUES, SATELLITE_BANDS

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], tuple[NDArray[np.float32], NDArray[np.float32] | None]]
"""Gives probabilities of a batch of the graph's inputs, and logits where the file can tell them."""

OUTPUT: Final = "probabilities"
TOLERANCE: Final = 1e-4
"""Largest difference of logits up to 1; in proportion for larger ones, as rounding is."""
_OPSET: Final = 18
"""The exporter's own; what it writes for another is converted, and not always."""
_BYTE: Final = 255.0
_PACKAGES: Final = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Agreement:
    """How a file's results compare with torch's, on random patches."""

    largest: float
    """Of the differences of logits (ONNX) or of probabilities."""
    pixels: int
    differing: int
    """Pixels of another class: their two best logits are one number up to rounding."""


class Graph(nn.Module):
    """A trained network with what comes before and after it, on the processor."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        spec, inputs = member.task.spec, member.inputs
        self.network = build_network(spec, pretrained=False)
        self.network.load_state_dict(member.task.model.state_dict())
        for module in self.network.modules():
            if isinstance(module, UTAE):
                module.packs = False
        self.head = member.task.main_head
        whole = inputs.kind.kind == "u"
        self.image = _Scaling(_BYTE, inputs.scale, member.normalisation.image, whole=whole)
        divisor = sentinel2.divisor(inputs.s2_preproc)
        self.series = _Scaling(1.0, divisor, member.normalisation.series)
        self.pads = "padding" in spec.arguments and not scores_by_batches(spec)
        self.names = tuple(n for n in spec.arguments if n != "padding" or self.pads)
        self.eval()

    def forward(
        self,
        image: Tensor | None = None,
        series: Tensor | None = None,
        days: Tensor | None = None,
        padding: Tensor | None = None,
        metadata: Tensor | None = None,
    ) -> Tensor:
        """Return probabilities, (B, classes, P, P), of the inputs that the network reads."""
        given: dict[str, Tensor | None] = {"metadata": metadata}
        if image is not None:
            given["image"] = self.image(image)
        if series is not None and days is not None:
            if padding is None:
                padding = torch.zeros_like(days, dtype=torch.bool)
            frames = self.series(series).masked_fill(padding[:, :, None, None, None], 0)
            given |= {"series": frames, "days": days, "padding": padding}
        output = self.network(**{n: each for n, each in given.items() if each is not None})
        logits: Tensor = output[self.head] if isinstance(output, Mapping) else output
        return logits.float().softmax(dim=1)


class _Scaling(nn.Module):
    """(x · factor / divisor - mean) / deviation, by band of the third axis from the end.

    What was a whole number before it was divided by the factor becomes that number again: a band
    that is the same everywhere has a deviation near 0, which would make much of a rounding error.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, factor: float, divisor: float, moments: Moments | None, *, whole: bool = False
    ) -> None:
        super().__init__()
        self.factor, self.divisor, self.whole = factor, divisor, whole
        self.normalises = moments is not None
        mean, std = (moments.mean, moments.std) if moments else ((), ())
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        smallest = [max(each, SMALLEST_STD) for each in std]
        self.register_buffer("std", torch.tensor(smallest)[:, None, None])

    def forward(self, values: Tensor) -> Tensor:
        if self.factor != self.divisor:
            values = values * self.factor
            values = (values.round() if self.whole else values) / self.divisor
        return (values - self.mean) / self.std if self.normalises else values


def export_onnx(predictor: Predictor, path: Path) -> Agreement:
    """Write an ONNX file, and keep it where ONNX Runtime's results are torch's.

    Args:
        predictor: Of one run.
        path: The file; one that is there is replaced.

    Raises:
        UsageError: The predictor is an ensemble, or augments.
        ConfigError: The extra `onnx` is not installed.
        ModelError: The network cannot be exported, or the file's results are others.
        OSError: The file cannot be written.
    """
    member = single(predictor)
    lacking = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"export --format onnx: {', '.join(lacking)} is not installed: "
            "pip install 'flair2-exp[onnx]'."
        )
    graph = Graph(member)
    with replacing(path) as fresh:
        fresh.write_bytes(_onnx(graph, member))
        return _compared(_onnx_runner(fresh), member, graph, "ONNX Runtime")


def export_program(predictor: Predictor, path: Path) -> Agreement:
    """Write a program of `torch.export`, and keep it where what is loaded gives torch's results.

    Raises:
        UsageError: As by `export_onnx`.
        ModelError: Likewise.
        OSError: Likewise.
    """
    member = single(predictor)
    graph = Graph(member)
    program = _program(graph, member)
    texts = {"flair2_exp.json": json.dumps(description(member), indent=2)}
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=texts)
    with replacing(path) as fresh:
        fresh.write_bytes(content.getbuffer())
        with fresh.open("rb") as file:
            loaded = torch.export.load(file).module()

        def run(inputs: Arrays) -> tuple[NDArray[np.float32], None]:
            tensors = {name: torch.from_numpy(each) for name, each in inputs.items()}
            with torch.inference_mode():
                return loaded(**tensors).numpy(), None

        return _compared(run, member, graph, "the loaded program")


def description(member: Member) -> dict[str, Any]:
    """Return what a file's metadata say: what is fed, what comes out, where it comes from.

    Values of an ONNX file's are JSON. For a network that reads the image alone, the first ones are
    those that QGIS's Deepness plugin reads: `resolution` is in centimetres, and with its threshold
    at 0 each pixel gets its most probable class.
    """
    inputs, task, stored = member.inputs, member.task, member.stored
    values: dict[str, Any] = {"class_names": dict(enumerate(task.nomenclature.names))}
    if task.spec.arguments == ("image",):
        values |= {
            "model_type": "Segmentor",
            "tile_size": task.spec.patch_size,
            "tiles_overlap": 15,
            "standardization_mean": [0.0] * len(inputs.bands),  # normalised within the graph
            "standardization_std": [1.0] * len(inputs.bands),
            "seg_thresh": 0.0,
            "seg_small_segment": 0,
        }
        if inputs.resolution:
            values["resolution"] = round(100 * inputs.resolution, 6)
    values["class_colours"] = [each.colour for each in task.nomenclature.classes]
    values["patch_size"] = task.spec.patch_size
    if "aerial" in member.reads:
        values |= {
            "bands": list(inputs.bands),
            "image_type": inputs.image_type,
            "image_values": f"pixel values / {_BYTE:g}, float32",
            "image_scale": inputs.scale,
            "resolution_metres": inputs.resolution,
        }
    if "satellite" in member.reads:
        values |= {
            "series_bands": list(SATELLITE_BANDS),
            "series_values": "preprocessed by s2_preproc, not scaled, float32",
            "s2_preproc": plain(inputs.s2_preproc),
        }
    if "metadata" in member.reads:
        values["metadata"] = plain(inputs.metadata)
    record = stored.record
    values |= {
        "run": str(stored.folder or stored.checkpoint),
        "identity": record.identity if record else "",
        "flair2_exp": __version__,
    }
    return values


def single(predictor: Predictor) -> Member:
    """Return the network of a predictor that is to be exported, on the processor.

    Raises:
        UsageError: It has several, or augments its patches.
        ModelError: Chance has a part in the network's results.
    """
    if len(predictor.members) > 1:
        raise UsageError(
            f"an ensemble of {len(predictor.members)} runs is not exported: name one run; each has "
            "a file of its own."
        )
    if predictor.symmetries != "none":
        raise UsageError(
            f"tta={predictor.symmetries}: test-time augmentation is not exported; leave it out."
        )
    member = predictor.members[0]
    if drops_always(member.task.spec):
        raise ModelError(
            "fusion.dropout=always_batch drops the satellite at random, in use as well: such a "
            "network is not exported.\nTrain with fusion.dropout=each_sample."
        )
    if predictor.device.type != "cpu":
        return Predictor([member.stored], device="cpu").members[0]
    return member


def _program(graph: Graph, member: Member) -> torch.export.ExportedProgram:
    """Return the graph as torch traces it.

    Raises:
        ModelError: A step of the network cannot be traced.
    """
    by_batches = scores_by_batches(member.task.spec)
    failure: Exception | None = None
    for size in (1,) if by_batches else (2, 1):  # a network may work with one size of batch alone
        inputs = {n: torch.from_numpy(a) for n, a in _fed(graph, _random(member, size)).items()}
        sizes: dict[int, Any] = {} if size == 1 else {0: torch.export.Dim("batch")}
        series = sizes | {1: torch.export.Dim("frames")}
        shapes = {n: series if n in ("series", "days", "padding") else sizes for n in inputs}
        try:
            with torch.no_grad(), _quiet():
                program = torch.export.export(graph, (), inputs, dynamic_shapes=shapes)
            program.example_inputs = None  # they would lie in the file, pickled
            return program
        except Exception as error:  # whatever a network does that the tracer does not know
            failure = error
    assert failure is not None, "one of the sizes was tried"
    reason = first_line(failure).rstrip(".")
    raise ModelError(
        f"model={member.task.spec.model.name} cannot be exported: {reason}.\n"
        "Weights alone can: --format safetensors."
    ) from failure


def _onnx(graph: Graph, member: Member) -> bytes:
    """Return the content of an ONNX file.

    Raises:
        ModelError: A step of the network cannot be traced, or has no counterpart in ONNX.
    """
    import onnx

    program = _program(graph, member)
    try:
        with _quiet():
            made = torch.onnx.export(
                program, input_names=list(graph.names), output_names=[OUTPUT], dynamo=True,
                opset_version=_OPSET, external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # as above
        raise ModelError(
            f"model={member.task.spec.model.name} cannot be written as ONNX: "
            f"{first_line(error).rstrip('.')}.\nUse --format torch."
        ) from error
    assert made is not None, "with dynamo=True it is a program"
    model = made.model_proto
    _name_axes(model)
    model.producer_name, model.producer_version = "flair2_exp", __version__
    values = {name: json.dumps(value) for name, value in description(member).items()}
    onnx.helper.set_model_props(model, values)
    content: bytes = model.SerializeToString()
    return content


def _name_axes(model: Any) -> None:
    """Call the axes of free length `batch` and `frames`, which the exporter has numbered."""
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, ("batch", "frames"), strict=False):
            if axis.dim_param:
                axis.dim_param = name
    del model.graph.value_info[:]  # shapes in between, by the numbers; every reader infers them


def _onnx_runner(path: Path) -> Run:
    """Return what runs an ONNX file; the logits before its softmax are made a second output."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    softmax = next(node for node in model.graph.node if OUTPUT in node.output)
    model.graph.output.append(onnx.ValueInfoProto(name=softmax.input[0]))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def run(inputs: Arrays) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        probabilities, logits = session.run(None, dict(inputs))
        return probabilities, logits

    return run


def _compared(run: Run, member: Member, graph: Graph, what: str) -> Agreement:
    """Compare a file's results with torch's, which go the predictor's own way.

    Raises:
        ModelError: They differ by more than rounding; the message has the largest difference.
    """
    largest, differing, pixels = 0.0, 0, 0
    sizes = (1, 1) if scores_by_batches(member.task.spec) else (1, 3)
    for seed, size in enumerate(sizes):
        batch = _random(member, size, seed)
        expected = member.logits(batch, torch.device("cpu"))
        try:
            probabilities, logits = run(_fed(graph, batch))
        except Exception:
            if size == 1:
                raise
            continue  # a graph of one patch at a time
        wanted = expected if logits is not None else expected.softmax(dim=1)
        found = torch.from_numpy(probabilities if logits is None else logits)
        scale = max(1.0, float(wanted.abs().max()))
        difference = float((found - wanted).abs().nan_to_num(torch.inf).max())
        if difference > TOLERANCE * scale:
            raise ModelError(
                f"{what} gives other results than torch: they differ by up to {difference:.2g}, "
                f"where {TOLERANCE * scale:.2g} is rounding.\nThe file is not kept; use another "
                "format."
            )
        largest = max(largest, difference)
        classes = torch.from_numpy(probabilities).argmax(dim=1)
        differing += int((classes != expected.argmax(dim=1)).sum())
        pixels += classes.numel()
    return Agreement(largest, pixels, differing)


def _random(member: Member, size: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random patches as the data have them, not scaled; series of two lengths."""
    draws, spec = np.random.default_rng(seed), member.task.spec
    patch, inputs = spec.patch_size, member.inputs
    batch: dict[str, NDArray[Any]] = {"label": np.zeros((size, patch, patch), np.uint8)}
    if "aerial" in member.reads:
        values = draws.random((size, len(inputs.bands), patch, patch)) * inputs.scale
        batch["image"] = values.astype(inputs.kind)
    if "satellite" in member.reads:
        frames, side = 4, inputs.s2_preproc.size
        shape = (size, frames, len(SATELLITE_BANDS), side, side)
        kind = np.float32 if inputs.s2_preproc.monthly else np.uint16
        batch["series"] = draws.uniform(100, 6000, shape).astype(kind)
        batch["days"] = np.sort(draws.integers(-200, 200, (size, frames)))
        batch["padding"] = np.zeros((size, frames), bool)
        if size > 1:
            batch["padding"][1:, frames - 1] = True
            batch["series"][1:, frames - 1], batch["days"][1:, frames - 1] = 0, 0
    if "metadata" in member.reads:
        batch["metadata"] = draws.random((size, METADATA_VALUES)).astype(np.float32)
    return {name: torch.from_numpy(each) for name, each in batch.items()}


def _fed(graph: Graph, batch: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return a batch that is not scaled as the graph's inputs."""
    fed: dict[str, NDArray[Any]] = {name: batch[name].numpy() for name in graph.names}
    if "image" in fed:
        fed["image"] = fed["image"].astype(np.float32) / np.float32(_BYTE)
    if "series" in fed:
        fed["series"] = fed["series"].astype(np.float32)
    return fed


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own workings from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
