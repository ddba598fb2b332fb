"""A prepared store: patches decoded and series preprocessed once, read with three plain reads.

The store is a folder of NumPy arrays in shards of 128 patches, in the index's order:

    store.json                  form, settings, patch size
    index.npz                   what is in the shards; written last, so its presence means complete
    shards/00000/images.npy     (n, 5, H, W) uint8
    shards/00000/masks.npy      (n, H, W) uint8, values 1..19
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
calling it again; a lock keeps two from meeting. Size and time of each source file are kept: a shard
whose sources changed or that lost bytes is prepared again, and a run refuses a store that no longer
is what its files would give.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from flair2_exp.data import layout
from flair2_exp.data.augment import Image, Sample
from flair2_exp.data.dataset import to_classes
from flair2_exp.data.layout import Index
from flair2_exp.data.options import SeriesOptions
from flair2_exp.data.sentinel2 import BANDS, Frames
from flair2_exp.errors import DamagedPatchError, DataError
from flair2_exp.nomenclature import AERIAL_BANDS

FORMAT: Final = 1
"""Raised when the store changes its form."""

SHARD: Final = 128
"""Patches in a shard of a new store: some 300 MB at 512 px, seconds of work lost by a kill."""

HEADER: Final = 128
"""Bytes of the header of the store's `.npy` files, as NumPy writes it."""

_SOURCES: Final = ("image", "mask", "series data", "series masks", "products")

Table = Mapping[str, NDArray[Any]]
AnyArray = TypeVar("AnyArray", bound=NDArray[Any])


def settings_of(series: SeriesOptions | None) -> dict[str, Any]:
    """The settings that a store's contents depend on, by the names of the config.

    Args:
        series: How the series are preprocessed; None for a store without series.

    Returns:
        Plain values; options that have no effect beside the others are left out.
    """
    if series is None:
        return {"satellite": False}
    names = ["monthly", "filter", "size"]
    if series.filter:
        names += ["threshold", "max_cover", "cover", "on_empty"]
    if not series.monthly:
        names += ["days"]
    chosen = dataclasses.asdict(series)
    renamed = {"filter": "cloud_filter"}
    return {
        "satellite": True,
        **{f"s2_preproc.{renamed.get(name, name)}": chosen[name] for name in names},
    }


def frame_bytes(series: SeriesOptions) -> int:
    """Bytes of a stored frame."""
    return BANDS * series.size**2 * (4 if series.monthly else 2)


def lost_file(
    folder: str | Path,
    counts: NDArray[np.int64],
    *,
    patch_size: int,
    series: SeriesOptions | None,
) -> str:
    """The file of a shard that is missing or of another length than its patches make it.

    Args:
        folder: The shard's folder.
        counts: (n,) frames of each of its patches.
        patch_size: Pixels on a side of every patch.
        series: How the series were preprocessed; None where they are not there or not read.

    Returns:
        Its path; empty where all is there.
    """
    pixels = len(counts) * patch_size**2
    sizes = {"images": len(AERIAL_BANDS) * pixels, "masks": pixels}
    if series is not None:
        sizes["series"] = int(counts.sum()) * frame_bytes(series)
    for name, size in sizes.items():
        file = f"{folder}/{name}.npy"
        if not os.path.isfile(file) or os.path.getsize(file) != HEADER + size:
            return file
    return ""


def describe(path: Path) -> dict[str, Any]:
    """The store's description."""
    try:
        content = json.loads((path / "store.json").read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("format") == FORMAT:
            if isinstance(content.get("settings"), dict) and int(content.get("shard", 0)) > 0:
                return content
            raise ValueError("no settings")
        raise ValueError("another form")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"dataset.store={path} is no prepared store ({error}).\n"
            "Prepare one with scripts/prepare.py."
        ) from None


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Settings that differ, as `name: stored, not wanted`.

    A setting that only one of them has goes with another that differs (no threshold without a
    filter) and is not named.
    """
    return ", ".join(
        f"{name} is {stored[name]}, not {wanted[name]}"
        for name in stored
        if name in wanted and stored[name] != wanted[name]
    )


def stale(table: Table, index: Index, sources: NDArray[np.int64], patches: range) -> str:
    """How (a part of) a store differs from the files; empty where it does not."""
    part = slice(patches.start, patches.stop)
    ids, areas = index.ids[part], index.area_names[index.area[part]]
    known = np.char.add(np.char.add(table["areas"], "/"), table["ids"])
    present = np.char.add(np.char.add(areas, "/"), ids)
    if not np.array_equal(known, present):
        gone, new = np.setdiff1d(known, present), np.setdiff1d(present, known)
        some = f", such as {(new if len(new) else gone)[0]}" if len(new) or len(gone) else ""
        return f"the data set has {len(new)} patches more and {len(gone)} fewer{some}"
    changed = table["sources"] != sources[part]
    if not changed.any() and np.array_equal(table["centroids"], index.centroids[part]):
        return ""
    moved = (table["centroids"] != index.centroids[part]).any(axis=1)
    which = changed.any(axis=(1, 2)) | moved
    first = int(np.flatnonzero(which)[0])
    what = "centroid"
    if changed[first].any():
        file, field = np.argwhere(changed[first])[0].tolist()
        states = table["sources"][first, file, field], sources[part][first, file, field]
        before, now = ("absent" if state < 0 else state for state in states)
        unit = ("bytes", "ns since 1970")[field]
        what = f"{_SOURCES[file]} ({before} → {now} {unit})"
    return f"{int(which.sum())} of {len(which)} patches changed, first {ids[first]}: its {what}"


class StoreReader:
    """Reads samples from a prepared store; equal bit by bit to those of `dataset.TreeReader`.

    Attributes:
        sizes: (N, 5) bytes of the files that it was prepared from, as `layout.file_sizes`; -1 for
            series where it has none.
    """

    def __init__(
        self,
        path: str | Path,
        index: Index,
        *,
        patch_size: int,
        classes: int = 13,
        bands: Sequence[str] = AERIAL_BANDS,
        aerial: bool = True,
        series: SeriesOptions | None = None,
    ) -> None:
        """Open a store and compare it with the files and the settings.

        Args:
            path: The store's folder.
            index: The data set it was prepared from.
            patch_size: Pixels on a side of every patch.
            classes: 13 or 19.
            bands: Aerial bands, in the wanted order.
            aerial: Whether to read the aerial image.
            series: How the series must have been preprocessed; None: they are not read.

        Raises:
            DataError: No store, an unfinished one, one of other settings, or one whose sources
                have changed; the message names the difference.
        """
        self.path = Path(path)
        description = describe(self.path)
        stored = description["settings"]
        self._require_settings(stored, {"patch_size": patch_size, **settings_of(series)})
        self._table = self._read_table()
        self.sizes = self._require_fresh(index, satellite=bool(stored.get("satellite")))
        self._ends = np.cumsum(self._table["counts"])
        self._shard = int(description["shard"])
        self._size = patch_size
        self._classes = classes
        self._bands = [AERIAL_BANDS.index(band) for band in bands] if aerial else None
        self._series = series
        self._require_whole()

    def _require_settings(self, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
        if not wanted["satellite"]:  # series that are not read do not matter
            stored = {"patch_size": stored.get("patch_size")}
        fix = "Prepare another with scripts/prepare.py, take its settings"
        self._refuse(differences(stored, wanted), "is of other settings: ", fix)

    def _read_table(self) -> dict[str, NDArray[Any]]:
        """What is in the shards."""
        try:
            with np.load(self.path / "index.npz", allow_pickle=False) as table:
                return dict(table)
        except (OSError, EOFError, ValueError, BadZipFile):
            self._refuse("not finished", "is ")
            raise

    def _require_fresh(self, index: Index, *, satellite: bool) -> NDArray[np.int64]:
        """Refuse a store of other files; returns their sizes as they are now."""
        sources = layout.file_states(index, np.arange(len(index)), satellite=satellite)
        difference = stale(self._table, index, sources, range(len(index)))
        self._refuse(difference, "is not of these files: ")
        del self._table["sources"]  # not needed to read
        return sources[:, :, 0].copy()

    def _refuse(
        self, difference: str, words: str, fix: str = "Prepare it (again) with scripts/prepare.py"
    ) -> None:
        if difference:
            raise DataError(
                f"dataset.store={self.path} {words}{difference}.\n"
                f"{fix}, or leave dataset.store away."
            )

    def _require_whole(self) -> None:
        """Refuse a store with a file that is missing or cut off."""
        counts = self._table["counts"]
        for shard, start in enumerate(range(0, len(counts), self._shard)):
            lost = lost_file(
                self._folder(shard),
                counts[start : start + self._shard],
                patch_size=self._size,
                series=self._series,
            )
            self._refuse(lost and f"{lost} is missing or damaged", "is incomplete: ")

    def _folder(self, shard: int) -> str:
        return f"{self.path}/shards/{shard:05d}"

    def _file(self, shard: int, name: str) -> str:
        return f"{self._folder(shard)}/{name}.npy"

    def read(self, patch: int) -> Sample:
        """The sample of a patch; see `dataset.Reader.read`."""
        shard, row = divmod(patch, self._shard)
        if self._table["damaged"][patch]:
            raise DamagedPatchError(
                f"{self.path}: the patch was damaged or lacked a file when it was prepared."
            )
        pixels = self._size**2
        square = (self._size, self._size)
        masks = self._file(shard, "masks")
        mask = _read_at(masks, row * pixels, np.empty(square, dtype=np.uint8))
        sample = Sample(label=to_classes(mask, self._classes, masks))
        if self._bands is not None:
            sample.image = self._image(self._file(shard, "images"), row)
        if self._series is not None:
            sample.frames, sample.days = self._frames(shard, patch)
            sample.covered = bool(self._table["covered"][patch])
        return sample

    def _image(self, file: str, row: int) -> Image:
        """The wanted bands, all in one read where they are the file's."""
        assert self._bands is not None
        pixels, count = self._size**2, len(AERIAL_BANDS)
        image = np.empty((len(self._bands), self._size, self._size), dtype=np.uint8)
        if self._bands == list(range(count)):
            return _read_at(file, row * count * pixels, image)
        for band, out in zip(self._bands, image, strict=True):
            _read_at(file, (row * count + band) * pixels, out)
        return image

    def _frames(self, shard: int, patch: int) -> tuple[Frames, NDArray[np.int64]]:
        assert self._series is not None
        end = int(self._ends[patch])
        start = end - int(self._table["counts"][patch])
        before = int(self._ends[shard * self._shard - 1]) if shard else 0
        size = self._series.size
        kind = np.float32 if self._series.monthly else np.uint16
        frames = np.empty((end - start, BANDS, size, size), dtype=kind)
        offset = (start - before) * frame_bytes(self._series)
        _read_at(self._file(shard, "series"), offset, frames)
        return frames, self._table["days"][start:end]


def _read_at(file: str, offset: int, out: AnyArray) -> AnyArray:
    """Fill `out` from behind the header; a map would crash the process where a file shrinks."""
    try:
        handle = os.open(file, os.O_RDONLY)
        try:
            read = os.preadv(handle, [out.data.cast("B")], HEADER + offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise DamagedPatchError(f"{file}: {error.strerror}.") from None
    if read != out.nbytes:
        raise DamagedPatchError(f"{file}: cut off.")
    return out
