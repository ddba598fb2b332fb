"""What a map costs beside its network: `python scripts/benchmark.py inference [--rounds N]`.

A large raster against the bare network on as many tiles in memory, without overlap and with the
default one (whose further tiles are counted); writing; the eight symmetries of D4; and memory, in
processes of their own with a network that does nothing, for a raster and one of 16 times its area.

With `--seams RUN SCENE` instead: how often a map of a synthetic scene differs from one of
half-overlapping tiles and from the truth, within 8 pixels of the borders of tiles and elsewhere,
for each way of joining and several overlaps.
"""

from __future__ import annotations

import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import matplotlib.figure
import numpy as np
import rasterio
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import Figure, ratios, take_turns
from flair2_exp.cli.main import register
from flair2_exp.config.compose import typed
from flair2_exp.config.groups import config_folder
from flair2_exp.inference.mapping import MapOptions, map_raster
from flair2_exp.inference.patches import Tile
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.surroundings import Flight
from flair2_exp.inference.tiling import Axis, Join, default_overlap
from flair2_exp.lifecycle.assembly import build_task, network_spec

ROUNDS: Final = (1, 5)
OPTIONS: Final = {
    "--patch": {"type": int, "default": 512, "help": "pixels on a side of the network's patches"},
    "--tiles": {"type": int, "default": 4, "help": "on a side of the raster that is timed"},
    "--sizes": {"type": int, "nargs": 2, "default": (4096, 16384), "help": "whose memory counts"},
    "--batch-size": {"type": int, "default": 4},
    "--threads": {"type": int, "default": 2},
    "--encoder": {"default": "", "help": "another encoder of the U-Net"},
    "--seams": {
        "nargs": 2,
        "metavar": ("RUN", "SCENE"),
        "help": "the error at seams instead, on a folder that scripts/sample.py --scene wrote",
    },
    "--figure": {"metavar": "PNG", "help": "draw the error at seams"},
}
SHARE: Final = 0.85
"""Of the bare network's pixels per second: reading, joining and writing are the rest."""
NEAR: Final = 8
"""Pixels from a border of tiles that count as its seam."""
RESOLUTION: Final = 102.4
"""Metres of a patch of FLAIR #2."""


def measure(arguments: Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Measure time and memory of maps, or the error at seams instead."""
    torch.set_num_threads(arguments.threads)
    if arguments.seams:
        run, scene = map(Path, arguments.seams)
        return _seams(run, scene, arguments.figure), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = _checkpoint(folder / "unet.ckpt", arguments)
        figures = [*_times(folder, checkpoint, arguments), _symmetries(checkpoint, arguments),
                   _memory(folder, checkpoint, arguments)]  # fmt: skip
    facts = {"patch": arguments.patch, "batch": arguments.batch_size}
    return figures, {**facts, "threads": arguments.threads, "torch": torch.__version__}


def _checkpoint(path: Path, arguments: Namespace) -> Path:
    """Save a U-Net that is not trained."""
    register()
    options = ["model=unet", "data=aerial_only", "model.encoder_weights=null"]
    options += [f"model.encoder={arguments.encoder}"] * bool(arguments.encoder)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = typed(compose("config", options))
    task = build_task(config, network_spec(config, arguments.patch))
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, path)
    return path


def _raster(path: Path, size: int, patch: int) -> Path:
    """Write a raster of fields, in strips so that it needs no memory."""
    metres = RESOLUTION / patch
    profile = {"width": size, "height": size, "count": 5, "dtype": "uint8", "tiled": True}
    profile |= {"blockxsize": 512, "blockysize": 512, "compress": "deflate", "crs": "EPSG:2154"}
    place = rasterio.transform.from_origin(6e5, 6.5e6, metres, metres)
    generator = np.random.default_rng(0)
    with rasterio.open(path, "w", "GTiff", transform=place, **profile) as file:
        for top in range(0, size, 512):
            fields = generator.integers(0, 256, (5, 32, -(-size // 16)), dtype=np.uint8)
            strip = np.kron(fields, np.ones((1, 16, 16), np.uint8))
            height = min(512, size - top)
            window = rasterio.windows.Window(0, top, size, height)
            file.write(strip[:, :height, :size], window=window)
    return path


def _times(folder: Path, checkpoint: Path, arguments: Namespace) -> list[Figure]:
    predictor, patch = Predictor.from_run(checkpoint, device="cpu"), arguments.patch
    size = arguments.tiles * patch
    image = _raster(folder / "timed.tif", size, patch)
    overlapping = Axis(size, patch, default_overlap(patch)).count ** 2
    tile = Tile(np.random.default_rng(0).integers(0, 256, (5, patch, patch), dtype=np.uint8))
    ends: list[float] = []

    def bare(tiles: int) -> None:
        for start in range(0, tiles, arguments.batch_size):
            count = min(arguments.batch_size, tiles - start)
            predictor.probabilities(predictor.batches([tile] * count))

    def mapped(overlap: int | None) -> None:
        last = [0.0]

        def progress(done: int, total: int) -> None:
            last[0] = time.perf_counter()

        options = MapOptions(overlap=overlap, batch_size=arguments.batch_size, overwrite=True)
        start = time.perf_counter()
        map_raster(predictor, [image], folder / "map.tif", options, progress=progress)
        end = time.perf_counter()
        if overlap == 0:
            ends.append((end - last[0]) / (end - start))

    seconds = take_turns(
        {
            "network": lambda: bare(arguments.tiles**2),
            "map": lambda: mapped(0),
            "network, overlapping": lambda: bare(overlapping),
            "map, overlapping": lambda: mapped(None),
        },
        rounds=arguments.rounds,
    )
    plain = ratios(seconds["network"], seconds["map"])
    overlapped = ratios(seconds["network, overlapping"], seconds["map, overlapping"])
    return [
        Figure("px/s of a raster without overlap / of the network", plain, SHARE, "at least"),
        Figure("the same, default overlap, of what that allows", overlapped, SHARE, "at least"),
        Figure("writing classes / the whole time", ends[-arguments.rounds :], 0.05),
    ]


def _symmetries(checkpoint: Path, arguments: Namespace) -> Figure:
    generator, calls = np.random.default_rng(0), {}
    patch = arguments.patch
    tile = Tile(generator.integers(0, 256, (5, patch, patch), dtype=np.uint8))
    for word in ("none", "d4"):
        predictor = Predictor.from_run(checkpoint, tta=word, device="cpu")
        batches = predictor.batches([tile])
        calls[word] = lambda p=predictor, b=batches: p.probabilities(b)
    seconds = take_turns(calls, rounds=arguments.rounds)
    return Figure("D4 / a single prediction", ratios(seconds["d4"], seconds["none"]), 8.2)


class _Constant(Predictor):
    """Predicts one class, in no time."""

    def probabilities(self, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        count, *shape = batches[0]["label"].shape
        made = torch.zeros(count, len(self.nomenclature.classes), *shape)
        made[:, 0] = 1
        return made


def _memory(folder: Path, checkpoint: Path, arguments: Namespace) -> Figure:
    small, large = arguments.sizes
    images = [_raster(folder / f"{size}.tif", size, arguments.patch) for size in (small, large)]
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        count = len(images) * arguments.rounds
        peaks = list(pool.map(_peak, [checkpoint] * count, images * arguments.rounds))
    name = f"memory of {large:,}² px / of {small:,}² px"
    return Figure(name, ratios(peaks[1::2], peaks[::2]), 1.1)


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def _peak(checkpoint: Path, image: Path) -> float:
    """Return the MiB that a map takes at most, above what the network and the libraries hold."""
    predictor = _Constant.from_run(checkpoint, device="cpu")
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak counts from here on
    map_raster(predictor, [image], image.with_suffix(".map.tif"), MapOptions(overwrite=True))
    return _resident("VmHWM") - before


# Seams.


def seam_error(
    made: NDArray[np.uint8], reference: NDArray[np.uint8], rows: Axis, columns: Axis
) -> tuple[float, float]:
    """Return how often a map differs from a reference near borders of tiles, and elsewhere.

    Args:
        made: (H, W) classes, with tiles along both axes.
        reference: (H, W) classes.
        rows: The tiling of rows.
        columns: That of columns.
    """
    near = np.logical_or.outer(_near_borders(rows), _near_borders(columns))
    differ = made != reference
    return float(differ[near].mean()) if near.any() else 0.0, float(differ[~near].mean())


def _near_borders(axis: Axis) -> NDArray[np.bool_]:
    """Return which pixels lie near the middle of two tiles' overlap, (size,)."""
    middles = np.array([axis.begin(tile) + axis.shared // 2 for tile in range(1, axis.count)])
    places = np.arange(axis.size)
    if not len(middles):
        return np.zeros(axis.size, np.bool_)
    near: NDArray[np.bool_] = np.abs(places[:, None] - middles).min(axis=1) < NEAR
    return near


@dataclass(frozen=True)
class Seams:
    """A map of a scene, by one way of joining."""

    join: Join
    overlap: int
    classes: NDArray[np.uint8]
    """(H, W) values."""
    against_half: tuple[float, float]
    """How often it differs from a map of half-overlapping tiles: near borders, and elsewhere."""
    against_truth: tuple[float, float]
    """How often it differs from the truth, likewise."""

    @property
    def name(self) -> str:
        """What it is called in a table."""
        return f"{self.join} {self.overlap}" if self.overlap else "no overlap"


def _seams(run: Path, scene: Path, picture: str | None) -> list[Figure]:
    """Map a scene in each way; return how often the maps are wrong near borders and elsewhere."""
    made = list(_mapped(Predictor.from_run(run), scene))
    if picture:
        _draw(made, Path(picture))
    figures = []
    for each in made:
        for what, errors in (("half-overlapping tiles", each.against_half),
                             ("the truth", each.against_truth)):  # fmt: skip
            for where, error in zip(("near borders", "elsewhere"), errors, strict=True):
                title = f"{each.name}: differs from {what}, {where}"
                figures.append(Figure(title, [100 * error], unit="%"))
    return figures


def _mapped(predictor: Predictor, scene: Path) -> Iterator[Seams]:
    patch = predictor.patch_size
    flight = Flight.parse(json.loads((scene / "scene.json").read_text("utf-8"))["flight"])
    with rasterio.open(scene / "truth.tif") as file:
        truth: NDArray[np.uint8] = file.read(1)
    truth = np.minimum(truth, len(predictor.nomenclature.classes))
    with tempfile.TemporaryDirectory() as name:

        def made(overlap: int, join: Join) -> NDArray[np.uint8]:
            options = MapOptions(
                overlap=overlap, join=join, series=scene / "series", flight=flight, overwrite=True
            )
            map_raster(predictor, [scene / "image.tif"], Path(name) / "map.tif", options)
            with rasterio.open(Path(name) / "map.tif") as file:
                values: NDArray[np.uint8] = file.read(1)
            return values

        half = made(patch // 2, "blend")
        for overlap in (0, patch // 16, patch // 8, patch // 4):
            for join in ("crop", "blend") if overlap else ("crop",):
                way: Join = "crop" if join == "crop" else "blend"
                classes = made(overlap, way)
                axes = [Axis(size, patch, overlap, way) for size in truth.shape]
                errors = (seam_error(classes, other, *axes) for other in (half, truth))
                yield Seams(way, overlap, classes, *errors)


def _draw(made: Sequence[Seams], path: Path) -> None:
    """Draw how often maps of a scene are wrong near borders of tiles, and elsewhere."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    places = np.arange(len(made))
    titles = ("against a map of half-overlapping tiles", "against the truth")
    for panel, title, values in zip(
        panels, titles, ([e.against_half for e in made], [e.against_truth for e in made]),
        strict=True,
    ):  # fmt: skip
        for at, (where, colour) in enumerate((("within 8 px of a border", "#c44e52"),
                                              ("elsewhere", "#8c8c8c"))):  # fmt: skip
            bars = [100 * each[at] for each in values]
            panel.bar(places + 0.4 * at - 0.2, bars, 0.4, label=where, color=colour)
        panel.set_xticks(places, [each.name for each in made], rotation=30, ha="right")
        panel.set_title(f"Pixels of another class, {title}", fontsize=9)
        panel.set_ylabel("%")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
