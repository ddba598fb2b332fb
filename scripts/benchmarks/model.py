"""What the networks cost: `python scripts/benchmark.py model [--gpu]`.

On a processor every figure is a ratio to stock parts in the same run (float32, batch 2, 512 px):
the stock U-Net of segmentation_models_pytorch, or `stock.utt_logits`. Forward passes are timed in
evaluation mode without gradients; forward and backward in training mode, from given gradients of
the logits (no loss). Peak memory is that of a training step with both losses, in a process of its
own, above what the process held before the step.
"""

from __future__ import annotations

import functools
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio
import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from benchmarks import model_gpu, stock
from benchmarks.harness import Figure, ratios, take_turns
from benchmarks.inputs import BANDS, BATCH, CLASSES, PATCH, network, series_inputs, summed_loss
from flair2_exp.data.readers import to_classes
from flair2_exp.score import confusion_matrix, miou

ROUNDS: Final = (5, 7)
OPTIONS: Final = {
    "--gpu": {"action": "store_true", "help": "figures of the graphics card instead"},
    "--options": {"action": "store_true", "help": "the gain of each option instead"},
    "--threads": {"type": int, "default": 2},
}
Calls = dict[str, Callable[[], object]]


def measure(arguments: Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Measure the networks, each option of them instead, or the networks on a graphics card."""
    rounds, threads = arguments.rounds, arguments.threads
    _settle(threads)
    if arguments.gpu:
        return model_gpu.measure(rounds)
    facts = {"torch": torch.__version__, "threads": threads, "batch": BATCH}
    facts |= {"patch": PATCH, "precision": "float32"}
    if arguments.options:
        name = "utae.checkpointing=true, peak memory of a step, T = 56"
        memory = _memory(name, ("checkpointing", "ours"), rounds, threads)
        return [*_options(rounds), memory], {**facts, "each figure": "with / without it"}
    name = "peak memory of a U-T&T step / of stock parts, T = 56"
    memory = _memory(name, ("ours", "stock"), rounds, threads, must_reach=0.6)
    return [*_forward(rounds), *_forward_backward(rounds), memory, _scoring(rounds)], facts


def _settle(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def stock_unet() -> torch.nn.Module:
    """Return the U-Net that ratios refer to."""
    unet: torch.nn.Module = smp.Unet(
        "resnet34", encoder_weights=None, in_channels=BANDS, classes=CLASSES
    )
    return unet


def _timed(calls: Calls, base: str, rounds: int, bounds: Sequence[float | None]) -> list[Figure]:
    """Return the time of each call but the base, over that of the base."""
    seconds = take_turns(calls, rounds=rounds, warmup=2)
    over = seconds.pop(base)
    return [
        Figure(name, ratios(samples, over), must_reach=bound)
        for (name, samples), bound in zip(seconds.items(), bounds, strict=True)
    ]


def _forward(rounds: int) -> list[Figure]:
    image = torch.rand(BATCH, BANDS, PATCH, PATCH)
    unet, utae = stock_unet().eval(), network("utt").eval().utae
    long, short, padded = series_inputs(56), series_inputs(12), series_inputs(56, real=28)
    calls: Calls = {
        "unet": lambda: unet(image),
        "U-TAE forward / U-Net forward, T = 56": lambda: utae(**long),
        "U-TAE forward / U-Net forward, T = 12": lambda: utae(**short),
        "the same, T = 56, half of it padding": lambda: utae(**padded),
    }
    with torch.inference_mode():
        return _timed(calls, "unet", rounds, (0.38, 0.085, 0.21))


def _passes() -> Callable[..., None]:
    """Return what runs a network forward and backward, on an image and a series."""
    image = torch.rand(BATCH, BANDS, PATCH, PATCH)
    gradient = torch.rand(BATCH, CLASSES, PATCH, PATCH) / PATCH**2

    def step(model: torch.nn.Module, inputs: Mapping[str, Tensor], *, bf16: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(image, **inputs)
        logits = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        torch.autograd.backward([each.float() for each in logits], [gradient] * len(logits))

    return step


def _forward_backward(rounds: int) -> list[Figure]:
    step, reference = _passes(), stock_unet().train()
    unet, utt = network("unet"), network("utt")
    long, short = series_inputs(56), series_inputs(12)
    calls: Calls = {
        "stock": lambda: step(reference, {}),
        "U-T&T / U-Net, forward + backward, T = 56": lambda: step(utt, long),
        "U-T&T / U-Net, forward + backward, T = 12": lambda: step(utt, short),
        "our U-Net / stock U-Net, forward + backward": lambda: step(unet, {}),
    }
    return _timed(calls, "stock", rounds, (1.38, 1.10, 1.03))


def _options(rounds: int) -> list[Figure]:
    """Return the time of U-T&T's passes, T = 12, with each option over without."""
    step, inputs, plain = _passes(), series_inputs(12), network("utt")
    calls: Calls = {
        "plain": lambda: step(plain, inputs),
        "trainer.precision=bf16-mixed": lambda: step(plain, inputs, bf16=True),
    }
    for option in ("model.channels_last=true", "model.compile=true", "utae.checkpointing=true"):
        calls[option] = functools.partial(step, network("utt", option), inputs)
    return _timed(calls, "plain", rounds, [None] * 4)


def _memory(
    name: str, kinds: Sequence[str], rounds: int, threads: int, must_reach: float | None = None
) -> Figure:
    """Return the peak memory of a training step, of one kind over another."""
    # Freed buffers go back to the system at once, so that what is measured is what the step needs
    # and not what the allocator holds on to. It reads this when a process starts.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = list(pool.map(_peak_memory, [*kinds] * rounds, [threads] * 2 * rounds))
    return Figure(name, ratios(peaks[::2], peaks[1::2]), must_reach)


def _resident(key: str) -> float:
    """Return the MiB that this process holds (`VmRSS`) or held at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def _peak_memory(kind: str, threads: int) -> float:
    """Return the MiB that one training step takes at most, beyond network and inputs."""
    _settle(threads)
    image, inputs = torch.rand(BATCH, BANDS, PATCH, PATCH), series_inputs(56)
    label = torch.randint(0, CLASSES, (BATCH, PATCH, PATCH))
    model = network("utt", f"utae.checkpointing={kind == 'checkpointing'}")
    stock_unet()(torch.rand(2, BANDS, 64, 64)).sum().backward()  # starts libraries
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak counts from here on
    before = _resident("VmRSS")
    run = functools.partial(stock.utt_logits, model) if kind == "stock" else model
    logits = run(image, **inputs)
    torch.autograd.backward(summed_loss(logits, label))
    return _resident("VmHWM") - before


def _scoring(rounds: int) -> Figure:
    """Return the time of reading two files over that of scoring them too: 1 if scoring is free."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(Path(folder) / f"{n}_mask.tif", Path(folder) / f"{n}.tif") for n in range(20)]
        for mask, prediction in pairs:
            _write(mask, _parcels(generator) + 1)
            _write(prediction, np.minimum(_parcels(generator), 12))

        def score() -> None:
            total = np.zeros((CLASSES, CLASSES), np.int64)
            for mask, prediction in pairs:
                truth = to_classes(_read(mask), CLASSES, mask)
                total += confusion_matrix(truth, _read(prediction), CLASSES)
            miou(total)

        calls: Calls = {"read": lambda: [*map(_read, sum(pairs, ()))], "both": score}
        seconds = take_turns(calls, rounds=max(rounds, 20))
    name = "reading a prediction and its mask / reading and scoring them"
    return Figure(name, ratios(seconds["read"], seconds["both"]), 0.5, "at least")


def _parcels(generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return class values 0..18 in parcels of 32 pixels, as masks look."""
    coarse = generator.integers(0, 19, (PATCH // 32, PATCH // 32), dtype=np.uint8)
    return np.kron(coarse, np.ones((32, 32), np.uint8))


def _write(file: Path, values: npt.NDArray[np.uint8]) -> None:
    """Write an uncompressed GeoTIFF of one band: what reads fastest."""
    place = rasterio.transform.from_origin(6e5, 6.5e6, 0.2, 0.2)
    size = {"width": PATCH, "height": PATCH, "count": 1, "dtype": "uint8"}
    with rasterio.open(file, "w", "GTiff", transform=place, crs="EPSG:2154", **size) as raster:
        raster.write(values, 1)


def _read(file: Path) -> npt.NDArray[np.uint8]:
    with rasterio.open(file) as raster:
        values: npt.NDArray[np.uint8] = raster.read(1)
    return values
