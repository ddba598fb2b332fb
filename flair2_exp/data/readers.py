"""Reading a patch: from the released tree's files, or from a prepared store.

Both readers give the same samples, bit by bit. NumPy and rasterio; nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from flair2_exp.config.data import DataGroups, S2PreprocConfig
from flair2_exp.data import sentinel2, sources, store
from flair2_exp.data.arrays import DATA_TYPES, MASK_TYPES, open_array
from flair2_exp.data.layout import Index, SeriesFiles
from flair2_exp.data.sentinel2 import BANDS, Dates, Frames, Series
from flair2_exp.errors import DamagedPatchError
from flair2_exp.nomenclature import AERIAL_BANDS

Image = NDArray[np.uint8]
AnyArray = TypeVar("AnyArray", bound=NDArray[Any])

READING: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no search for side files among hundreds
    "GDAL_GEOREF_SOURCES": "NONE",  # the place is not needed; parsing it takes most of an opening
    "GDAL_NUM_THREADS": "1",  # a worker is one process of one thread
}
"""GDAL options for reading pixels and nothing else."""


@dataclass
class Sample:
    """What a network gets of one patch; a modality that is not read is None."""

    label: Image
    """(H, W) class indices."""
    image: Image | None = None
    """(C, H, W) aerial bands."""
    frames: Frames | None = None
    """(T, 10, S, S) satellite series, unscaled."""
    days: NDArray[np.int64] | None = None
    """(T,) day offsets."""
    satellite_label: Image | None = None
    """(H, W) target of the satellite head; None where it is `label`."""
    covered: bool = False
    """Whether nothing of the series was clear enough, so that the clearest stands in."""


class Reader(Protocol):
    """Something that reads the samples of an index: the tree, or a prepared store."""

    def read(self, patch: int) -> Sample:
        """Read the sample of a patch, not augmented.

        Raises:
            DamagedPatchError: A file of the patch cannot be read as what it should be.
        """
        ...


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Set GDAL up for `READING`; silence its warning about a place that nobody asked for."""
    with warnings.catch_warnings(), rasterio.Env(**READING):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
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
                raise DamagedPatchError(_damage(path, f"{file.count} bands instead of 5"))
            image = file.read(bands)
    except (RasterioError, OSError, ValueError) as error:
        raise DamagedPatchError(_damage(path, str(error))) from None
    if image.dtype != np.uint8:
        raise DamagedPatchError(_damage(path, f"pixels are {image.dtype}, not uint8"))
    pixels: Image = image
    return pixels


def read_mask(path: Path) -> Image:
    """Read a mask's values 1..19 as (H, W) uint8; raises like `read_raster`."""
    image = read_raster(path)
    if len(image) != 1:
        raise DamagedPatchError(_damage(path, f"{len(image)} bands instead of 1"))
    mask: Image = image[0]
    return mask


def to_classes(mask: Image, classes: int, path: Path | str) -> Image:
    """Turn a mask's values into classes: one less, and from the last class on the last class.

    The rule is computed, not looked up: a table of 256 costs a tenth of reading the mask.

    Args:
        mask: (H, W) values 1..19; the indices take their place.
        classes: 13 or 19.
        path: The mask's file, for the message.

    Raises:
        DamagedPatchError: A value is outside 1..19.
    """
    label = np.subtract(mask, np.uint8(1), out=mask)  # 0 becomes 255
    if label.max(initial=0) > 18:
        values = sorted({(int(value) + 1) % 256 for value in np.unique(label[label > 18])})
        raise DamagedPatchError(_damage(path, f"mask values {values} outside 1 to 19"))
    indices: Image = np.minimum(label, np.uint8(classes - 1), out=label)
    return indices


def open_series(path: Path, channels: int, kinds: tuple[str, ...]) -> NDArray[Any]:
    """Map one of an area's arrays into memory, read-only.

    Args:
        path: A `.npy` file.
        channels: Expected size of the second axis.
        kinds: Accepted types.

    Returns:
        (T, channels, H, W), T ≥ 1.

    Raises:
        DamagedPatchError: Not such an array, truncated, or of pickled objects (never loaded).
    """
    try:
        array = open_array(path)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedPatchError(_damage(path, str(error))) from None
    if array.ndim != 4 or array.shape[1] != channels or not len(array):
        raise DamagedPatchError(_damage(path, f"shape {array.shape} is not (T, {channels}, H, W)"))
    if array.dtype.str not in kinds:
        raise DamagedPatchError(_damage(path, f"values are {array.dtype}, not unsigned integers"))
    return array


def read_dates(path: Path) -> Dates:
    """Read an area's acquisition dates from its list of products, anew only after a change.

    Raises:
        DamagedPatchError: The file is unreadable or a line has no date.
    """
    try:
        state = os.stat(path)
        return _kept_dates(path, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError) as error:
        raise DamagedPatchError(_damage(path, str(error))) from None


@functools.lru_cache(maxsize=1024)
def _kept_dates(path: Path, changed: int, size: int) -> Dates:
    """Return the dates of a list in this state; FLAIR #2's 916 areas fit."""
    del changed, size
    lines = path.read_text(encoding="utf-8").splitlines()
    return sentinel2.acquisition_dates([line.strip() for line in lines if line.strip()])


def read_series(
    files: SeriesFiles, centroid: NDArray[np.int32], options: S2PreprocConfig
) -> Series:
    """Read and preprocess a patch's satellite series.

    Args:
        files: The area's files.
        centroid: (2,) row and column of the patch's centre.
        options: Size, filter, monthly means.

    Returns:
        The series, unscaled.

    Raises:
        DamagedPatchError: A file is damaged, the files disagree, the crop leaves the area, or
            nothing is clear enough and the options refuse that.
    """
    data = open_series(files.data, BANDS, DATA_TYPES)
    dates = read_dates(files.products)
    if len(dates) != len(data):
        reason = f"{len(dates)} products for {len(data)} acquisitions"
        raise DamagedPatchError(_damage(files.products, reason))
    masks = None
    if options.cloud_filter:
        masks = open_series(files.masks, 2, MASK_TYPES)
        if (len(masks), *masks.shape[2:]) != (len(data), *data.shape[2:]):
            reason = f"shape {masks.shape} does not go with data of shape {data.shape}"
            raise DamagedPatchError(_damage(files.masks, reason))
    try:
        window = sentinel2.crop_window(centroid.tolist(), options.size, data.shape[2:])
        return sentinel2.preprocess(data, masks, dates, window, options)
    except ValueError as error:
        raise DamagedPatchError(_damage(files.data, str(error))) from None


def _damage(path: Path | str, reason: str) -> str:
    """Return the first line about a damaged file."""
    return f"{path}: {' '.join(reason.split())}."


def series_read(groups: DataGroups, reads: frozenset[str]) -> S2PreprocConfig | None:
    """Return how the satellite series are preprocessed; None where they are not read."""
    return groups.s2_preproc if "satellite" in reads else None


class TreeReader:
    """Reads samples from the released tree's files.

    Attributes:
        patch_size: Pixels on a side that every patch must have.
    """

    def __init__(
        self, index: Index, groups: DataGroups, reads: frozenset[str], patch_size: int
    ) -> None:
        """Choose what to read.

        Args:
            index: The data set.
            groups: Bands, classes, preprocessing of the series.
            reads: What is read, of `aerial` and `satellite`; the mask always is.
            patch_size: Pixels on a side of every patch.
        """
        self.index = index
        self.patch_size = patch_size
        self._classes = groups.data.classes
        self._bands = _band_numbers(groups, reads)
        self._series = series_read(groups, reads)

    def read(self, patch: int) -> Sample:
        """Read the sample of a patch, as `Reader.read` says."""
        with reading():
            return self._read(patch)

    def _read(self, patch: int) -> Sample:
        mask_path = self.index.mask_path(patch)
        mask = self._checked(read_mask(mask_path), mask_path)
        sample = Sample(label=to_classes(mask, self._classes, mask_path))
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
        if image.shape[-2:] != (self.patch_size, self.patch_size):
            height, width = image.shape[-2:]
            reason = f"{height} x {width} pixels instead of {self.patch_size} x {self.patch_size}"
            raise DamagedPatchError(_damage(path, reason))
        return image


def _band_numbers(groups: DataGroups, reads: frozenset[str]) -> list[int] | None:
    """Return the positions of the wanted bands in a file, in their order; None if unread."""
    if "aerial" not in reads:
        return None
    return [AERIAL_BANDS.index(band) for band in groups.data.bands]


class StoreReader:
    """Reads samples from a prepared store; equal bit by bit to those of `TreeReader`."""

    def __init__(
        self, index: Index, groups: DataGroups, reads: frozenset[str], patch_size: int
    ) -> None:
        """Open the store `dataset.store` and compare it with the files and the settings.

        Args:
            index: The data set it was prepared from.
            groups: Bands, classes, and how the series must have been preprocessed.
            reads: What is read, of `aerial` and `satellite`; the mask always is.
            patch_size: Pixels on a side of every patch.

        Raises:
            DataError: No store, an unfinished one, one of other settings, or one whose sources
                have changed; the message names the difference.
        """
        assert groups.dataset.store is not None, "dataset.store names the store"
        self.path = Path(groups.dataset.store).expanduser()
        self._size = patch_size
        self._classes = groups.data.classes
        self._bands = _band_numbers(groups, reads)
        self._series = series_read(groups, reads)
        description = store.describe(self.path)
        settings = description["settings"]
        self._require_settings(settings)
        self._shard = int(description["shard"])
        self._table = store.read_table(self.path, index)
        self._require_fresh(
            index, frozenset({"aerial", "satellite"} if settings["satellite"] else {"aerial"})
        )
        self._ends = np.cumsum(self._table["counts"])
        self._require_whole()

    def _require_settings(self, stored: dict[str, Any]) -> None:
        if self._series is None:  # series that are not read do not matter
            stored = {"patch_size": stored.get("patch_size")}
        difference = store.differences(stored, store.settings_of(self._size, self._series))
        if difference:
            fix = "Prepare another with scripts/prepare.py, take its settings"
            store.refuse(self.path, f"is of other settings: {difference}", fix)

    def _require_fresh(self, index: Index, reads: frozenset[str]) -> None:
        """Refuse a store of files that have changed since."""
        states = sources.states(index, np.arange(len(index)), reads)
        difference = store.stale(self._table, index, states, range(len(index)))
        if difference:
            store.refuse(self.path, f"is not of these files: {difference}")
        for name in ("sources", "digests"):  # not needed to read
            del self._table[name]

    def _require_whole(self) -> None:
        """Refuse a store with a file that is missing or cut off."""
        counts = self._table["counts"]
        for shard, start in enumerate(range(0, len(counts), self._shard)):
            lost = store.lost_file(
                self._folder(shard),
                counts[start : start + self._shard],
                patch_size=self._size,
                series=self._series,
            )
            if lost:
                store.refuse(self.path, f"is incomplete: {lost} is missing or damaged")

    def _folder(self, shard: int) -> str:
        return f"{self.path}/shards/{shard:05d}"

    def _file(self, shard: int, name: str) -> str:
        return f"{self._folder(shard)}/{name}.npy"

    def read(self, patch: int) -> Sample:
        """Read the sample of a patch, as `Reader.read` says."""
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
        """Read the wanted bands, all in one go where they are the file's."""
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
        offset = (start - before) * store.frame_bytes(self._series)
        _read_at(self._file(shard, "series"), offset, frames)
        return frames, self._table["days"][start:end]


def _read_at(file: str, offset: int, out: AnyArray) -> AnyArray:
    """Fill `out` from behind the header; a map would crash the process where a file shrinks."""
    try:
        handle = os.open(file, os.O_RDONLY)
        try:
            read = os.preadv(handle, [out.data.cast("B")], store.HEADER + offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise DamagedPatchError(f"{file}: {error.strerror}.") from None
    if read != out.nbytes:
        raise DamagedPatchError(f"{file}: cut off.")
    return out
