"""What reading costs: `python scripts/benchmark.py data [--root ROOT] [--rounds N]`.

Reading is measured from files in the page cache, so it is the work of the code and not of the disk.
"Reading alone" opens and decodes image and mask with rasterio, with the same GDAL options as the
package, and copies the crop of the series and of its probabilities, all acquisitions, from
memory-mapped arrays. "Copying" is `numpy.copy` of the arrays of the same patch's sample as it is
delivered: bands and labels in uint8, monthly means in float32, days in int64. It tells what these
bytes cost on this processor at this moment, so bounds in copies hold on any processor and disk.
Without `--root` a sample data set of 512 px patches is made first, below TMPDIR.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from benchmarks.harness import Figure, ratios, take_turns
from flair2_exp.config.data import (
    AugConfig,
    DataConfig,
    DataGroups,
    DatasetConfig,
    S2PreprocConfig,
    SampleConfig,
)
from flair2_exp.data.datamodule import FlairDataModule
from flair2_exp.data.layout import Index, index, locate
from flair2_exp.data.preparation import prepare
from flair2_exp.data.readers import reading
from flair2_exp.data.sample.tree import ensure_sample
from flair2_exp.data.source import Sample

ROUNDS: Final = (20, 20)
OPTIONS: Final = {"--root": {"type": Path, "help": "a data set with 512 px patches"}}
SERIES: Final = S2PreprocConfig(cloud_filter=True, monthly=True)
SAMPLE: Final = SampleConfig(patch_size=512, domains=6, areas_per_domain=1, patches_per_area=4)
"""Patches and super-areas as FLAIR #2 has them."""
COPIES: Final = 3.0
"""Copies that a sample may take of its bytes: once for each of reading, classes and what is around
them, flips among it. From files, beyond reading them."""
BOTH: Final = frozenset({"aerial", "satellite"})
PATCHES, AREAS, TRAIN_AREAS = 77_762, 916, 729
"""FLAIR #2's patches and areas; the share of the train tree is that of its patches."""


def measure(arguments: Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Measure samples, workers, what workers send, and listing a tree of FLAIR #2's size."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        root = arguments.root or ensure_sample(folder / "sample", SAMPLE)
        figures, facts = _reading(root, folder / "store", arguments.rounds)
        figures += _workers(root, arguments.rounds) + _transferred(root)
        return figures + _indexing(folder / "names", arguments.rounds), facts


def _module(
    root: Path,
    series: S2PreprocConfig = SERIES,
    reads: frozenset[str] = BOTH,
    store: str | None = None,
    workers: int = 0,
    geometry: Literal["none", "flips"] = "flips",
) -> FlairDataModule:
    groups = DataGroups(
        data=DataConfig(workers=workers),
        dataset=DatasetConfig(root=str(root), store=store),
        s2_preproc=series,
        aug=AugConfig(geometry=geometry),
    )
    data = FlairDataModule(groups, reads=reads)
    data.setup()
    return data


def _reading(root: Path, store: Path, rounds: int) -> tuple[list[Figure], dict[str, Any]]:
    """Measure samples from files and from a store, over reading the files and copying bytes."""
    direct = _module(root)
    listed, count = index(locate(direct.groups.dataset)), direct.counts["train"]
    start = time.perf_counter()
    size = prepare(direct.source, store, series=SERIES).size / len(listed)
    seconds = (time.perf_counter() - start) / len(listed)
    files, stored, plain = (
        each.dataset("train")
        for each in (
            direct,
            _module(root, store=str(store)),
            _module(root, store=str(store), geometry="none"),
        )
    )
    patches = files.patches.tolist()
    delivered = [_arrays(plain.sample(at, 0)) for at in range(count)]

    def each(read: Callable[[int, int], object]) -> Callable[[], object]:
        """Read one patch per call, epoch after epoch."""
        order = ((i, epoch) for epoch in itertools.count() for i in range(count))
        return lambda: read(*next(order))

    calls = {
        "reading the files alone": each(lambda i, _: read_alone(listed, patches[i], SERIES.size)),
        "training sample, files": each(files.sample),
        "copying the bytes of a sample": each(lambda i, _: [*map(np.copy, delivered[i])]),
        "sample, store": each(plain.sample),
        "training sample, store": each(stored.sample),
    }
    times = take_turns(calls, rounds=rounds * count, warmup=2 * count)
    alone, from_files, copies, prepared, augmented = times.values()
    beyond = [whole - part for whole, part in zip(from_files, alone, strict=True)]
    facts = {
        "patches": f"{count} of {direct.patch_size} px, one at a time in turns, {rounds} epochs",
        "a sample": f"{sum(array.nbytes for array in delivered[0]) / 1e6:.2f} MB",
        "FLAIR #2 prepared (extrapolated)": f"{seconds * PATCHES / 3600:.2f} h in one process, "
        f"{size * PATCHES / 1e9:.0f} GB",
    }
    return [
        *(Figure(name, [1e3 * s for s in samples], unit="ms") for name, samples in times.items()),
        Figure("sample from store / copying", ratios(prepared, copies), COPIES),
        Figure("training sample from store / copying", ratios(augmented, copies), COPIES),
        Figure("training sample from files beyond reading / copying", ratios(beyond, copies),
               COPIES),
        Figure("preparing a patch", [1e3 * seconds], unit="ms"),
        Figure("a prepared patch", [size / 1e6], unit="MB"),
    ], facts  # fmt: skip


def _arrays(sample: Sample) -> list[NDArray[Any]]:
    """Return what of a sample is delivered."""
    arrays = (sample.image, sample.label, sample.frames, sample.days)
    return [each for each in arrays if each is not None]


def read_alone(listed: Index, patch: int, size: int) -> tuple[Any, ...]:
    """Read a patch's files and do nothing: what no reader without preparation can undercut."""
    with reading():
        with rasterio.open(listed.image_path(patch)) as file:
            image = file.read()
        with rasterio.open(listed.mask_path(patch)) as file:
            mask = file.read()
    files = listed.series_files(int(listed.area[patch]))
    row, column = (int(value) - size // 2 for value in listed.centroids[patch])
    window = (slice(None), slice(None), slice(row, row + size), slice(column, column + size))
    arrays = (
        np.load(file, mmap_mode="r", allow_pickle=False) for file in (files.data, files.masks)
    )
    return image, mask, *(np.array(array[window]) for array in arrays)


def _workers(root: Path, rounds: int) -> list[Figure]:
    """Measure samples per second with two workers over one process, in epochs of 300."""
    calls = {}
    for name, workers in (("one process", 0), ("two workers", 2)):
        data = _module(root, workers=workers)
        dataset = data.dataset("train")
        dataset.patches = np.resize(dataset.patches, 300)
        loader = data.train_dataloader()
        calls[name] = lambda loader=loader: sum(len(batch["area"]) for batch in loader)
    times = take_turns(calls, rounds=rounds)
    return [
        *(Figure(f"samples/s, {name}", [300 / s for s in times[name]]) for name in calls),
        Figure("two workers / one process", ratios(*times.values()), 1.7, "at least"),
    ]


def _transferred(root: Path) -> list[Figure]:
    """Measure bytes of a training batch that a worker sends, over those of its files' types."""
    figures = []
    # The means of integers are no integers: they travel as float32.
    kinds = {"raw": (S2PreprocConfig(), 2), "monthly_cloudfree": (SERIES, 4)}
    for name, (series, width) in kinds.items():
        data = _module(root, series, workers=1, reads=BOTH | {"metadata"})
        batch = next(iter(data.train_dataloader()))
        tensors = {key: value for key, value in batch.items() if hasattr(value, "numel")}
        sent = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        widths = {"image": 1, "label": 1, "series": width, "padding": 1, "days": 8, "metadata": 4}
        own = sum(tensor.numel() * widths[key] for key, tensor in tensors.items())
        floats = sum(tensor.numel() * 4 for tensor in tensors.values())
        figures += [
            Figure(f"bytes sent / bytes in the files' types, {name}", [sent / own], 1.0),
            Figure(f"bytes sent / bytes as float32, {name}", [sent / floats]),
        ]
    return figures


_PROGRAM: Final = r"""
import re, sys, time
from flair2_exp.config.data import DataGroups, DatasetConfig, SplitConfig
from flair2_exp.data.fingerprint import fingerprint
from flair2_exp.data.layout import index, locate
dataset = DatasetConfig(root=sys.argv[2])
groups = DataGroups(dataset=dataset, split=SplitConfig(name="reference"))
start = time.perf_counter()
if sys.argv[1] == "fingerprint":
    fingerprint(groups, frozenset({"aerial", "satellite"}))
print(len(index(locate(dataset))), time.perf_counter() - start)
print(int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


def _indexing(root: Path, rounds: int) -> list[Figure]:
    """Measure listing as many names as FLAIR #2 has, and the files' fingerprint: first, after.

    The files are empty, so that opening them counts and reading from a disk does not. Each runs in
    a process of its own, whose imports are left out of the time.
    """
    write_names(root)
    time.sleep(3)  # what is younger than the file system's clock ticks is not kept
    figures, memory = [], []
    for name, limits in (("index", (10.0, 1.0)), ("fingerprint", (60.0, 2.0))):
        times: list[float] = []
        for number in range(2 * rounds):
            if number % 2 == 0:
                for file in Path(os.environ["XDG_CACHE_HOME"], "flair2_exp").glob("*.npz"):
                    file.unlink()
            command = [sys.executable, "-c", _PROGRAM, name, str(root)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            count, seconds, mebibytes = map(float, out.split())
            assert count == PATCHES
            times.append(seconds)
            memory.append(mebibytes)
        for at, when in enumerate(("first", "after")):
            what = f"{name} of {PATCHES:,} patches, {when}"
            figures.append(Figure(what, times[at::2], limits[at], unit="s"))
    largest = "largest memory of a process that indexes"
    return [*figures, Figure(largest, memory, 500.0, unit="MB")]


def write_names(root: Path) -> None:
    """Write a tree of FLAIR #2's size whose rasters and series are empty files."""
    centroids: dict[str, list[int]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for number, patches in enumerate(np.array_split(np.arange(PATCHES), AREAS)):
        domain, zone = f"D{number // 19:03}_2021", f"Z{number % 19 + 1}_NN"
        tree = "flair_2_{}_test" if number >= TRAIN_AREAS else "flair_{}_train"
        images, masks, _ = folders = [
            root / tree.format(part) / domain / zone / folder
            for part, folder in (("aerial", "img"), ("labels", "msk"), ("sen", "sen"))
        ]
        for path in folders:
            path.mkdir(parents=True)
        for patch in patches.tolist():
            name = f"IMG_{patch:06}"
            (images / f"{name}.tif").touch()
            (masks / f"MSK_{patch:06}.tif").touch()
            centroids[f"{name}.tif"] = [50, 60]
            metadata[name] = {
                **{"domain": domain, "zone": zone, "date": "2021-07-09", "time": "10h33"},
                **{"patch_centroid_x": 900_000.5 + patch, "patch_centroid_y": 6_500_000.25},
                **{"patch_centroid_z": 39.5, "camera": "UCE-M3-f120-s06"},
            }
    (root / "flair-2_centroids_sp_to_patch.json").write_text(json.dumps(centroids), "utf-8")
    (root / "flair_aerial_metadata.json").write_text(json.dumps(metadata), "utf-8")
