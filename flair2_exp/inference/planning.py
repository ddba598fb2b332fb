"""What is predicted of a large raster: its tiles, in units, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from flair2_exp.inference.area import Area, area_of
from flair2_exp.inference.image import Box, Image, open_image
from flair2_exp.inference.parts import Parts
from flair2_exp.inference.patches import Tile
from flair2_exp.inference.rasters import Layer, layers_of
from flair2_exp.inference.surroundings import surroundings_of
from flair2_exp.inference.tiling import Axis, Unit, default_overlap, mirrored, units

if TYPE_CHECKING:
    from flair2_exp.inference.mapping import MapOptions
    from flair2_exp.inference.predictor import Predictor

UNIT_TILES: Final = (64, 18)
"""Rows and columns of tiles in a unit. So narrow, some 8,000 pixels of a patch size of 512, that
memory is nearly the same for all rasters. With `blend` each unit predicts a row and a column of its
neighbours' once more, a fourteenth of its tiles; a map that is stopped loses what it began of one.
"""

_LEAST_TILES: Final = 4
"""In a unit, along each side, where several devices share a small map."""

_CARRIED: Final = 2**28
"""Bytes of sums that a unit keeps from row to row, at most."""


@dataclass(frozen=True)
class Reading:
    """A tile as it was read; without data, `tile` is None."""

    row: int
    column: int
    tile: Tile | None = None
    mapped: NDArray[np.bool_] | None = None
    """Which of the pixels in which the tile has a say are mapped."""


class Plan:
    """What is predicted: tiles of an image, in units, to parts."""

    def __init__(
        self,
        predictor: Predictor,
        images: Sequence[Path],
        out: Path,
        options: MapOptions,
    ) -> None:
        self.predictor, self.images, self.out = predictor, tuple(images), out
        self.options = options
        self.image: Image = open_image(
            images, predictor, bands=options.bands, resample=options.resample, nodata=options.nodata
        )
        grid, patch = self.image.grid, predictor.patch_size
        self.area: Area = area_of(grid, options.area, options.bounds)
        overlap = default_overlap(patch) if options.overlap is None else options.overlap
        self.rows = Axis(grid.height, patch, overlap, options.join)
        self.columns = Axis(grid.width, patch, overlap, options.join)
        self.layers: list[Layer] = layers_of(
            predictor.nomenclature, options.probabilities, confidence=options.confidence
        )
        self.parts = Parts.of(out)
        self.division = self._divided(options.devices)
        self.surroundings = surroundings_of(
            predictor, self.image.crs, self._centres(), series=options.series, flight=options.flight
        )

    def _centres(self) -> tuple[float, float, float, float]:
        """Return the bounds of the centres of all tiles: west, south, east, north."""
        first, last = (
            self.image.grid.centre(self._window(row, column))
            for row, column in ((0, 0), (self.rows.count - 1, self.columns.count - 1))
        )
        return first[0], last[1], last[0], first[1]

    def _window(self, row: int, column: int) -> Window:
        """Return a tile's pixels, which may reach beyond the image."""
        patch, stride = self.rows.patch, self.rows.stride
        return Window(column * stride, row * stride, patch, patch)

    def _divided(self, devices: int) -> tuple[int, int]:
        """Return the rows and columns of tiles in a unit.

        So few that sums fit into memory, and that each of several devices gets two units or more.
        """
        classes = len(self.predictor.nomenclature.classes)
        each = 8 * classes * self.rows.shared * self.columns.stride
        across = max(1, min(UNIT_TILES[1], _CARRIED // max(1, each)))
        down = UNIT_TILES[0]
        while devices > 1 and self._units(down, across) < 2 * devices:
            if max(down, across) <= _LEAST_TILES:
                break
            down, across = (down, across // 2) if across > down else (down // 2, across)
        return down, across

    def _units(self, down: int, across: int) -> int:
        return math.ceil(self.rows.count / down) * math.ceil(self.columns.count / across)

    def units(self) -> list[Unit]:
        """Return the units that may hold something."""
        every = units(self.rows, self.columns, self.division)
        return [each for each in every if self._may_hold(self.box(each.rows, each.columns))]

    def _may_hold(self, box: Box) -> bool:
        return bool(self.area.touches(box)) and self.image.may_hold(box)

    def box(self, rows: range, columns: range) -> Box:
        """Return the pixels of tiles, up to where the next ones begin."""
        return (
            self.columns.begin(columns.start),
            self.rows.begin(rows.start),
            self.columns.begin(columns.stop),
            self.rows.begin(rows.stop),
        )

    def within(self, unit: Unit) -> Box:
        """Return the pixels of a unit that are in the map."""
        box, area = self.box(unit.rows, unit.columns), self.area.box
        return (
            max(box[0], area[0]), max(box[1], area[1]), min(box[2], area[2]), min(box[3], area[3]),
        )  # fmt: skip

    def with_neighbours(self, unit: Unit) -> Unit:
        """Return a unit with the tiles before it that share pixels with it."""
        lead = 1 if self.rows.shared else 0
        return Unit(
            range(max(0, unit.rows.start - lead), unit.rows.stop),
            range(max(0, unit.columns.start - lead), unit.columns.stop),
        )

    def made_from(self) -> dict[str, Any]:
        """Return all that decides the map's pixels, as plain values."""
        options = self.options
        return {
            "network": self.predictor.made_from,
            "device": self.predictor.device.type,
            "images": self.image.state(),
            "image grid": [*self.image.grid.transform[:6], str(self.image.grid.crs)],
            "bands": list(self.image.indexes),
            "nodata": str(options.nodata),
            "overlap": self.rows.overlap,
            "join": options.join,
            "area": self.area.digest(),
            "layers": [[each.kind, *each.chosen] for each in self.layers],
            "surroundings": self.surroundings.state() if self.surroundings else [],
        }

    # Reading.

    def readings(self, unit: Unit) -> Iterator[list[Reading]]:
        """Yield each row of a unit's tiles, from left to right."""
        for row in unit.rows:
            held = [column for column in unit.columns if self._has_work(row, column)]
            read = {r.column: r for run in _runs(held) for r in self._read(row, run)}
            yield [read.get(column, Reading(row, column)) for column in unit.columns]

    def say(self, row: int, column: int) -> Box:
        """Return the pixels in which a tile has a say."""
        rows, columns = self.rows, self.columns
        return columns.begin(column), rows.begin(row), columns.end(column), rows.end(row)

    def _has_work(self, row: int, column: int) -> bool:
        box = self.say(row, column)
        return self._may_hold(box) and bool(self.area.inside(box).any())

    def _read(self, row: int, run: range) -> Iterator[Reading]:
        """Read neighbouring tiles of a row at once."""
        patch, stride = self.columns.patch, self.columns.stride
        down = self.rows.pixels(row)
        first, stop = run.start * stride, (run.stop - 1) * stride + patch
        across = mirrored(np.arange(first, stop), self.columns.size)
        left, top = int(across.min()), int(down.min())
        pixels, valid = self.image.read((left, top, int(across.max()) + 1, int(down.max()) + 1))
        if across[-1] != stop - 1 or down[-1] != row * stride + patch - 1:  # mirrored at the end
            pixels = pixels[:, down - top][:, :, across - left]
            valid = valid[down - top][:, across - left]
        for column in run:
            piece = slice((column - run.start) * stride, (column - run.start) * stride + patch)
            yield self._reading(row, column, pixels[:, :, piece], valid[:, piece])

    def _reading(
        self, row: int, column: int, pixels: NDArray[Any], valid: NDArray[np.bool_]
    ) -> Reading:
        mapped = valid[self.rows.inside(row), self.columns.inside(column)]
        mapped = mapped & self.area.inside(self.say(row, column))
        if not mapped.any():
            return Reading(row, column)
        series = metadata = None
        if self.surroundings is not None:
            centre = self.image.grid.centre(self._window(row, column))
            series, metadata = self.surroundings.of(*centre)
        image = _filled(pixels, valid) if "aerial" in self.predictor.reads else None
        return Reading(row, column, Tile(image, series, metadata), mapped)


def _runs(columns: Sequence[int]) -> Iterator[range]:
    """Yield neighbouring numbers together."""
    start = 0
    for at in range(1, len(columns) + 1):
        if at == len(columns) or columns[at] != columns[at - 1] + 1:
            yield range(columns[start], columns[at - 1] + 1)
            start = at


def _filled(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """Return a tile whose pixels without data are their band's mean: networks see them, too."""
    if valid.all():
        return pixels
    means = pixels[:, valid].mean(axis=1, dtype=np.float64)
    if pixels.dtype.kind != "f":
        means = np.rint(means)
    return np.where(valid, pixels, means.astype(pixels.dtype)[:, None, None])
