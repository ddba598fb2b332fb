"""A prepared store: patches decoded and series preprocessed once, read with three plain reads.

The store is a folder of NumPy arrays in shards of 128 patches, in the index's order:

    store.json                  form, settings, patch size
    index.npz                   what is in the shards; written last, so its presence means complete
    shards/00000/images.npy     (n, 5, H, W) uint8; other sources: their bands and type
    shards/00000/masks.npy      (n, H, W) uint8, values 1..19; others: class indices, one more
    shards/00000/series.npy     (frames, 10, S, S) uint16, or float32 for monthly means
    shards/00000/index.npz      the shard's part of the index

It holds all bands, mask values instead of classes, and unscaled frames, so that one store serves
every split, choice of bands, nomenclature and scale; only the settings of the series matter.

Why plain arrays, by measurement (median of 384 random reads of real patches of 512 px with a
monthly series, copied out, from the page cache, on two busy cores):

    NumPy arrays, three reads        0.29 ms   2.24 MB a patch
    litdata 0.2.76                   0.39 ms   2.24 MB
    zarr 3.1.6, sharded              7.0 ms    2.34 MB
    zarr 3.1.6, sharded, zstd        9.5 ms    1.16 MB

litdata is as fast but adds a service's client to the dependencies; zarr halves the size with zstd
and then costs as much as decoding the GeoTIFFs. Any tool opens these files, and NumPy is there.

A shard is written beside its place and renamed, so that a killed preparation is continued by
calling it again; a lock keeps two from meeting. Size, time and digest of each source file are kept:
a shard whose sources changed or that lost bytes is prepared again, a run refuses a store that is no
longer what its files would give, and its fingerprint is that of the files that the store was made
from. This module is the store's form, `preparation` writes and `readers` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from flair2_exp import values
from flair2_exp.config.data import S2PreprocConfig
from flair2_exp.data import digests
from flair2_exp.data.arrays import read_npz
from flair2_exp.data.source import DataSource, Patches
from flair2_exp.errors import DataError
from flair2_exp.nomenclature import SATELLITE_BANDS

FORMAT: Final = 2
"""Raised when the store changes its form."""

SHARD: Final = 128
"""Patches in a shard of a new store: some 300 MB at 512 px, seconds of work lost by a kill."""

HEADER: Final = 128
"""Bytes of the header of the store's `.npy` files, as NumPy writes it."""

Table = Mapping[str, NDArray[Any]]


def settings_of(source: DataSource, series: S2PreprocConfig | None) -> dict[str, Any]:
    """Return the settings that a store's contents depend on, by the names of the config.

    Options that have no effect beside the others are left out; without `series` all of them.
    """
    settings = {"patch_size": source.patch_size, "satellite": series is not None}
    settings |= source.stored_as()
    if series is None:
        return settings
    names = ["monthly", "cloud_filter", "size"]
    if series.cloud_filter:
        names += ["threshold", "max_cover", "cover", "on_empty"]
    if not series.monthly:
        names += ["days"]
    return settings | {f"s2_preproc.{name}": getattr(series, name) for name in names}


def shard_folder(path: Path, shard: int) -> str:
    """Return the folder of a shard."""
    return f"{path}/shards/{shard:05d}"


def frame_bytes(series: S2PreprocConfig) -> int:
    """Return the bytes of a stored frame."""
    return len(SATELLITE_BANDS) * series.size**2 * (4 if series.monthly else 2)


def lost_file(
    folder: str, counts: NDArray[np.int64], source: DataSource, series: S2PreprocConfig | None
) -> str:
    """Return the file of a shard that is missing or of another length than its patches make it.

    Args:
        folder: The shard's folder.
        counts: (n,) frames of each of its patches.
        source: The data.
        series: How the series were preprocessed; None where they are not there or not read.

    Returns:
        Its path; empty where all is there.
    """
    pixels = len(counts) * source.patch_size**2
    images = len(source.bands) * source.image_type.itemsize * pixels
    sizes = {"images": images, "masks": pixels}
    if series is not None:
        sizes["series"] = int(counts.sum()) * frame_bytes(series)
    for name, size in sizes.items():
        file = f"{folder}/{name}.npy"
        if not os.path.isfile(file) or os.path.getsize(file) != HEADER + size:
            return file
    return ""


def describe(path: Path) -> dict[str, Any]:
    """Return the store's description: its format, the size of its shards, its settings.

    Raises:
        DataError: There is no store, or one of another form.
    """
    try:
        content: dict[str, Any] = json.loads((path / "store.json").read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError("another form")
        if not isinstance(content["settings"], dict) or int(content["shard"]) < 1:
            raise ValueError("no settings")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"dataset.store={path} is not a prepared store ({error}).\n"
            "Prepare one with `flair2-exp prepare`."
        ) from None


def read_table(path: Path, index: Patches) -> dict[str, NDArray[Any]]:
    """Return what is in a store's shards, row by row as the index lists the patches.

    Raises:
        DataError: There is no store, it is not finished, or it holds other patches than the index.
    """
    describe(path)
    table = read_npz(path / "index.npz")
    if table is None:
        refuse(path, "is not finished")
    difference = _other_patches(table, index, range(len(index)))
    if difference:
        refuse(path, f"is not of these files: {difference}")
    return table


def refuse(
    path: Path, what: str, fix: str = "Prepare it (again) with `flair2-exp prepare`"
) -> NoReturn:
    """Raise the DataError of a store that does not serve."""
    raise DataError(f"dataset.store={path} {what}.\n{fix}, or omit dataset.store.")


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the settings that differ, as `name is 16, not 24`.

    A setting that only one of them has goes with another that differs (no threshold without a
    filter) and is not named.
    """
    changes = values.differences(stored, wanted).items()
    both = stored.keys() & wanted
    return ", ".join(f"{name} is {old}, not {new}" for name, (old, new) in changes if name in both)


def stale(table: Table, source: DataSource, states: digests.States, patches: range) -> str:
    """Return how (a part of) a store differs from the files; empty where it does not.

    Args:
        table: What is in these shards.
        source: The data set.
        states: (N, k, 2) of the whole index, from `DataSource.states`.
        patches: The positions in the index that the table should hold.
    """
    index = source.index
    difference = _other_patches(table, index, patches)
    if difference:
        return difference
    part = slice(patches.start, patches.stop)
    changed = table["sources"] != states[part]
    moved = table["centroids"] != source.centroids[part]
    which = changed.any(axis=(1, 2)) | moved.any(axis=1)
    if not which.any():
        return ""
    first = int(np.argmax(which))
    what = "centroid"
    if changed[first].any():
        file, field = np.argwhere(changed[first])[0].tolist()
        pair = table["sources"][first, file, field], states[part][first, file, field]
        before, now = ("absent" if state < 0 else state for state in pair)
        unit = ("bytes", "ns since 1970")[field]
        names = source.file_names
        what = (
            f"{names[file] if file < len(names) else f'file {file + 1}'} ({before} → {now} {unit})"
        )
    name = index.ids[part][first]
    return f"{which.sum()} of {len(which)} patches changed, first {name}: its {what}"


def _other_patches(table: Table, index: Patches, patches: range) -> str:
    """Return how many patches a part of a store has too many or too few; empty where none."""
    part = slice(patches.start, patches.stop)
    stored = np.char.add(np.char.add(table["areas"], "/"), table["ids"])
    areas = index.area_names[index.area[part]]
    present = np.char.add(np.char.add(areas, "/"), index.ids[part])
    if np.array_equal(stored, present):
        return ""
    gone, new = np.setdiff1d(stored, present), np.setdiff1d(present, stored)
    some = f", such as {(new if len(new) else gone)[0]}" if len(new) or len(gone) else ""
    return f"the data set has {len(new)} patches more and {len(gone)} fewer{some}"
