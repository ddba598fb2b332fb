"""What reading costs: `python scripts/benchmark.py data [--root ROOT] [--rounds N] [--folder DIR]`.

Reading is measured from files in the page cache, so it is the work of the code and not of the disk.
"Reading alone" opens and decodes image and mask with rasterio, with the same GDAL options as the
package, and copies the crop of the series and of its probabilities, all acquisitions, from
memory-mapped arrays. Without `--root` a sample data set of 512 px patches is made first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness import Figure, at_least, ratios, report, take_turns, this_machine
from flair2_exp.config.data import (
    AugConfig,
    DataConfig,
    DataGroups,
    DatasetConfig,
    S2PreprocConfig,
    SampleConfig,
)
from flair2_exp.data.layout import Index

SERIES: Final = S2PreprocConfig(cloud_filter=True, monthly=True)
FLIPS: Final = AugConfig(geometry="flips")
BOTH: Final = frozenset({"aerial", "satellite"})
WHOLE: Final = {"patches": 77_762, "areas": 916, "train_areas": 729}
"""FLAIR #2's patches and areas; the share of the train tree is that of its patches."""


def main(options: Sequence[str] = ()) -> int:
    """Measure and print everything; returns 1 where a figure is missed."""
    parser = argparse.ArgumentParser(prog="benchmark.py data")
    parser.add_argument("--root", type=Path, help="a data set with 512 px patches")
    parser.add_argument(
        "--rounds", type=at_least(20), default=20, help="samples of each figure (20, or more)"
    )
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    arguments = parser.parse_args(list(options))
    import torch

    torch.set_num_threads(1)
    machine = this_machine()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        root = arguments.root or _sample(Path(folder) / "sample")
        figures, facts = _reading(root, Path(folder) / "store", arguments.rounds)
        figures += _workers(root, arguments.rounds)
        figures += _transferred(root)
        figures += _indexing(Path(folder) / "names", arguments.rounds)
    return report("data", figures, facts={"machine": machine, **facts})


def _sample(root: Path) -> Path:
    """Make a sample data set of patches and super-areas as FLAIR #2 has them."""
    from flair2_exp.data.sample.tree import ensure_sample

    options = SampleConfig(patch_size=512, domains=6, areas_per_domain=1, patches_per_area=4)
    return ensure_sample(root, options)


def _module(
    root: Path,
    *,
    series: S2PreprocConfig = SERIES,
    reads: frozenset[str] = BOTH,
    store: Path | None = None,
    workers: int = 0,
) -> Any:
    from flair2_exp.data.datamodule import FlairDataModule

    groups = DataGroups(
        data=DataConfig(workers=workers),
        dataset=DatasetConfig(root=str(root), store=str(store) if store else None),
        s2_preproc=series,
        aug=FLIPS,
    )
    data = FlairDataModule(groups, reads=reads)
    data.setup()
    return data


def _reading(root: Path, store: Path, rounds: int) -> tuple[list[Figure], dict[str, Any]]:
    """Measure a training sample from files and from a store, over reading the files alone."""
    from flair2_exp.data.preparation import prepare

    direct = _module(root)
    listed = direct.index
    start = time.perf_counter()
    made = prepare(listed, store, patch_size=direct.patch_size, series=SERIES)
    seconds = time.perf_counter() - start
    stored = _module(root, store=store)
    count = direct.counts["train"]
    patches = direct.dataset("train").patches.tolist()

    def each(read: Callable[[int, int], object]) -> Callable[[], object]:
        """Read one patch per call, epoch after epoch."""
        order = ((epoch, i) for epoch in itertools.count() for i in range(count))
        return lambda: read(*next(order))

    times = take_turns(
        {
            "alone": each(lambda _, i: read_alone(listed, patches[i], SERIES.size)),
            "direct": each(lambda epoch, i: direct.dataset("train").sample(i, epoch)),
            "stored": each(lambda epoch, i: stored.dataset("train").sample(i, epoch)),
        },
        rounds=rounds * count,
        warmup=2 * count,
    )
    each_ms = {name: [1e3 * s for s in values] for name, values in times.items()}
    whole = WHOLE["patches"]
    facts = {
        "patches": f"{count} of {direct.patch_size} px, one at a time in turns, {rounds} epochs",
        "FLAIR #2 prepared (extrapolated)": f"{seconds / len(listed) * whole / 3600:.2f} h in one "
        f"process, {made.size / len(listed) * whole / 1e9:.0f} GB",
    }
    return [
        Figure("reading the files alone", each_ms["alone"], unit="ms"),
        Figure("training sample, files", each_ms["direct"], unit="ms"),
        Figure("training sample, store", each_ms["stored"], unit="ms"),
        Figure("sample from files / reading alone", ratios(times["direct"], times["alone"]), 1.15),
        Figure("sample from store / reading alone", ratios(times["stored"], times["alone"]), 0.20),
        Figure("preparing a patch", [1e3 * seconds / len(listed)], unit="ms"),
        Figure("a prepared patch", [made.size / len(listed) / 1e6], unit="MB"),
    ], facts


def read_alone(listed: Index, patch: int, size: int) -> tuple[Any, ...]:
    """Read a patch's files and do nothing: what no reader without preparation can undercut."""
    import rasterio

    from flair2_exp.data.readers import reading

    with reading():
        with rasterio.open(listed.image_path(patch)) as file:
            image = file.read()
        with rasterio.open(listed.mask_path(patch)) as file:
            mask = file.read()
    files = listed.series_files(int(listed.area[patch]))
    row, column = (int(value) - size // 2 for value in listed.centroids[patch])
    window = (slice(None), slice(None), slice(row, row + size), slice(column, column + size))
    data = np.load(files.data, mmap_mode="r", allow_pickle=False)
    masks = np.load(files.masks, mmap_mode="r", allow_pickle=False)
    return image, mask, np.array(data[window]), np.array(masks[window])


def _workers(root: Path, rounds: int) -> list[Figure]:
    """Measure samples per second with two workers over one process, in epochs of 300."""
    passes = {}
    for workers in (0, 2):
        data = _module(root, workers=workers)
        dataset = data.dataset("train")
        dataset.patches = np.resize(dataset.patches, 300)
        loader = data.train_dataloader()
        passes[workers] = lambda loader=loader: sum(len(batch["area"]) for batch in loader)
    times = take_turns({"one": passes[0], "two": passes[2]}, rounds=rounds)
    return [
        Figure("samples/s, one process", [300 / s for s in times["one"]]),
        Figure("samples/s, two workers", [300 / s for s in times["two"]]),
        Figure("two workers / one process", ratios(times["one"], times["two"]), 1.7, "at least"),
    ]


def _transferred(root: Path) -> list[Figure]:
    """Measure bytes of a training batch that a worker sends, over those of its files' types."""
    figures = []
    # The means of integers are no integers: they travel as float32.
    kinds = {"raw": (S2PreprocConfig(), 2), "monthly_cloudfree": (SERIES, 4)}
    for name, (series, width) in kinds.items():
        data = _module(root, series=series, workers=1, reads=BOTH | {"metadata"})
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


_INDEX: Final = """
print(len(index(locate(dataset))))
"""
_FINGERPRINT: Final = """
from flair2_exp.config.data import DataGroups, SplitConfig
from flair2_exp.data.fingerprint import fingerprint
groups = DataGroups(dataset=dataset, split=SplitConfig(name="reference"))
print(len(index(locate(dataset))) if fingerprint(groups, frozenset({"aerial", "satellite"})) else 0)
"""


def _indexing(root: Path, rounds: int) -> list[Figure]:
    """Measure listing as many names as FLAIR #2 has, and the files' fingerprint: first, after.

    The files are empty, so that opening them counts and reading from a disk does not.
    """
    write_names(root)
    time.sleep(3)  # what is younger than the file system's clock ticks is not kept
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "flair2_exp"
    figures, memory = [], []
    for name, code, first_limit, limit in (
        ("index", _INDEX, 10.0, 1.0),
        ("fingerprint", _FINGERPRINT, 60.0, 2.0),
    ):
        times: dict[str, list[float]] = {"first": [], "after": []}
        for _ in range(rounds):
            for file in cache.glob("*.npz"):
                file.unlink()
            for kind in times:
                seconds, mebibytes = _alone(code, root)
                times[kind].append(seconds)
                memory.append(mebibytes)
        figures += [
            Figure(f"{name} of 77,762 patches, first", times["first"], first_limit, unit="s"),
            Figure(f"{name} of 77,762 patches, after", times["after"], limit, unit="s"),
        ]
    largest = "largest memory of a process that indexes"
    return [*figures, Figure(largest, memory, 500.0, unit="MB")]


def _alone(code: str, root: Path) -> tuple[float, float]:
    """Run code in a process of its own; return its seconds, imports left out, and MB of memory."""
    whole = (
        "import re, sys, time\n"
        "from flair2_exp.config.data import DatasetConfig\n"
        "from flair2_exp.data.layout import index, locate\n"
        "dataset = DatasetConfig(root=sys.argv[1])\n"
        f"start = time.perf_counter()\n{code}\n"
        "print(time.perf_counter() - start)\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())\n"
        "print(int(peak[1]) / 1024)\n"
    )
    command = [sys.executable, "-c", whole, str(root)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count, seconds, mebibytes = map(float, out.split())
    assert count == WHOLE["patches"]
    return seconds, mebibytes


def write_names(root: Path) -> None:
    """Write a tree of FLAIR #2's size whose rasters and series are empty files."""
    centroids: dict[str, list[int]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    shares = np.array_split(np.arange(WHOLE["patches"]), WHOLE["areas"])
    for number, share in enumerate(shares):
        test = number >= WHOLE["train_areas"]
        middle, end = ("2_", "test") if test else ("", "train")
        area = f"D{number // 19:03}_2021/Z{number % 19 + 1}_NN"
        places = {
            part: root / f"flair_{middle if part != 'labels' or test else ''}{part}_{end}" / area
            for part in ("aerial", "labels", "sen")
        }
        for part, folder in (("aerial", "img"), ("labels", "msk"), ("sen", "sen")):
            (places[part] / folder).mkdir(parents=True)
        for patch in share.tolist():
            name = f"IMG_{patch:06}"
            (places["aerial"] / "img" / f"{name}.tif").touch()
            (places["labels"] / "msk" / f"MSK_{patch:06}.tif").touch()
            centroids[f"{name}.tif"] = [50, 60]
            metadata[name] = {
                "domain": area[:9],
                "zone": area[10:],
                "patch_centroid_x": 900_000.5 + patch,
                "patch_centroid_y": 6_500_000.25,
                "patch_centroid_z": 39.5,
                "date": "2021-07-09",
                "time": "10h33",
                "camera": "UCE-M3-f120-s06",
            }
    (root / "flair-2_centroids_sp_to_patch.json").write_text(json.dumps(centroids))
    (root / "flair_aerial_metadata.json").write_text(json.dumps(metadata))
