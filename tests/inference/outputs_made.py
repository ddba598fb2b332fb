"""Rasters to write, for the tests of outputs; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS

from flair2_exp.data.grids import Grid
from flair2_exp.inference.rasters import BLOCK

LAMBERT = CRS.from_epsg(2154)
TAGS = {"FLAIR2_RUN": "run", "FLAIR2_MADE_FROM": "0123456789abcdef"}


def grid(width: int, height: int, *, west: float = 600_000.0, north: float = 6_600_000.0) -> Grid:
    """A grid of 0.2 m."""
    return Grid(width, height, Affine(0.2, 0, west, 0, -0.2, north), LAMBERT)


def blocks(pixels: NDArray[np.uint8]) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """A raster, (bands, H, W), as blocks in row-major order."""
    for row in range(0, pixels.shape[1], BLOCK):
        for column in range(0, pixels.shape[2], BLOCK):
            yield row, column, pixels[:, row : row + BLOCK, column : column + BLOCK]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, but its lock's, which names a process."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
