"""Reading a patch: from the released tree's files, or from a prepared store.

Both readers give the same samples, bit by bit. NumPy and rasterio; nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from flair2_exp.config.data import DataGroups, S2PreprocConfig
from flair2_exp.data import sentinel2, store
from flair2_exp.data.arrays import DATA_TYPES, MASK_TYPES, open_array
from flair2_exp.data.cache import State, state_of
from flair2_exp.data.grids import quiet
from flair2_exp.data.layout import Index, SeriesFiles
from flair2_exp.data.sentinel2 import BANDS, Dates, Frames, Series
from flair2_exp.data.source import DataSource, Sample
from flair2_exp.errors import DamagedPatchError
from flair2_exp.nomenclature import AERIAL_BANDS

Image = NDArray[np.uint8]

READING: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no search for side files among hundreds
    "GDAL_GEOREF_SOURCES": "NONE",  # the place is not needed; parsing it takes most of an opening
    "GDAL_NUM_THREADS": "1",  # a worker is one process of one thread
}
"""GDAL options for reading pixels and nothing else."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Set GDAL up for `READING`; silence its warning about a place that nobody asked for."""
    with quiet(), rasterio.Env(**READING):
        yield


def read_raster(path: Path, bands: Sequence[int] | None = None) -> Image:
    """Read bands of a GeoTIFF, within `reading`.

    Args:
        path: The file.
        bands: Bands counted from 1, in the wanted order; None for all.

    Returns:
        (C, H, W) uint8.

    Raises:
        DamagedPatchError: Unreadable, truncated, too few bands or not uint8.
    """
    try:
        with rasterio.open(path, driver="GTiff") as file:  # whatever else GDAL knows is damage
            if bands is not None and file.count != len(AERIAL_BANDS):
                raise _damage(path, f"{file.count} bands instead of 5")
            image = file.read(bands)
    except (RasterioError, OSError, ValueError) as error:
        raise _damage(path, error) from None
    if image.dtype != np.uint8:
        raise _damage(path, f"pixels are {image.dtype}, not uint8")
    pixels: Image = image
    return pixels


def read_mask(path: Path) -> Image:
    """Read a mask's values 1..19 as (H, W) uint8; raises like `read_raster`."""
    image = read_raster(path)
    if len(image) != 1:
        raise _damage(path, f"{len(image)} bands instead of 1")
    mask: Image = image[0]
    return mask


def to_classes(mask: Image, classes: int, path: Path | str) -> Image:
    """Turn a mask's values into classes: one less, and from the last class on the last class.

    The rule is computed, not looked up: a table of 256 costs a tenth of reading the mask.

    Args:
        mask: (H, W) values 1..19; the indices take their place.
        classes: 13 or 19.
        path: For the message.

    Raises:
        DamagedPatchError: A value is outside 1..19.
    """
    label = np.subtract(mask, np.uint8(1), out=mask)  # 0 becomes 255
    if label.max(initial=0) > 18:
        values = sorted({(int(value) + 1) % 256 for value in np.unique(label[label > 18])})
        raise _damage(path, f"mask values {values} outside 1 to 19")
    # Against a single number NumPy compares byte by byte, which takes ten times as long.
    last = np.full(label.shape[-1], classes - 1, dtype=np.uint8)
    indices: Image = np.minimum(label, last, out=label)
    return indices


def open_series(path: Path, channels: int, kinds: tuple[str, ...]) -> NDArray[Any]:
    """Map one of an area's arrays, of one of some types, into memory, read-only.

    Returns:
        (T, channels, H, W), T ≥ 1.

    Raises:
        DamagedPatchError: Not such an array, truncated, or of pickled objects (never loaded).
    """
    try:
        array = open_array(path)
    except (OSError, ValueError, EOFError) as error:
        raise _damage(path, error) from None
    if array.ndim != 4 or array.shape[1] != channels or not len(array):
        raise _damage(path, f"shape {array.shape} is not (T, {channels}, H, W)")
    if array.dtype.str not in kinds:
        raise _damage(path, f"values are {array.dtype}, not unsigned integers")
    return array


def read_dates(path: Path) -> Dates:
    """Read an area's acquisition dates from its list of products, anew only after a change.

    Raises:
        DamagedPatchError: The file is unreadable or a line has no date.
    """
    try:
        return _kept_dates(path, state_of(path))
    except (OSError, ValueError) as error:
        raise _damage(path, error) from None


@functools.lru_cache(maxsize=1024)
def _kept_dates(path: Path, state: State) -> Dates:
    """Return the dates of a list in this state; FLAIR #2's 916 areas fit."""
    del state
    lines = path.read_text(encoding="utf-8").splitlines()
    return sentinel2.acquisition_dates([line.strip() for line in lines if line.strip()])


def read_series(
    files: SeriesFiles, centroid: NDArray[np.int32], options: S2PreprocConfig
) -> Series:
    """Read and preprocess a patch's satellite series.

    Args:
        files: The area's.
        centroid: (2,) row and column of the patch's centre.
        options: Size, filter, monthly means.

    Raises:
        DamagedPatchError: A file is damaged, the files disagree, the crop leaves the area, or
            nothing is clear enough and the options refuse that.
    """
    data = open_series(files.data, BANDS, DATA_TYPES)
    dates = read_dates(files.products)
    if len(dates) != len(data):
        reason = f"{len(dates)} products for {len(data)} acquisitions"
        raise _damage(files.products, reason)
    masks = None
    if options.cloud_filter:
        masks = open_series(files.masks, 2, MASK_TYPES)
        if (len(masks), *masks.shape[2:]) != (len(data), *data.shape[2:]):
            reason = f"shape {masks.shape} does not go with data of shape {data.shape}"
            raise _damage(files.masks, reason)
    try:
        window = sentinel2.crop_window(centroid.tolist(), options.size, data.shape[2:])
        return sentinel2.preprocess(data, masks, dates, window, options)
    except ValueError as error:
        raise _damage(files.data, error) from None


def _damage(path: Path | str, reason: object) -> DamagedPatchError:
    """Return the error of a damaged file, in one line."""
    return DamagedPatchError(f"{path}: {' '.join(str(reason).split())}.")


class TreeReader:
    """Reads samples from the files of a FLAIR #2 tree.

    Args:
        index: The data set.
        groups: Which bands, which nomenclature, how the series are preprocessed.
        reads: Of `aerial` and `satellite`; the mask is always read.
        patch_size: Pixels on a side that every patch must have.
    """

    def __init__(
        self, index: Index, groups: DataGroups, reads: frozenset[str], patch_size: int
    ) -> None:
        self.index = index
        self.patch_size = patch_size
        self._classes = groups.data.classes
        self._bands: list[int] | None = None  # their positions in a file, in the wanted order
        if "aerial" in reads:
            self._bands = [AERIAL_BANDS.index(band) for band in groups.data.bands or AERIAL_BANDS]
        self._series = groups.s2_preproc if "satellite" in reads else None

    def read(self, patch: int) -> Sample:
        """Read the sample of a patch, as `Reader.read` says."""
        with reading():
            path = self.index.mask_path(patch)
            mask = self._checked(read_mask(path), path)
            sample = Sample(label=to_classes(mask, self._classes, path))
            if self._bands is not None:
                path = self.index.image_path(patch)
                bands = [number + 1 for number in self._bands]
                sample.image = self._checked(read_raster(path, bands), path)
        if self._series is not None:
            files = self.index.series_files(int(self.index.area[patch]))
            series = read_series(files, self.index.centroids[patch], self._series)
            sample.frames, sample.days, sample.covered = series
        return sample

    def _checked(self, image: Image, path: Path) -> Image:
        height, width = image.shape[-2:]
        if (height, width) != (self.patch_size, self.patch_size):
            reason = f"{height} x {width} pixels instead of {self.patch_size} x {self.patch_size}"
            raise _damage(path, reason)
        return image


class StoreReader:
    """Reads samples from a prepared store; equal bit by bit to those of the source's own reader.

    Args:
        source: The data, their patches' size known.
        groups: Which bands, how the series are preprocessed, where the store is.
        reads: Of `aerial` and `satellite`; the mask is always read.

    Raises:
        DataError: `dataset.store` is not a store, an unfinished one, one of other settings, or one
            whose sources have changed; the message names the difference.
    """

    def __init__(self, source: DataSource, groups: DataGroups, reads: frozenset[str]) -> None:
        assert groups.dataset.store is not None, "dataset.store names the store"
        self.index = source.index
        self.patch_size = source.patch_size
        self._source = source
        self._stored = len(source.bands)
        self._bands = source.wanted(groups) if "aerial" in reads else None
        self._series = groups.s2_preproc if "satellite" in reads else None
        self.path = Path(groups.dataset.store).expanduser()
        description = store.describe(self.path)
        self._shard = int(description["shard"])
        self._require_settings(description["settings"])
        self._table = store.read_table(self.path, self.index)
        self._require_fresh(satellite=description["settings"]["satellite"])
        self._require_whole()
        self._ends = np.cumsum(self._table["counts"])

    def _require_settings(self, stored: dict[str, Any]) -> None:
        if self._series is None:  # series that are not read do not matter
            stored = {n: each for n, each in stored.items() if not n.startswith("s2_preproc.")}
            stored.pop("satellite", None)
        difference = store.differences(stored, store.settings_of(self._source, self._series))
        if difference:
            fix = "Prepare another with `flair2-exp prepare`, take its settings"
            store.refuse(self.path, f"is of other settings: {difference}", fix)

    def _require_fresh(self, *, satellite: bool) -> None:
        """Refuse a store of files that have changed since."""
        patches = np.arange(len(self.index))
        reads = frozenset({"aerial", "satellite"} if satellite else {"aerial"})
        states = self._source.states(patches, reads)
        difference = store.stale(self._table, self._source, states, range(len(patches)))
        if difference:
            store.refuse(self.path, f"is not of these files: {difference}")
        for name in ("sources", "digests"):  # not needed to read
            del self._table[name]

    def _require_whole(self) -> None:
        """Refuse a store with a file that is missing or cut off."""
        counts = self._table["counts"]
        for shard, start in enumerate(range(0, len(counts), self._shard)):
            frames = counts[start : start + self._shard]
            folder = store.shard_folder(self.path, shard)
            lost = store.lost_file(folder, frames, self._source, self._series)
            if lost:
                store.refuse(self.path, f"is incomplete: {lost} is missing or damaged")

    def _file(self, shard: int, name: str) -> str:
        return f"{store.shard_folder(self.path, shard)}/{name}.npy"

    def read(self, patch: int) -> Sample:
        """Read the sample of a patch, as `Reader.read` says."""
        shard, row = divmod(patch, self._shard)
        if self._table["damaged"][patch]:
            raise _damage(self.path, "the patch was damaged or lacked a file when it was prepared")
        masks = self._file(shard, "masks")
        mask = np.empty((self.patch_size, self.patch_size), dtype=np.uint8)
        _read_at(masks, row * mask.size, mask)
        sample = Sample(label=self._source.of_store(mask, masks))
        if self._bands is not None:
            sample.image = self._image(self._file(shard, "images"), row, self._bands)
        if self._series is not None:
            sample.frames, sample.days = self._frames(shard, patch, self._series)
            sample.covered = bool(self._table["covered"][patch])
        return sample

    def _image(self, file: str, row: int, bands: list[int]) -> NDArray[Any]:
        """Read the wanted bands, all in one go where they are the file's."""
        size = self.patch_size
        image = np.empty((len(bands), size, size), dtype=self._source.image_type)
        first = row * self._stored
        if bands == list(range(self._stored)):
            _read_at(file, first * image[0].nbytes, image)
        else:
            for band, out in zip(bands, image, strict=True):
                _read_at(file, (first + band) * out.nbytes, out)
        return image

    def _frames(
        self, shard: int, patch: int, series: S2PreprocConfig
    ) -> tuple[Frames, NDArray[np.int64]]:
        end = int(self._ends[patch])
        start = end - int(self._table["counts"][patch])
        before = int(self._ends[shard * self._shard - 1]) if shard else 0
        kind = np.float32 if series.monthly else np.uint16
        frames = np.empty((end - start, BANDS, series.size, series.size), dtype=kind)
        offset = (start - before) * store.frame_bytes(series)
        _read_at(self._file(shard, "series"), offset, frames)
        return frames, self._table["days"][start:end]


def _read_at(file: str, offset: int, out: NDArray[Any]) -> None:
    """Fill `out` from behind the header; a map would crash the process where a file shrinks."""
    try:
        handle = os.open(file, os.O_RDONLY)
        try:
            read = os.preadv(handle, [out.data.cast("B")], store.HEADER + offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise _damage(file, error.strerror) from None
    if read != out.nbytes:
        raise _damage(file, "cut off")
