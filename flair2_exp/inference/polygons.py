"""A class raster as polygons in a GeoPackage."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.features import shapes, sieve

from flair2_exp.data.grids import quiet
from flair2_exp.errors import ConfigError, DataError, UsageError
from flair2_exp.inference.rasters import NODATA, require_free
from flair2_exp.nomenclature import Nomenclature

_AT_ONCE: Final = 10_000
"""Polygons that are written at once."""
_Polygon = tuple[bytes, int, str, str, float]
"""Geometry (WKB), the class's value, name and colour, area in m²."""


@dataclass(frozen=True)
class PolygonSummary:
    """What `write_polygons` wrote."""

    path: Path
    polygons: int
    left_out: int
    """Those smaller than asked for that touch no other class, only nodata or each other."""


def write_polygons(
    classes: Path,
    out: Path,
    nomenclature: Nomenclature,
    *,
    smallest: float = 0.0,
    overwrite: bool = False,
) -> PolygonSummary:
    """Write the polygons of a class raster, with their class's value, name, colour and area.

    Polygons are of pixels that share an edge, over the whole raster; memory depends on their
    number, not on the raster's size. One that is too small becomes part of its largest neighbour,
    the smallest polygons first; what then is still too small, because nodata surrounds it, is left
    out.

    Args:
        classes: A raster of the classes' values, as `rasters.write_layer` makes it.
        out: The GeoPackage; appears whole, in the raster's CRS, with one layer of the file's name.
        nomenclature: The classes.
        smallest: Area in m² that a polygon has at least.
        overwrite: Whether a file of the name is replaced.

    Raises:
        ConfigError: pyogrio is not installed, or `out` is there.
        DataError: The raster cannot be read or holds other values, or its CRS does not measure in
            metres or feet.
        UsageError: `smallest` is negative.
        OSError: `out` cannot be written.
    """
    if smallest < 0:
        raise UsageError(f"a smallest area of {smallest} m²: expected 0 or more.")
    pyogrio = _pyogrio()
    require_free([out], overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder,
        _opened(classes) as file,
    ):
        square_metres = _pixel_area(classes, file)
        _require_classes(file, nomenclature)
        pixels = _sieved(file, int(np.ceil(smallest / square_metres)), Path(folder))
        polygons = _polygons(file, pixels, nomenclature, square_metres)
        fresh = Path(folder) / out.name
        counts = _write(pyogrio, polygons, fresh, out.stem, file.crs.to_string(), smallest)
        fresh.replace(out)
    return PolygonSummary(out, *counts)


def _pyogrio() -> ModuleType:
    try:
        import pyogrio
    except ImportError:
        raise ConfigError(
            "polygons are written by pyogrio, which is not installed.\n"
            "Install it: pip install 'flair2-exp[vector]'."
        ) from None
    return pyogrio  # type: ignore[no-any-return]


def _opened(path: Path) -> Any:
    """Open a class raster.

    Raises:
        DataError: It cannot be opened, or has other pixels.
    """
    try:
        file = rasterio.open(path)
    except (RasterioError, OSError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}.") from None
    if file.count != 1 or file.dtypes[0] != "uint8":
        file.close()
        raise DataError(
            f"{path}: {file.count} bands of {file.dtypes[0]}; expected a raster of classes, one "
            "band of uint8."
        )
    return file


def _pixel_area(path: Path, file: Any) -> float:
    """Return a pixel's area in m².

    Raises:
        DataError: Its CRS does not tell.
    """
    if file.crs is None or not file.crs.is_projected:
        raise DataError(
            f"{path} has {'no CRS' if file.crs is None else f'the CRS {file.crs}'}: the area of "
            "polygons is not known.\nReproject the raster to a CRS in metres first."
        )
    metres = float(file.crs.linear_units_factor[1])
    return float(abs(file.transform.determinant)) * metres**2


def _require_classes(file: Any, nomenclature: Nomenclature) -> None:
    """Read the raster once: what GDAL makes polygons of, it does not say when that is damaged.

    Raises:
        DataError: It cannot be read, or holds a value that is not a class's.
    """
    known = [NODATA, *(each.value for each in nomenclature.classes)]
    for _, window in file.block_windows(1):
        try:
            values = np.unique(file.read(1, window=window))
        except RasterioError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise DataError(f"{file.name}: {reason}.\nPredict it once more.") from None
        other = np.setdiff1d(values, known)
        if len(other):
            raise DataError(
                f"{file.name}: pixels of {other[0]}, which is not a value of the run's classes.\n"
                "Name the run that made the raster."
            )


def _sieved(file: Any, smallest: int, folder: Path) -> Any:
    """Return what polygons are made of: the band, or a map in memory of its sieved pixels.

    GDAL's sieve leaves a polygon as it is where it finds small neighbours alone. So the size grows
    from pass to pass, by which the smallest merge first. Doubled, nothing was left of maps whose
    pixels, or squares of them, were drawn at random; times 4, a sixth of the squares' polygons.
    """
    band = rasterio.band(file, 1)
    if smallest <= 1:
        return band
    path = folder / "sieved"
    with path.open("wb") as raw:  # a map of a file with holes would crash on a full disk
        os.posix_fallocate(raw.fileno(), 0, file.width * file.height)
    pixels: Any = np.memmap(path, np.uint8, "r+", shape=(file.height, file.width))
    with quiet(), rasterio.open(_mask(file)) as mask:
        source, size = band, 2
        while True:
            sieve(source, min(size, smallest), out=pixels, mask=rasterio.band(mask, 1))
            if size >= smallest:
                return pixels
            source, size = pixels, size * 2


def _mask(file: Any) -> str:
    """Return a virtual raster that is 0 where a raster is nodata, else 1."""
    return (
        f'<VRTDataset rasterXSize="{file.width}" rasterYSize="{file.height}">'
        '<VRTRasterBand dataType="Byte" band="1"><ComplexSource>'
        f"<SourceFilename>{escape(str(Path(file.name).absolute()))}</SourceFilename>"
        f"<SourceBand>1</SourceBand><LUT>0:1,{NODATA - 1}:1,{NODATA}:0</LUT>"
        "</ComplexSource></VRTRasterBand></VRTDataset>"
    )


def _polygons(
    file: Any, pixels: Any, nomenclature: Nomenclature, square_metres: float
) -> Iterator[_Polygon]:
    """Yield each polygon that is not nodata."""
    classes = {each.value: each for each in nomenclature.classes}
    per_unit = square_metres / abs(file.transform.determinant)
    for shape, value in shapes(pixels, transform=file.transform):
        if int(value) == NODATA:
            continue
        each = classes[int(value)]
        rings = [np.array(ring, dtype=np.float64) for ring in shape["coordinates"]]
        area = (_area(rings[0]) - sum(map(_area, rings[1:]))) * per_unit
        yield _wkb(rings), each.value, each.name, each.colour, area


def _area(ring: NDArray[np.float64]) -> float:
    """Return the area of a closed (n, 2) ring; by differences, since coordinates are large."""
    x, y = (ring - ring[0]).T
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2


def _wkb(rings: Sequence[NDArray[np.float64]]) -> bytes:
    """Return a polygon as well-known binary, little-endian."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), ring.astype("<f8").tobytes()]
    return b"".join(parts)


def _write(
    pyogrio: ModuleType,
    polygons: Iterator[_Polygon],
    path: Path,
    layer: str,
    crs: str,
    smallest: float,
) -> tuple[int, int]:
    """Write polygons in portions; return how many, and how many were too small."""
    options: Mapping[str, Any] = {
        "layer": layer, "driver": "GPKG", "geometry_type": "Polygon", "crs": crs,
        "fields": ["value", "name", "colour", "area_m2"],
    }  # fmt: skip
    kinds = (object, np.int32, object, object, np.float64)
    written = left_out = 0
    for number, portion in enumerate(_portions(polygons)):
        large = [each for each in portion if each[4] >= smallest * (1 - 1e-9)]
        columns = list(zip(*large, strict=True)) or [()] * len(kinds)
        geometry, *fields = (
            np.array(each, dtype=kind) for each, kind in zip(columns, kinds, strict=True)
        )
        pyogrio.raw.write(path, geometry, fields, append=number > 0, **options)
        written, left_out = written + len(large), left_out + len(portion) - len(large)
    return written, left_out


def _portions(items: Iterator[_Polygon]) -> Iterator[list[_Polygon]]:
    """Yield items in lists, the first of which may be empty."""
    portion = list(islice(items, _AT_ONCE))
    yield portion
    while portion := list(islice(items, _AT_ONCE)):
        yield portion
