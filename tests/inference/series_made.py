"""Folders of acquisitions for tests, written with rasterio and NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS

BANDS: Final = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
LAMBERT: Final = CRS.from_epsg(2154)
PLACE: Final = Affine(10, 0, 700_000, 0, -10, 6_600_000)
DATES: Final = ("2020-01-05", "2020-03-01", "2020-03-02", "2020-07-30", "2020-12-24")


@dataclass(frozen=True)
class Area:
    """Arrays as FLAIR #2 has them: (T, 10, H, W), (T, 2, H, W), T dates."""

    data: NDArray[np.uint16]
    masks: NDArray[np.uint8]
    dates: Sequence[str] = DATES

    def centre(self, row: int, column: int) -> tuple[float, float]:
        """x and y of the corner before a pixel."""
        return PLACE.c + 10.0 * column, PLACE.f - 10.0 * row


def area(height: int = 40, width: int = 48, seed: int = 0) -> Area:
    """Random arrays; no pixel is 0 in all bands."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 12_000, (len(DATES), 10, height, width)).astype(np.uint16)
    data[:, 3] += 1
    masks = rng.integers(0, 101, (len(DATES), 2, height, width)).astype(np.uint8)
    return Area(data, masks)


def write_tif(
    path: Path,
    pixels: NDArray[Any],
    names: Sequence[str | None] = (),
    *,
    place: Affine = PLACE,
    crs: CRS | None = LAMBERT,
    **options: Any,
) -> Path:
    """Write (C, H, W) as a GeoTIFF with descriptions."""
    count, height, width = pixels.shape
    profile = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", transform=place, crs=crs, **profile | options
    ) as file:
        if names:
            file.descriptions = tuple(names)
        file.write(pixels)
    return path


def write_images(folder: Path, made: Area, form: str = "bands", **options: Any) -> Path:
    """Write an area as GeoTIFFs: with snow and cloud as `bands`, in a `file`, or with `none`."""
    for date, frame, mask in zip(made.dates, made.data, made.masks, strict=True):
        if form == "bands":
            pixels = np.concatenate((frame, mask.astype(np.uint16)))
            write_tif(folder / f"S2_{date}.tif", pixels, (*BANDS, "snow", "cloud"), **options)
            continue
        write_tif(folder / f"S2_{date}.tif", frame, **options)
        if form == "file":
            write_tif(folder / f"S2_{date}_masks.tif", mask, **options)
    return folder


def write_stack(folder: Path, made: Area, grid: str | None = None) -> Path:
    """Write an area as FLAIR's three files, with their place."""
    folder.mkdir(parents=True)
    np.save(folder / "SEN2_data.npy", made.data)
    np.save(folder / "SEN2_masks.npy", made.masks)
    days = (date.replace("-", "") for date in made.dates)
    lines = "".join(f"S2A_MSIL2A_{day}T104431_N0211_R008_T32UMD_{day}T115449\n" for day in days)
    (folder / "SEN2_products.txt").write_text(lines)
    place = '{"crs": "EPSG:2154", "transform": [10, 0, 700000, 0, -10, 6600000]}'
    (folder / "grid.json").write_text(grid or place)
    return folder
