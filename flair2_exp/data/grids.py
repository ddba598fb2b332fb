"""Where pixels lie on the ground."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import rasterio
from rasterio import Affine, windows
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from flair2_exp.errors import DamagedPatchError


@dataclass(frozen=True)
class Grid:
    """A raster's pixels on the ground."""

    width: int
    height: int
    transform: Affine
    """From column and row, counted from the upper left corner, to coordinates."""
    crs: CRS | None = None

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read the grid of a raster file.

        Raises:
            DamagedPatchError: It cannot be read.
        """
        try:
            with rasterio.open(path) as file:
                return cls(file.width, file.height, file.transform, file.crs)
        except (RasterioError, OSError) as error:
            raise DamagedPatchError(f"{path}: {' '.join(str(error).split())}.") from None

    @property
    def resolution(self) -> tuple[float, float]:
        """Width and height of a pixel, in units of the CRS, positive."""
        return (
            float(abs(complex(self.transform.a, self.transform.d))),
            float(abs(complex(self.transform.b, self.transform.e))),
        )

    def part(self, window: Window) -> Grid:
        """Return the grid of a window of whole pixels, which may reach beyond this one."""
        moved = windows.transform(window, self.transform)
        return Grid(int(window.width), int(window.height), moved, self.crs)

    def centre(self, window: Window) -> tuple[float, float]:
        """Return x and y of a window's centre."""
        column = window.col_off + window.width / 2
        row = window.row_off + window.height / 2
        a, b, west, d, e, north = self.transform[:6]
        return a * column + b * row + west, d * column + e * row + north
