"""A folder of Sentinel-2 acquisitions, cut about any place of a map.

    series = open_series(Path("sentinel2"), crs, sizes=predictor.series_sizes, bounds=bounds)
    series.at(700_000.0, 6_600_000.0)            # Acquisitions of S x S pixels of 10 m about it

The folder holds one GeoTIFF per date, or FLAIR's three files of one area:

    20210709.tif      ten bands B2 B3 B4 B5 B6 B7 B8 B8A B11 B12, by their descriptions or in this
                      order; uint16 reflectance × 10,000; the date is in the name, as 20210709,
                      2021-07-09 or within that of a product, else in the tag TIFFTAG_DATETIME.
                      Snow and cloud probabilities, per cent, are two more bands, described so,
    20210709_masks.tif    or the two bands of a second file.

    NAME_data.npy NAME_masks.npy NAME_products.txt and grid.json
                      {"crs": "EPSG:2154", "transform": [10, 0, WEST, 0, -10, NORTH]}

Each file has any projected CRS and pixels of 5 to 20 m. What is cut lies on a grid of 10 m along
the map's axes, its middle corner at the place: where the file's own grid is that one, its very
values; elsewhere reflectances are bilinear and probabilities those of the nearest pixel, since the
filter counts pixels from a threshold on, and a mean of neighbours would move their share.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from flair2_exp.data import readers
from flair2_exp.data.arrays import DATA_TYPES, MASK_TYPES
from flair2_exp.data.cache import State, state_of
from flair2_exp.data.grids import Grid
from flair2_exp.data.layout import SeriesFiles
from flair2_exp.errors import DamagedPatchError, DataError
from flair2_exp.nomenclature import SATELLITE_BANDS

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Acquisitions

log = logging.getLogger(__name__)

Bounds = tuple[float, float, float, float]
"""West, south, east, north."""
Floats = NDArray[np.float64]
_Places = NDArray[np.intp]

PIXEL: Final = 10.0
"""Metres on a side of what is cut."""
GRID: Final = "grid.json"
"""Says where the arrays of a FLAIR area lie."""

_PIXELS: Final = (5.0, 20.0)
"""Metres on a side that files may have: bilinear sampling skips pixels of finer ones, and shows
coarser ones as what the networks have never seen."""
_LONGEST: Final = 366
"""Days from the first to the last acquisition. FLAIR #2's series are of one year; the networks see
the day of the year alone, so a second year would pass for the same season."""
_DATE: Final = re.compile(r"(?<!\d)((?:19|20)\d\d)(-?)(\d\d)\2(\d\d)(?!\d)")
_BASELINE: Final = re.compile(r"_N(\d{4})_")
_OFFSET_BASELINE: Final = 400
"""From processing baseline 04.00 (January 2022) products are reflectance × 10,000 + 1,000."""
_WORDS: Final = {"snow": "snow|snw", "cloud": "cloud|cld"}
"""How bands of probabilities are described; Copernicus has MSK_SNWPRB and MSK_CLDPRB."""
_FEW: Final = 32
"""Places along a side of a map at which a series is checked before it is read."""


class _Part(NamedTuple):
    """What a source holds in a window."""

    frames: NDArray[np.uint16]
    """(T, 10, h, w)."""
    probabilities: NDArray[np.uint8] | None
    """(T, 2, h, w); None where they were not wanted."""
    valid: NDArray[np.bool_]
    """(T, h, w): whether a pixel has data."""


def _joined(parts: Sequence[_Part]) -> _Part:
    """Return several parts of one window as one."""
    masks = [part.probabilities for part in parts if part.probabilities is not None]
    return _Part(
        np.concatenate([part.frames for part in parts]),
        np.concatenate(masks) if masks else None,
        np.concatenate([part.valid for part in parts]),
    )


class _Source(Protocol):
    """One acquisition, or several on one grid."""

    @property
    def grid(self) -> Grid: ...

    @property
    def dates(self) -> NDArray[np.datetime64]: ...

    @property
    def unmasked(self) -> Path | None:
        """The file that lacks snow and cloud probabilities; None where they are there."""

    def read(self, window: Window, masks: bool) -> _Part: ...


@dataclass(frozen=True)
class SeriesFolder:
    """The acquisitions of a folder; what is cut depends on the place alone.

    Threads and processes may share it: each opens its own files.
    """

    path: Path
    crs: CRS
    """Of the places; what is cut lies along its axes."""
    size: int
    """Pixels of 10 m on a side of what is cut."""
    masks: bool
    """Whether snow and cloud probabilities are read."""
    sources: tuple[_Source, ...]
    """By date, then by name."""

    @property
    def dates(self) -> NDArray[np.datetime64]:
        """(T,) dates of all acquisitions."""
        return np.concatenate([source.dates for source in self.sources])

    def at(self, x: float, y: float) -> Acquisitions:
        """Return the acquisitions that cover a place whole, in an order that is always the same.

        Args:
            x: Of the place, in the map's CRS.
            y: Likewise.

        Raises:
            DataError: None covers it, or a file is damaged.
        """
        from flair2_exp.inference.predictor import Acquisitions

        steps = (np.arange(self.size) - (self.size - 1) / 2) * self._step
        ys, xs = np.meshgrid(y - steps, x + steps, indexing="ij")
        parts, dates = [], []
        for grid, sources in self._by_grid.items():
            taps = _Taps.of(grid, *_moved(self.crs, grid.crs, xs, ys))
            if taps is not None:
                part = _joined([source.read(taps.window, self.masks) for source in sources])
                whole = taps.all(part.valid)
                parts.append(taps.sampled(part, whole))
                dates.append(np.concatenate([source.dates for source in sources])[whole])
        if not any(map(len, dates)):
            raise DataError(
                f"no acquisition of {self.path} covers the {self._metres:.0f} m about x = {x:.0f}, "
                f"y = {y:.0f} ({_crs_name(self.crs)}) whole.\nThe series is of another place, too "
                "small, or has no data there: give one that covers the map and its surroundings."
            )
        cut = _joined(parts)
        return Acquisitions(cut.frames, np.concatenate(dates), cut.probabilities)

    def require_covers(self, bounds: Bounds) -> None:
        """Refuse a series that does not reach around every place of a map; pixels stay unread.

        Args:
            bounds: Of the places, in the map's CRS.

        Raises:
            DataError: The message says what the series covers and what it must.
        """
        west, south, east, north = bounds
        reach = self.size * self._step / 2
        counts = [1 + min(_FEW, int(side // reach) + 1) for side in (east - west, north - south)]
        xs, ys = np.meshgrid(np.linspace(west, east, counts[0]),
                             np.linspace(north, south, counts[1]))  # fmt: skip
        corners = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * (reach - self._step / 2)
        around = xs.ravel()[:, None] + corners[:, 0], ys.ravel()[:, None] + corners[:, 1]
        covered = np.zeros(xs.size, dtype=bool)
        for grid in self._by_grid:
            rows, columns = _positions(grid, *_moved(self.crs, grid.crs, *around))
            covered |= (_within(rows, grid.height) & _within(columns, grid.width)).all(axis=1)
        if not covered.all():
            needed = (west - reach, south - reach, east + reach, north + reach)
            raise DataError(
                f"{self.path} does not cover the map: its acquisitions lie within "
                f"{_listed(self.extent)}, and the run reads {_listed(needed)} (west, south, east, "
                f"north; {_crs_name(self.crs)}).\nGive a series of this place that reaches "
                f"{self._metres / 2:.0f} m beyond the middle of every tile."
            )

    @property
    def extent(self) -> Bounds:
        """Within what bounds its acquisitions lie, in the map's CRS."""
        each = []
        for grid in self._by_grid:
            edges = rasterio.transform.array_bounds(grid.height, grid.width, grid.transform)
            each.append(transform_bounds(grid.crs, self.crs, *edges))
        low, high = np.min(each, axis=0), np.max(each, axis=0)
        return float(low[0]), float(low[1]), float(high[2]), float(high[3])

    @functools.cached_property
    def _by_grid(self) -> dict[Grid, list[_Source]]:
        groups: dict[Grid, list[_Source]] = {}
        for source in self.sources:
            groups.setdefault(source.grid, []).append(source)
        return groups

    @property
    def _step(self) -> float:
        """Of a pixel, in units of the CRS."""
        return PIXEL / float(self.crs.linear_units_factor[1])

    @property
    def _metres(self) -> float:
        return self.size * PIXEL


@dataclass(frozen=True)
class _Taps:
    """Where the pixels of a cut lie in a source."""

    window: Window
    """Of the source: all pixels that count."""
    rows: Floats
    """(S, S) between the centres of the window's pixels, from 0 on."""
    columns: Floats

    @classmethod
    def of(cls, grid: Grid, xs: Floats, ys: Floats) -> _Taps | None:
        """Return the taps of points, (S, S), in the grid's CRS; None where one lies outside."""
        rows, columns = _positions(grid, xs, ys)
        if not (_within(rows, grid.height) & _within(columns, grid.width)).all():
            return None
        rows, columns = rows.clip(0, grid.height - 1), columns.clip(0, grid.width - 1)
        top, left = int(rows.min()), int(columns.min())
        bottom, right = int(np.ceil(rows.max())), int(np.ceil(columns.max()))
        window = Window(left, top, right - left + 1, bottom - top + 1)
        return cls(window, rows - top, columns - left)

    def all(self, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return, (T,), whether every pixel that counts is valid, of (T, h, w)."""
        whole = np.ones(len(valid), dtype=bool)
        if not valid.all():
            for row, column, _ in self._corners:
                whole &= valid[:, row, column].all(axis=(1, 2))
        return whole

    def sampled(self, part: _Part, chosen: NDArray[np.bool_]) -> _Part:
        """Return what the chosen acquisitions of a source show at the points."""
        frames = part.frames if chosen.all() else part.frames[chosen]
        flat = frames.reshape(*frames.shape[:2], -1)  # taken from several times as fast
        total = np.zeros((*frames.shape[:2], *self.rows.shape), dtype=np.float32)
        for row, column, weight in self._corners:
            total += flat.take(row * frames.shape[3] + column, axis=2) * weight
        masks = None
        if part.probabilities is not None:
            row, column = (np.floor(at + 0.5).astype(np.intp) for at in (self.rows, self.columns))
            masks = part.probabilities[chosen][..., row, column]
        everywhere = np.ones((len(frames), *self.rows.shape), dtype=bool)
        return _Part(np.rint(total).astype(np.uint16), masks, everywhere)

    @functools.cached_property
    def _corners(self) -> list[tuple[_Places, _Places, NDArray[np.float32]]]:
        """Rows, columns and weights of the pixels around each point; without those of weight 0."""
        ends = []
        for places in (self.rows, self.columns):
            low = np.floor(places)
            ends.append(((low, 1 - (places - low)), (np.ceil(places), places - low)))
        return [
            (row.astype(np.intp), column.astype(np.intp), (down * right).astype(np.float32))
            for row, down in ends[0]
            for column, right in ends[1]
            if (down * right).any()
        ]


def _moved(source: CRS, target: CRS | None, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """Return points in another CRS."""
    if target == source:
        return xs, ys
    east, north = transform(source, target, xs.ravel(), ys.ravel())
    return np.array(east).reshape(xs.shape), np.array(north).reshape(xs.shape)


def _positions(grid: Grid, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """Return rows and columns of points, 0 at the centre of the first pixel.

    Rounded to a millionth of a pixel, which is what coordinates of millions of metres are good for:
    so a grid that coincides with the cut gives whole numbers.
    """
    a, b, left, d, e, top = (~grid.transform)[:6]
    columns, rows = a * xs + b * ys + left, d * xs + e * ys + top
    return np.round(rows - 0.5, 6), np.round(columns - 0.5, 6)


def _within(places: Floats, count: int) -> NDArray[np.bool_]:
    """Return which places lie on `count` pixels."""
    return np.asarray((places >= -0.5) & (places <= count - 0.5))


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
        return np.array([self.date])

    @property
    def unmasked(self) -> Path | None:
        return self.path if self.clouds is None else None

    def read(self, window: Window, masks: bool) -> _Part:
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
        return _Part(frames[None], probabilities, valid[None])


@dataclass(frozen=True)
class _Stack:
    """FLAIR's arrays of one area; every pixel counts, as in training."""

    files: SeriesFiles
    grid: Grid
    dates: NDArray[np.datetime64]

    @property
    def unmasked(self) -> Path | None:
        return None if self.files.masks.is_file() else self.files.masks

    def read(self, window: Window, masks: bool) -> _Part:
        rows, columns = window.toslices()
        data = readers.open_series(self.files.data, len(SATELLITE_BANDS), DATA_TYPES)
        frames = data[:, :, rows, columns]
        probabilities = None
        if masks:
            shares = readers.open_series(self.files.masks, 2, MASK_TYPES)[:, :, rows, columns]
            probabilities = _per_cent(shares, self.files.masks)
        return _Part(frames, probabilities, np.ones((len(frames), *frames.shape[2:]), dtype=bool))


def open_series(
    path: Path, crs: CRS, *, sizes: frozenset[int], bounds: Bounds, masks: bool = False
) -> SeriesFolder:
    """Open a folder of acquisitions and check it against a map; pixels stay unread.

    Args:
        path: The folder.
        crs: Of the map, projected.
        sizes: Pixels (10 m) on a side that the networks read; the largest is cut.
        bounds: Of the places that `at` will be asked for.
        masks: Whether a network leaves acquisitions out by snow and cloud.

    Raises:
        DataError: It is not such a folder, a file is not what it should be, there are no snow and
            cloud probabilities and they are needed, the acquisitions are of more than a year, or
            they do not cover the map.
    """
    _require_projected(crs, "the map")
    if not path.is_dir():
        raise DataError(f"series {path} is not a folder.\nName the folder of its GeoTIFFs.")
    arrays = sorted(path.glob("*_data.npy"))
    sources = [_stack(path, arrays)] if arrays else _images(path)
    lacking = next((source.unmasked for source in sources if source.unmasked), None)
    if masks and lacking is not None:
        raise DataError(
            f"{lacking}: no snow and cloud probabilities, and the run leaves out covered "
            "acquisitions by them (s2_preproc.cloud_filter).\nAdd them, per cent, as bands "
            "described snow and cloud, or as a second file NAME_masks.tif (NAME_masks.npy)."
        )
    folder = SeriesFolder(path, crs, max(sizes), masks, tuple(sources))
    first, last = folder.dates.min(), folder.dates.max()
    if (last - first).astype(int) > _LONGEST:
        raise DataError(
            f"{path}: acquisitions from {first} to {last}; expected those of one year, since the "
            "networks see the day of the year alone.\nKeep the year of the image in the folder."
        )
    folder.require_covers(bounds)
    return folder


def _images(path: Path) -> list[_Source]:
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
    with _reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # refused in words of our own
        with rasterio.open(path, driver="GTiff") as file:
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
    _require_projected(crs, str(path))
    grid = Grid(width, height, place, crs)
    metres = [each * float(crs.linear_units_factor[1]) for each in grid.resolution]  # type: ignore[union-attr]
    low, high = _PIXELS
    if place == Affine.identity() or not all(low <= each <= high for each in metres):
        raise DataError(
            f"{path}: pixels of {metres[0]:g} x {metres[1]:g} m; expected about {PIXEL:g} m "
            f"({low:g} to {high:g}).\nResample it, as with gdalwarp -tr 10 10 -r bilinear."
        )
    return grid


def _require_projected(crs: CRS | None, what: str) -> None:
    """Refuse a CRS that is not one of metres on the ground.

    Raises:
        DataError: There is none, or it is geographic.
    """
    if crs and crs.is_projected:
        return
    reason = f"{_crs_name(crs)} is not a projected CRS" if crs else "no CRS"
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


def _crs_name(crs: CRS | None) -> str:
    code = crs.to_epsg() if crs else None
    return f"EPSG:{code}" if code else "the map's CRS"


def _listed(bounds: Bounds) -> str:
    return " ".join(f"{each:.0f}" for each in bounds)
