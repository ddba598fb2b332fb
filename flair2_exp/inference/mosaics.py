"""The patches of an area as one raster, where they lie on one pixel grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import rasterio
from rasterio.windows import Window, intersection

from flair2_exp.data.grids import Grid
from flair2_exp.inference.rasters import BLOCK, NODATA, Layer, Pixels, write_layer

_OFF: Final = 0.01
"""Pixels by which a patch may lie beside its neighbours' grid: coordinates of files are rounded."""


class OffGridError(ValueError):
    """Patches that are not parts of one raster; the message says why."""


@dataclass(frozen=True)
class Mosaic:
    """A grid that covers patches, which need not touch, and each patch's window in it."""

    grid: Grid
    windows: tuple[Window, ...]

    @classmethod
    def of(cls, grids: Sequence[Grid | None]) -> Mosaic:
        """Return the mosaic of patches.

        Raises:
            OffGridError: One has no place, or they differ in CRS, resolution or pixel grid.
        """
        first, places = grids[0], []
        for grid in grids:
            if grid is None or first is None:
                raise OffGridError("its patches have no place on the ground")
            if grid.crs != first.crs:
                raise OffGridError(f"its patches differ in CRS ({first.crs}, {grid.crs})")
            # An offset in the first patch's pixels; what else differs shows in the other numbers.
            a, b, column, d, e, row = (~first.transform @ grid.transform)[:6]
            if not np.allclose((a, b, d, e), (1, 0, 0, 1), atol=1e-6):
                raise OffGridError(
                    f"its patches differ in resolution ({first.resolution}, {grid.resolution})"
                )
            if abs(column - round(column)) > _OFF or abs(row - round(row)) > _OFF:
                raise OffGridError(
                    f"its patches lie between each other's pixels ({column:.2f}, {row:.2f})"
                )
            places.append((round(column), round(row), grid.width, grid.height))
        assert first is not None
        return cls._covering(first, places)

    @classmethod
    def _covering(cls, first: Grid, places: Sequence[tuple[int, int, int, int]]) -> Mosaic:
        west, north = min(each[0] for each in places), min(each[1] for each in places)
        windows = tuple(Window(x - west, y - north, w, h) for x, y, w, h in places)
        width = max(each.col_off + each.width for each in windows)
        height = max(each.row_off + each.height for each in windows)
        return cls(first.part(Window(west, north, width, height)), windows)

    def write(
        self, path: Path, files: Sequence[Path], layer: Layer, tags: Mapping[str, str]
    ) -> None:
        """Write the mosaic of a layer of the patches; of overlapping ones the last is on top.

        Args:
            path: The file; appears whole.
            files: Of the patches, in the order of the windows.
            layer: What they hold.
            tags: Of the file.

        Raises:
            OSError: It cannot be written.
        """
        write_layer(path, self.grid, layer, self._blocks(files, layer), tags)

    def _blocks(self, files: Sequence[Path], layer: Layer) -> Iterator[tuple[int, int, Pixels]]:
        """Yield the blocks that patches cover."""
        indices = layer.indices
        for (row, column), members in sorted(self._covered().items()):
            width = min(BLOCK, self.grid.width - column)
            height = min(BLOCK, self.grid.height - row)
            block = np.full((layer.bands, height, width), NODATA, np.uint8)
            for member in members:
                window = self.windows[member]
                shared = intersection(window, Window(column, row, width, height))
                x, y, w, h = map(int, shared.flatten())
                inside = Window(x - window.col_off, y - window.row_off, w, h)
                with rasterio.open(files[member]) as file:
                    pixels = indices[file.read(window=inside)]
                block[:, y - row : y - row + h, x - column : x - column + w] = pixels
            yield row, column, block

    def _covered(self) -> dict[tuple[int, int], list[int]]:
        """Return the patches in each block, by the block's row and column offset."""
        covered: dict[tuple[int, int], list[int]] = defaultdict(list)
        for member, each in enumerate(self.windows):
            rows = range(each.row_off // BLOCK, (each.row_off + each.height - 1) // BLOCK + 1)
            columns = range(each.col_off // BLOCK, (each.col_off + each.width - 1) // BLOCK + 1)
            for row, column in product(rows, columns):
                covered[row * BLOCK, column * BLOCK].append(member)
        return covered
