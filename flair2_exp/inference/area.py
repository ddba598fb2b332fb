"""The part of an image that is mapped: polygons of a vector file, or a rectangle."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from flair2_exp.data.grids import Bounds, Grid
from flair2_exp.errors import DataError, UsageError
from flair2_exp.inference.image import Box, common
from flair2_exp.values import digest


@dataclass(frozen=True)
class Area:
    """Which pixels of an image are mapped: those whose centre lies inside."""

    grid: Grid
    box: Box
    """The least that holds the area."""
    polygons: tuple[tuple[Bounds, Mapping[str, Any]], ...] | None = None
    """With their bounds, as GeoJSON in the image's system; None: the whole box."""

    def inside(self, box: Box) -> NDArray[np.bool_]:
        """Return which pixels of a box are to be mapped, (H, W)."""
        from rasterio.features import geometry_mask

        shape = (box[3] - box[1], box[2] - box[0])
        rows, columns = np.arange(box[1], box[3]), np.arange(box[0], box[2])
        inside: NDArray[np.bool_] = np.logical_and.outer(
            (rows >= self.box[1]) & (rows < self.box[3]),
            (columns >= self.box[0]) & (columns < self.box[2]),
        )
        if self.polygons is None or not inside.any():
            return inside
        part = self.grid.part(Window(box[0], box[1], shape[1], shape[0]))
        near = [shape for bounds, shape in self.polygons if _overlap(bounds, part.bounds)]
        if not near:
            return np.zeros(shape, np.bool_)
        inside &= geometry_mask(near, shape, part.transform, invert=True)
        return inside

    def touches(self, box: Box) -> bool:
        """Return whether a box may hold some of the area."""
        return common(self.box, box) is not None

    def digest(self) -> str:
        """Return what tells another area."""
        return digest({"box": self.box, "polygons": [shape for _, shape in self.polygons or ()]})


def _overlap(one: Bounds, other: Bounds) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def area_of(grid: Grid, polygons: Path | None, bounds: Bounds | None) -> Area:
    """Return what is mapped of an image.

    Args:
        grid: The image's.
        polygons: A vector file of them; None: all of the image, or of `bounds`.
        bounds: In the image's system.

    Raises:
        UsageError: Both are given, or the bounds are not in order.
        DataError: The file cannot be read, or nothing of it lies in the image.
    """
    if polygons is not None and bounds is not None:
        raise UsageError("an area and bounds: give one of them.")
    if polygons is not None:
        shapes = read_polygons(polygons, grid)
        sides = [each for each, _ in shapes]
        outer = (min(s[0] for s in sides), min(s[1] for s in sides),
                 max(s[2] for s in sides), max(s[3] for s in sides))  # fmt: skip
        return Area(grid, _box(grid, outer, str(polygons)), shapes)
    if bounds is not None:
        if not (bounds[0] < bounds[2] and bounds[1] < bounds[3]):
            raise UsageError(
                f"bounds {' '.join(map(str, bounds))}: expected west south east north, as "
                f"{' '.join(f'{each:.10g}' for each in grid.bounds)} of the whole image."
            )
        return Area(grid, _box(grid, bounds, "the bounds"))
    return Area(grid, (0, 0, grid.width, grid.height))


def _box(grid: Grid, bounds: Bounds, what: str) -> Box:
    """Return the pixels whose centres lie within bounds.

    Raises:
        DataError: There are none in the image.
    """
    west, north = grid.transform.c, grid.transform.f
    width, height = grid.resolution
    box = (
        max(0, math.ceil((bounds[0] - west) / width - 0.5)),
        max(0, math.ceil((north - bounds[3]) / height - 0.5)),
        min(grid.width, math.ceil((bounds[2] - west) / width - 0.5)),
        min(grid.height, math.ceil((north - bounds[1]) / height - 0.5)),
    )
    if box[0] >= box[2] or box[1] >= box[3]:
        raise DataError(
            f"{what} {_numbers(bounds)} (west south east north) does not touch the image, which "
            f"lies in {_numbers(grid.bounds)}.\nCheck its coordinate reference system."
        )
    return box


def _numbers(bounds: Bounds) -> str:
    return " ".join(f"{each:.9g}" for each in bounds)


def read_polygons(path: Path, grid: Grid) -> tuple[tuple[Bounds, Mapping[str, Any]], ...]:
    """Return the polygons of a vector file with their bounds, in the system of a grid.

    Raises:
        UsageError: pyogrio, which reads such files, is not installed.
        DataError: There is no such file, or it does not hold polygons whose place is known.
    """
    try:
        from pyogrio import raw
        from pyogrio.errors import DataLayerError, DataSourceError
    except ImportError:
        raise UsageError(
            f"{path}: reading polygons needs pyogrio.\npip install 'flair2-exp[vector]'"
        ) from None
    if not path.exists():
        raise DataError(f"{path}: there is no such file of polygons.")
    try:
        about, _, shapes, _ = raw.read(path, columns=[], force_2d=True)
    except (DataSourceError, DataLayerError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {' '.join(str(error).split())}.\n"
            "Expected polygons in a GeoJSON, GeoPackage or Shapefile."
        ) from None
    present = [each for each in shapes if each is not None]
    if not present or about["crs"] is None:
        lacks = "no coordinate reference system" if present else "no shapes"
        raise DataError(f"{path} has {lacks}; expected polygons and their system.")
    return _projected(path, _as_geojson(present), about["crs"], grid)


def _as_geojson(shapes: Sequence[bytes]) -> list[Any]:
    """Return shapes in well-known binary as GeoJSON: the form that rasterio takes."""
    from pyogrio import raw

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # it is known apart
        raw.write(
            content,
            geometry=np.array(shapes, dtype=object),
            field_data=[],
            fields=[],
            geometry_type="Unknown",
            driver="GeoJSON",
            crs=None,
        )
    return [each["geometry"] for each in json.loads(content.getvalue())["features"]]


def _projected(
    path: Path, shapes: Sequence[Any], crs: str, grid: Grid
) -> tuple[tuple[Bounds, Mapping[str, Any]], ...]:
    from rasterio.features import bounds
    from rasterio.warp import transform_geom

    others = {each["type"] for each in shapes} - {"Polygon", "MultiPolygon"}
    if others:
        raise DataError(f"{path} holds {', '.join(sorted(others))}; expected polygons only.")
    moved = [transform_geom(crs, grid.crs, each) for each in shapes]
    return tuple((bounds(each), each) for each in moved)
