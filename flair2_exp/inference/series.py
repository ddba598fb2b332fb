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

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from flair2_exp.data.grids import Bounds, Grid
from flair2_exp.errors import DataError
from flair2_exp.inference.acquisitions import (
    Part,
    Source,
    crs_name,
    require_projected,
    sources_of,
)
from flair2_exp.inference.patches import Acquisitions

Floats = NDArray[np.float64]
_Places = NDArray[np.intp]

PIXEL: Final = 10.0
"""Metres on a side of what is cut."""
_LONGEST: Final = 366
"""Days from the first to the last acquisition. FLAIR #2's series are of one year; the networks see
the day of the year alone, so a second year would pass for the same season."""
_FEW: Final = 32
"""Places along a side of a map at which a series is checked before it is read."""


def _joined(parts: Sequence[Part]) -> Part:
    """Return several parts of one window as one."""
    masks = [part.probabilities for part in parts if part.probabilities is not None]
    return Part(
        np.concatenate([part.frames for part in parts]),
        np.concatenate(masks) if masks else None,
        np.concatenate([part.valid for part in parts]),
    )


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
    sources: tuple[Source, ...]
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
                f"y = {y:.0f} ({crs_name(self.crs)}) whole.\nThe series is of another place, too "
                "small, or has no data there: give one that covers the map and its surroundings."
            )
        cut = _joined(parts)
        return Acquisitions(cut.frames, np.concatenate(dates), cut.probabilities)

    def state(self) -> list[str]:
        """Return what tells whether the files are the same: path, bytes, time of change."""
        files = [each for each in sorted(self.path.rglob("*")) if each.is_file()]
        states = [(each, each.stat()) for each in files]
        return [f"{each.absolute()} {s.st_size} {s.st_mtime_ns}" for each, s in states]

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
                f"north; {crs_name(self.crs)}).\nGive a series of this place that reaches "
                f"{self._metres / 2:.0f} m beyond the middle of every tile."
            )

    @property
    def extent(self) -> Bounds:
        """Within what bounds its acquisitions lie, in the map's CRS."""
        each = []
        for grid in self._by_grid:
            each.append(transform_bounds(grid.crs, self.crs, *grid.bounds))
        low, high = np.min(each, axis=0), np.max(each, axis=0)
        return float(low[0]), float(low[1]), float(high[2]), float(high[3])

    @functools.cached_property
    def _by_grid(self) -> dict[Grid, list[Source]]:
        groups: dict[Grid, list[Source]] = {}
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

    def sampled(self, part: Part, chosen: NDArray[np.bool_]) -> Part:
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
        return Part(np.rint(total).astype(np.uint16), masks, everywhere)

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
    require_projected(crs, "the map")
    sources = sources_of(path)
    lacking = next((source.unmasked for source in sources if source.unmasked), None)
    if masks and lacking is not None:
        raise DataError(
            f"{lacking}: no snow and cloud probabilities, and the run leaves out covered "
            "acquisitions by them (s2_preproc.cloud_filter).\nAdd them, per cent, as bands "
            "described snow and cloud, or as a second file NAME_masks.tif (NAME_masks.npy)."
        )
    folder = SeriesFolder(path, crs, max(sizes), masks, sources)
    first, last = folder.dates.min(), folder.dates.max()
    if (last - first).astype(int) > _LONGEST:
        raise DataError(
            f"{path}: acquisitions from {first} to {last}; expected those of one year, since the "
            "networks see the day of the year alone.\nKeep the year of the image in the folder."
        )
    folder.require_covers(bounds)
    return folder


def _listed(bounds: Bounds) -> str:
    return " ".join(f"{each:.0f}" for each in bounds)
