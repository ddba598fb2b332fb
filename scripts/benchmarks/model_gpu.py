"""What the models cost on a graphics card: `python scripts/benchmark.py model --gpu`.

U-T&T training steps (both losses, backward, SGD) in bf16, 512 px, T = 56: the published batch of 10
and its doubles, as far as they fit. A step's arithmetic over its time is set against the rate of
one large bf16 matrix product on the same card. Figures are told as they are taken, on stderr.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Figure
from benchmarks.inputs import BANDS, CLASSES, PATCH, Inputs, network, series_inputs, summed_loss
from flair2_exp.errors import DeviceError
from flair2_exp.models.utt import UTT

_DATES = 56
_MATRIX = 8192
_BATCHES = (10, 20, 40, 80)
Batch = tuple[Inputs, Tensor]


def measure(rounds: int) -> tuple[list[Figure], dict[str, Any]]:
    """Measure the rate of a matrix product, training steps and the network's parts.

    Raises:
        DeviceError: There is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise DeviceError("--gpu needs a CUDA device, and this machine has none: omit it.")
    model: UTT = network("utt", "model.channels_last=true").cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    rates = _matrix_rates(rounds)
    peak_rate = statistics.median(rates)
    figures = [Figure("bf16 matrix product", [rate / 1e12 for rate in rates], unit="TFLOP/s")]
    for size in _BATCHES:
        try:
            figures += _steps(model, optimizer, size, rounds, peak_rate)
        except torch.OutOfMemoryError:
            print(f"a batch of {size} does not fit in the card's memory", file=sys.stderr)
            break
    card = torch.cuda.get_device_properties(0)
    facts: dict[str, Any] = {"card": card.name, "memory": f"{card.total_memory / 2**30:.0f} GiB"}
    facts |= {"torch": torch.__version__, "dates": _DATES, "patch": PATCH}
    return [*figures, *_parts(model, rounds)], facts | {"precision": "bf16 autocast, channels last"}


def _seconds(call: Callable[[], object], rounds: int) -> list[float]:
    timer = Timer("call()", globals={"call": call})  # waits for the card, and warms up
    return [timer.timeit(1).mean for _ in range(rounds)]


def _matrix_rates(rounds: int) -> list[float]:
    """Return the operations per second of a large bf16 matrix product."""
    a = torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=torch.bfloat16)
    return [2 * _MATRIX**3 / seconds for seconds in _seconds(lambda: a @ a, rounds)]


def _batch(size: int) -> Batch:
    inputs = {name: value.cuda() for name, value in series_inputs(_DATES, batch=size).items()}
    inputs["image"] = torch.rand(size, BANDS, PATCH, PATCH, device="cuda")
    return inputs, torch.randint(0, CLASSES, (size, PATCH, PATCH), device="cuda")


def _step(model: UTT, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    inputs, label = batch
    with torch.autocast("cuda", torch.bfloat16):
        loss = summed_loss(model(**inputs), label)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


def _steps(
    model: UTT, optimizer: torch.optim.Optimizer, size: int, rounds: int, peak_rate: float
) -> list[Figure]:
    batch = _batch(size)
    torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(lambda: _step(model, optimizer, batch), rounds)
    memory = torch.cuda.max_memory_allocated() / 2**30
    with FlopCounterMode(display=False) as counter:
        _step(model, optimizer, batch)
    operations = counter.get_total_flops()
    name = f"training step, batch {size}"
    print(f"{name}: {statistics.median(seconds):.3f} s, {memory:.1f} GiB", file=sys.stderr)
    return [
        Figure(f"{name}: samples", [size / s for s in seconds], unit="1/s"),
        Figure(f"{name}: peak memory", [memory], unit="GiB"),
        Figure(f"{name}: share of the matrix rate", [operations / s / peak_rate for s in seconds]),
    ]


def _parts(model: UTT, rounds: int) -> list[Figure]:
    """Return the time of each part's forward pass in training mode, batch 10."""
    inputs, _ = _batch(10)
    image = inputs.pop("image")
    with torch.autocast("cuda", torch.bfloat16):
        satellite = model.utae(**inputs).maps[-1].detach()
        features = [feature.detach() for feature in model.unet.encode(image, None)]
        parts: dict[str, Callable[[], object]] = {
            "U-TAE": lambda: model.utae(**inputs),
            "U-Net encoder": lambda: model.unet.encode(image, None),
            "fusion": lambda: model.fusion(features, satellite, levels=model.unet.levels),
            "U-Net decoder": lambda: model.unet.decode(features),
            "satellite head": lambda: model.head(satellite),
        }
        times = {name: _seconds(part, rounds) for name, part in parts.items()}
    return [
        Figure(f"forward, batch 10: {name}", [1e3 * s for s in seconds], unit="ms")
        for name, seconds in times.items()
    ]
