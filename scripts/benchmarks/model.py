"""What the models cost: `python scripts/benchmark.py model [--gpu]`.

On a processor every figure is a ratio to stock parts in the same run (float32, batch 2, 512 px):
the stock U-Net of segmentation_models_pytorch, or `stock.utt_logits`. Forward passes are timed in
evaluation mode without gradients; forward and backward in training mode, from given gradients of
the logits (no loss). Peak memory is that of a training step with both losses, in a process of its
own, above what the process held before the step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import model_gpu, stock
from benchmarks.harness import Figure, at_least, ratios, report, take_turns, this_machine
from benchmarks.inputs import BANDS, BATCH, CLASSES, PATCH, series_inputs
from flair2_exp.data.dataset import to_classes
from flair2_exp.models.build import ModelSpec, accelerate, build_model
from flair2_exp.models.utt import UTT
from flair2_exp.score import confusion_matrix, miou


def main(argv: Sequence[str]) -> int:
    """Measures and reports; the exit status is 1 where a figure is missed."""
    parser = argparse.ArgumentParser(prog="benchmark.py model", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="figures of the graphics card instead")
    parser.add_argument("--options", action="store_true", help="the gain of each option instead")
    parser.add_argument("--rounds", type=at_least(5), default=7, help="samples of each figure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--memory-of", choices=("ours", "stock", "checkpointing"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.memory_of:
        print(_peak_memory(arguments.memory_of))
        return 0
    if arguments.gpu:
        return model_gpu.measure(arguments.rounds)
    facts = {
        "machine": this_machine(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "batch": BATCH,
    }
    if arguments.options:
        name = "utae.checkpointing=true, peak memory of a step, T = 56"
        kinds = ("checkpointing", "ours")
        figures = [
            *_options(arguments.rounds),
            _memory(name, *kinds, arguments.rounds, arguments.threads),
        ]
        return report("model options (each / without it)", figures, facts=facts)
    figures = [
        *_forward(arguments.rounds),
        *_forward_backward(arguments.rounds),
        _memory("peak memory of a U-T&T step / of stock parts, T = 56", "ours", "stock",
                arguments.rounds, arguments.threads, must_reach=0.6),
        _scoring(arguments.rounds),
    ]  # fmt: skip
    return report("model", figures, facts={**facts, "patch": PATCH, "precision": "float32"})


def stock_unet() -> torch.nn.Module:
    """The U-Net that ratios refer to."""
    network: torch.nn.Module = smp.Unet(
        "resnet34", encoder_weights=None, in_channels=BANDS, classes=CLASSES
    )
    return network


def _without_gradients(call: Callable[[], object]) -> Callable[[], object]:
    return torch.inference_mode()(call)


def _forward(rounds: int) -> list[Figure]:
    image = torch.rand(BATCH, BANDS, PATCH, PATCH)
    unet = stock_unet().eval()
    utt = build_model(ModelSpec("utt")).eval()
    assert isinstance(utt, UTT)
    cases = {
        "U-TAE forward / U-Net forward, T = 56": (series_inputs(56), 0.38),
        "U-TAE forward / U-Net forward, T = 12": (series_inputs(12), 0.085),
        "the same, T = 56, half of it padding": (series_inputs(56, real=28), 0.21),
    }
    calls: dict[str, Callable[[], object]] = {"unet": _without_gradients(lambda: unet(image))}
    for name, (inputs, _) in cases.items():
        calls[name] = _without_gradients(lambda inputs=inputs: utt.utae(**inputs))  # type: ignore[misc]
    seconds = take_turns(calls, rounds=rounds)
    return [
        Figure(name, ratios(seconds[name], seconds["unet"]), must_reach=bound)
        for name, (_, bound) in cases.items()
    ]


def _forward_backward(rounds: int) -> list[Figure]:
    image = torch.rand(BATCH, BANDS, PATCH, PATCH)
    gradient = torch.rand(BATCH, CLASSES, PATCH, PATCH) / PATCH**2
    reference = stock_unet().train()
    unet = build_model(ModelSpec("unet")).train()
    utt = build_model(ModelSpec("utt")).train()

    def step(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> None:
        logits = model(image=image, **inputs)
        torch.autograd.backward(list(logits.values()), [gradient] * len(logits))

    long, short = series_inputs(56), series_inputs(12)
    calls: dict[str, Callable[[], object]] = {
        "stock": lambda: reference(image).backward(gradient),
        "U-T&T / U-Net, forward + backward, T = 56": lambda: step(utt, long),
        "U-T&T / U-Net, forward + backward, T = 12": lambda: step(utt, short),
        "our U-Net / stock U-Net, forward + backward": lambda: step(unet, {}),
    }
    bounds = (1.38, 1.10, 1.03)
    seconds = take_turns(calls, rounds=rounds)
    base = seconds.pop("stock")
    return [
        Figure(name, ratios(samples, base), must_reach=bound)
        for (name, samples), bound in zip(seconds.items(), bounds, strict=True)
    ]


def _options(rounds: int) -> list[Figure]:
    """Time of a forward and backward pass of U-T&T, T = 12, with each option over without."""
    gradient = torch.rand(BATCH, CLASSES, PATCH, PATCH) / PATCH**2
    image = torch.rand(BATCH, BANDS, PATCH, PATCH)
    inputs = series_inputs(12)
    spec = ModelSpec("utt")
    plain = build_model(spec).train()
    repeating = build_model(replace(spec, utae=replace(spec.utae, checkpointing=True))).train()
    last = accelerate(build_model(spec).train(), channels_last=True)
    compiled = accelerate(build_model(spec).train(), compiled=True)

    def step(model: torch.nn.Module, *, bf16: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(image=image, **inputs)
        torch.autograd.backward([x.float() for x in logits.values()], [gradient] * len(logits))

    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: step(plain),
        "trainer.precision=bf16-mixed": lambda: step(plain, bf16=True),
        "model.channels_last=true": lambda: step(last),
        "model.compile=true": lambda: step(compiled),
        "utae.checkpointing=true": lambda: step(repeating),
    }
    seconds = take_turns(calls, rounds=rounds, warmup=2)
    base = seconds.pop("plain")
    return [Figure(name, ratios(samples, base)) for name, samples in seconds.items()]


def _memory(
    name: str, one: str, other: str, rounds: int, threads: int, must_reach: float | None = None
) -> Figure:
    """Peak memory of a training step, of one kind over another, each in a process of its own."""
    samples = []
    for _ in range(rounds):
        peak = {}
        for kind in (one, other):
            command = [sys.executable, "-m", "benchmarks.model", "--memory-of", kind]
            # Freed buffers go back to the system at once, so that what is measured is what the
            # step needs and not what the allocator holds on to.
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
            done = subprocess.run(
                [*command, "--threads", str(threads)],
                check=True,
                capture_output=True,
                text=True,
                env=environment,
            )
            peak[kind] = float(done.stdout.split()[-1])
        samples.append(peak[one] / peak[other])
    return Figure(name, samples, must_reach=must_reach)


def _resident(key: str) -> float:
    """MiB that this process holds (`VmRSS`) or held at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def _peak_memory(kind: str) -> float:
    """MiB that one training step takes at most, beyond model and inputs."""
    image = torch.rand(BATCH, BANDS, PATCH, PATCH)
    inputs = series_inputs(56)
    label = torch.randint(0, CLASSES, (BATCH, PATCH, PATCH))
    spec = ModelSpec("utt")
    utae = replace(spec.utae, checkpointing=kind == "checkpointing")
    model = build_model(replace(spec, utae=utae)).train()
    assert isinstance(model, UTT)
    stock_unet()(
        torch.rand(1, BANDS, 64, 64).repeat(2, 1, 1, 1)
    ).sum().backward()  # starts libraries
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    if kind == "stock":
        logits = stock.utt_logits(model, image, **inputs)
    else:
        logits = model(image=image, **inputs)
    loss = torch.stack([functional.cross_entropy(x, label) for x in logits.values()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return _resident("VmHWM") - before


def _scoring(rounds: int) -> Figure:
    """Reading a prediction and its mask / reading and scoring them: 1 where scoring is free."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        masks, predictions = (
            [Path(folder) / f"{kind}_{number}.tif" for number in range(20)]
            for kind in ("mask", "prediction")
        )
        for file in masks:
            _write(file, _parcels(generator) + 1)
        for file in predictions:
            _write(file, np.minimum(_parcels(generator), 12))

        def read() -> None:
            for pair in zip(masks, predictions, strict=True):
                for file in pair:
                    _read(file)

        def read_and_score() -> None:
            total = np.zeros((CLASSES, CLASSES), np.int64)
            for mask, prediction in zip(masks, predictions, strict=True):
                truth = to_classes(_read(mask), CLASSES, mask)
                total += confusion_matrix(truth, _read(prediction), CLASSES)
            miou(total)

        seconds = take_turns({"read": read, "both": read_and_score}, rounds=max(rounds, 20))
    samples = ratios(seconds["read"], seconds["both"])
    name = "reading a prediction and its mask / reading and scoring them"
    return Figure(name, samples, must_reach=0.5, direction="at least")


def _parcels(generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Class values 0..18 in parcels of 32 pixels with ragged borders, as masks look."""
    coarse = generator.integers(0, 19, (PATCH // 32, PATCH // 32), dtype=np.uint8)
    shift = generator.integers(-6, 7, (2, PATCH, PATCH))
    rows, columns = np.clip(np.indices((PATCH, PATCH)) + shift, 0, PATCH - 1) // 32
    parcels: npt.NDArray[np.uint8] = coarse[rows, columns]
    return parcels


def _write(file: Path, values: npt.NDArray[np.uint8]) -> None:
    """Writes an uncompressed GeoTIFF of one band: what reads fastest."""
    options = {"driver": "GTiff", "width": PATCH, "height": PATCH, "count": 1, "dtype": "uint8"}
    place = rasterio.transform.from_origin(6e5, 6.5e6, 0.2, 0.2)
    with rasterio.open(file, "w", transform=place, crs="EPSG:2154", **options) as raster:
        raster.write(values, 1)


def _read(file: Path) -> npt.NDArray[np.uint8]:
    with rasterio.open(file) as raster:
        values: npt.NDArray[np.uint8] = raster.read(1)
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
