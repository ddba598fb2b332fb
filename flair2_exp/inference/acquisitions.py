"""The acquisitions of a folder: GeoTIFFs, or FLAIR's arrays of one area.

`series`, which cuts them, describes what the files may be.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from flair2_exp.data import readers
from flair2_exp.data.arrays import DATA_TYPES, MASK_TYPES
from flair2_exp.data.cache import State, state_of
from flair2_exp.data.grids import Grid, quiet
from flair2_exp.data.layout import SeriesFiles
from flair2_exp.errors import DamagedPatchError, DataError
from flair2_exp.nomenclature import SATELLITE_BANDS

log = logging.getLogger(__name__)

GRID: Final = "grid.json"
"""Says where the arrays of a FLAIR area lie."""

_PIXELS: Final = (5.0, 20.0)
"""Metres on a side that files may have: bilinear sampling skips pixels of finer ones, and shows
coarser ones as what the networks have never seen."""
_DATE: Final = re.compile(r"(?<!\d)((?:19|20)\d\d)(-?)(\d\d)\2(\d\d)(?!\d)")
_BASELINE: Final = re.compile(r"_N(\d{4})_")
_OFFSET_BASELINE: Final = 400
"""From processing baseline 04.00 (January 2022) products are reflectance × 10,000 + 1,000."""
_WORDS: Final = {"snow": "snow|snw", "cloud": "cloud|cld"}
"""How bands of probabilities are described; Copernicus has MSK_SNWPRB and MSK_CLDPRB."""


class Part(NamedTuple):
    """What a source holds in a window."""

    frames: NDArray[np.uint16]
    """(T, 10, h, w)."""
    probabilities: NDArray[np.uint8] | None
    """(T, 2, h, w); None where they were not wanted."""
    valid: NDArray[np.bool_]
    """(T, h, w): whether a pixel has data."""


@dataclass(frozen=True)
class _Image:
    """A GeoTIFF of one date."""

    path: Path
    grid: Grid
    date: np.datetime64
    bands: tuple[int, ...]
    """Of the ten, from 1."""
    clouds: tuple[Path, tuple[int, ...]] | None
    """Where snow and cloud are."""
    masked: bool
    """Whether it has a mask or an alpha band of what has data."""
    nodata: float
    """What stands in all ten bands where there is nothing, as 0 does; Sentinel-2's own is 0."""

    @property
    def dates(self) -> NDArray[np.datetime64]:
        """(1,) day."""
        return np.array([self.date])

    @property
    def unmasked(self) -> Path | None:
        """The file that lacks snow and cloud probabilities; None where they are there."""
        return self.path if self.clouds is None else None

    def read(self, window: Window, masks: bool) -> Part:
        """Return a window of whole pixels within the grid, with snow and cloud where wanted.

        Raises:
            DataError: A file is damaged, or a probability is more than 100.
        """
        path, numbers = self.clouds if masks and self.clouds else (self.path, ())
        together = path == self.path
        pixels = _pixels(self.path, (*self.bands, *numbers) if together else self.bands, window)
        frames, shares = pixels[: len(self.bands)], pixels[len(self.bands) :]
        if not together:
            shares = _pixels(path, numbers, window)
        probabilities = _per_cent(shares, path)[None] if numbers else None
        valid = np.ones(frames.shape[1:], dtype=bool)
        if self.masked:
            with _reading(self.path):
                valid = _opened(self.path).read_masks(1, window=window) > 0
        for nodata in {0, self.nodata}:
            valid &= (frames != nodata).any(axis=0)
        return Part(frames[None], probabilities, valid[None])


@dataclass(frozen=True)
class _Stack:
    """FLAIR's arrays of one area; every pixel counts, as in training."""

    files: SeriesFiles
    grid: Grid
    dates: NDArray[np.datetime64]
    """(T,) days."""

    @property
    def unmasked(self) -> Path | None:
        """As of an `_Image`."""
        return None if self.files.masks.is_file() else self.files.masks

    def read(self, window: Window, masks: bool) -> Part:
        """Return a window, as of an `_Image`."""
        rows, columns = window.toslices()
        data = readers.open_series(self.files.data, len(SATELLITE_BANDS), DATA_TYPES)
        frames = data[:, :, rows, columns]
        probabilities = None
        if masks:
            shares = readers.open_series(self.files.masks, 2, MASK_TYPES)[:, :, rows, columns]
            probabilities = _per_cent(shares, self.files.masks)
        return Part(frames, probabilities, np.ones((len(frames), *frames.shape[2:]), dtype=bool))


Source = _Image | _Stack
"""One acquisition, or several on one grid, whose CRS is projected."""


def sources_of(path: Path) -> tuple[Source, ...]:
    """Return the acquisitions of a folder, by date and name; their pixels stay unread.

    Raises:
        DataError: There are none, or a file is not what it should be.
    """
    if not path.is_dir():
        raise DataError(f"series {path} is not a folder.\nName the folder of its GeoTIFFs.")
    arrays = sorted(path.glob("*_data.npy"))
    return (_stack(path, arrays),) if arrays else tuple(_images(path))


def _images(path: Path) -> list[Source]:
    """Return the GeoTIFFs of a folder, by date and name.

    Raises:
        DataError: There are none, or one is not what it should be.
    """
    files = sorted(each for each in path.iterdir()
                   if each.suffix.lower() in (".tif", ".tiff") and each.name[0] != ".")  # fmt: skip
    frames = [each for each in files if not each.stem.endswith("_masks")]
    if not frames:
        raise DataError(
            f"{path} holds no acquisitions.\nExpected a GeoTIFF for each date, as 20210709.tif, or "
            f"FLAIR's NAME_data.npy, NAME_masks.npy and NAME_products.txt with {GRID}."
        )
    _warn_of_offsets(frames)
    images = [_image(each) for each in frames]
    return [*sorted(images, key=lambda image: (image.date, image.path.name))]


def _warn_of_offsets(files: Sequence[Path]) -> None:
    baselines = [_BASELINE.search(each.name) for each in files]
    moved = [each for each in baselines if each and int(each[1]) >= _OFFSET_BASELINE]
    if moved:
        log.warning(
            "%d acquisitions are of processing baseline 04.00 or later, whose values are "
            "reflectance × 10,000 + 1,000: subtract 1,000 unless that was done",
            len(moved),
        )


@contextlib.contextmanager
def _header(path: Path) -> Iterator[DatasetReader]:
    """Open a GeoTIFF whose last pixel can be read, so that it ends where it should."""
    with _reading(path), quiet(), rasterio.open(path, driver="GTiff") as file:
        file.read(file.count, window=Window(file.width - 1, file.height - 1, 1, 1))
        yield file


def _image(path: Path) -> _Image:
    """Describe a GeoTIFF by its header.

    Raises:
        DataError: It is not what it should be.
    """
    masks = path.with_name(f"{path.stem}_masks{path.suffix}")
    with _header(path) as file:
        grid = _grid(path, file.width, file.height, file.transform, file.crs)
        bands, clouds = _bands(file)
        kinds = {file.dtypes[band - 1] for band in bands}
        if kinds != {"uint16"}:
            raise DataError(
                f"{path}: bands of {', '.join(sorted(kinds))}; expected uint16, reflectance × "
                "10,000.\nConvert it, as with gdal_translate -ot UInt16 -scale 0 1 0 10000."
            )
        date = _date(path, file.tags().get("TIFFTAG_DATETIME", ""))
        masked, nodata = MaskFlags.per_dataset in file.mask_flag_enums[0], file.nodata or 0.0
    place = None if clouds is None else (path, clouds)
    if place is None and masks.is_file():
        place = masks, _mask_bands(masks, grid)
    return _Image(path, grid, date, bands, place, masked, nodata)


def _mask_bands(path: Path, grid: Grid) -> tuple[int, ...]:
    """Return which bands of a second file are snow and cloud: as described, else in this order.

    Raises:
        DataError: It has others, or is not on its acquisition's grid.
    """
    with _header(path) as file:
        clouds = _clouds([_band_name(each) for each in file.descriptions])
        if clouds is None and file.count != 2:
            raise DataError(f"{path} has {file.count} bands; expected two, snow and cloud.")
        if Grid(file.width, file.height, file.transform, file.crs) != grid:
            raise DataError(
                f"{path} is not on the grid of its acquisition: expected {grid.width} x "
                f"{grid.height} pixels at the same place."
            )
    return clouds or (1, 2)


def _bands(file: DatasetReader) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the numbers of the ten bands, and of snow and cloud where they are described.

    Raises:
        DataError: They cannot be told from the rest.
    """
    names = [_band_name(each) for each in file.descriptions]
    clouds = _clouds(names)
    lacking = [band for band in SATELLITE_BANDS if band not in names]
    if not lacking:
        return tuple(names.index(band) + 1 for band in SATELLITE_BANDS), clouds
    rest = tuple(number for number, name in enumerate(names, 1) if name not in _WORDS)
    if len(rest) == len(lacking) == len(SATELLITE_BANDS):
        return rest, clouds
    reason = (
        f"{file.count} bands without descriptions"
        if len(lacking) == len(SATELLITE_BANDS)
        else f"no band described {', '.join(lacking)}"
    )
    raise DataError(
        f"{file.name}: {reason}; expected the ten bands {' '.join(SATELLITE_BANDS)}, in this order "
        "or described so.\nDescribe them (and snow and cloud), or leave out what is not among them."
    )


def _band_name(description: str | None) -> str:
    """Return `B2` of "B02, central wavelength 490 nm", `cloud` of "cloud probability"."""
    text = (description or "").strip().lower()
    band = re.match(r"b0?(\d{1,2}a?)\b", text)
    if band:
        return f"B{band[1].upper()}"
    return next((name for name, words in _WORDS.items() if re.search(words, text)), text)


def _clouds(names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the numbers of the bands of snow and cloud; None where they are not both there."""
    return tuple(names.index(word) + 1 for word in _WORDS) if {*_WORDS} <= {*names} else None


def _date(path: Path, tag: str) -> np.datetime64:
    """Return an acquisition's date: the first in its name (a product's second is its making's).

    Raises:
        DataError: There is none.
    """
    texts = ["-".join(each.group(1, 3, 4)) for each in _DATE.finditer(path.stem)]
    texts.append(tag[:10].replace(":", "-"))
    for text in filter(None, texts):
        try:
            return np.datetime64(text, "D")
        except ValueError:
            continue
    raise DataError(
        f"{path}: no date in its name, nor in its tag TIFFTAG_DATETIME.\nName it by its "
        "acquisition, as 20210709.tif, 2021-07-09.tif or S2A_MSIL2A_20210709T104021….tif."
    )


def _stack(path: Path, arrays: Sequence[Path]) -> _Stack:
    """Return FLAIR's arrays of one area, checked.

    Raises:
        DataError: There are several, or they do not go together.
    """
    if len(arrays) > 1:
        raise DataError(
            f"{path} holds {len(arrays)} series ({', '.join(each.name for each in arrays[:3])}).\n"
            "Give each a folder of its own."
        )
    stem = str(arrays[0]).removesuffix("data.npy")
    files = SeriesFiles(*(Path(stem + leaf) for leaf in ("data.npy", "masks.npy", "products.txt")))
    data = readers.open_series(files.data, len(SATELLITE_BANDS), DATA_TYPES)
    dates = readers.read_dates(files.products)
    if len(dates) != len(data):
        raise DataError(f"{files.products}: {len(dates)} products of {len(data)} acquisitions.")
    if files.masks.is_file():
        masks = readers.open_series(files.masks, 2, MASK_TYPES)
        if (len(masks), *masks.shape[2:]) != (len(data), *data.shape[2:]):
            raise DataError(f"{files.masks}: shape {masks.shape} of data of shape {data.shape}.")
    height, width = data.shape[2:]
    return _Stack(files, _placed(path / GRID, width, height), dates)


def _placed(path: Path, width: int, height: int) -> Grid:
    """Read where the pixels of arrays lie.

    Raises:
        DataError: The file is not there, or does not say it.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        place = Affine(*(float(each) for each in content["transform"]))
        crs = CRS.from_user_input(content["crs"])
    except (OSError, ValueError, KeyError, TypeError, CRSError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise DataError(
            f"{path}: {reason}.\nExpected where the arrays lie: "
            '{"crs": "EPSG:2154", "transform": [10, 0, WEST, 0, -10, NORTH]}, in metres.'
        ) from None
    return _grid(path, width, height, place, crs)


def _grid(path: Path, width: int, height: int, place: Affine, crs: CRS | None) -> Grid:
    """Return a grid of pixels of about 10 m.

    Raises:
        DataError: It is not on the ground, geographic, or of other pixels.
    """
    require_projected(crs, str(path))
    grid = Grid(width, height, place, crs)
    metres, (low, high) = grid.metres, _PIXELS
    if place == Affine.identity() or not all(low <= each <= high for each in metres):
        raise DataError(
            f"{path}: pixels of {metres[0]:g} x {metres[1]:g} m; expected about 10 m "
            f"({low:g} to {high:g}).\nResample it, as with gdalwarp -tr 10 10 -r bilinear."
        )
    return grid


def require_projected(crs: CRS | None, what: str) -> None:
    """Refuse a CRS that is not one of metres on the ground.

    Raises:
        DataError: There is none, or it is geographic.
    """
    if crs and crs.is_projected:
        return
    reason = f"{crs_name(crs)} is not a projected CRS" if crs else "no CRS"
    raise DataError(
        f"{what}: {reason}; expected one in metres, as EPSG:2154 or a UTM zone.\nReproject it, as "
        "with gdalwarp -t_srs EPSG:2154; where only the CRS is missing, gdal_edit.py -a_srs."
    )


# Pixels of GeoTIFFs.


@functools.lru_cache(maxsize=256)
def _kept(path: Path, state: State, process: int, thread: int) -> DatasetReader:
    """Return an open file: GDAL's are not to be shared by threads, nor with a forked process."""
    del state, process, thread
    return rasterio.open(path, driver="GTiff")


def _opened(path: Path) -> DatasetReader:
    return _kept(path, state_of(path), os.getpid(), threading.get_ident())


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in the errors of reading it."""
    try:
        yield
    except (RasterioError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DamagedPatchError(f"{path}: {reason}.") from None


def _pixels(path: Path, bands: Sequence[int], window: Window) -> NDArray[Any]:
    """Read bands of a window, (C, h, w)."""
    with _reading(path):
        pixels: NDArray[Any] = _opened(path).read(list(bands), window=window)
    return pixels


def _per_cent(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Return probabilities as 0..100.

    Raises:
        DataError: One is larger.
    """
    highest = int(values.max(initial=0))
    if highest > 100:
        raise DataError(
            f"{path}: a snow or cloud probability of {highest}; expected per cent, 0 to 100."
        )
    return values.astype(np.uint8)


def crs_name(crs: CRS | None) -> str:
    """Return a CRS by its code, for messages."""
    code = crs.to_epsg() if crs else None
    return f"EPSG:{code}" if code else "the map's CRS"
