"""Where pixels lie on the ground."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import rasterio
from rasterio import Affine, windows
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import array_bounds
from rasterio.windows import Window

from flair2_exp.errors import DamagedPatchError

Bounds = tuple[float, float, float, float]
"""West, south, east, north."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warning that a raster lies nowhere: patches may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


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

    @property
    def metres(self) -> tuple[float, float]:
        """Width and height of a pixel; without a CRS, `resolution`."""
        factor = float(self.crs.linear_units_factor[1]) if self.crs else 1.0
        width, height = self.resolution
        return width * factor, height * factor

    @property
    def bounds(self) -> Bounds:
        """Its outer edges: west, south, east, north of a grid that is north up."""
        west, south, east, north = array_bounds(self.height, self.width, self.transform)
        return float(west), float(south), float(east), float(north)

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
