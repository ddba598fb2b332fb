"""Large rasters as a network reads them: one file or several, by windows, with what is nodata.

Several files become one image, the later ones on top. Nothing is read until a window is asked for.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from flair2_exp.data.grids import Grid, quiet
from flair2_exp.errors import DamagedPatchError, DataError, nearest

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

    from flair2_exp.inference.predictor import Predictor

log = logging.getLogger(__name__)

TOLERANCE: Final = 0.01
"""By how much a resolution may differ from the run's: 5 pixels across a patch of 512."""

_OFF_GRID: Final = 0.05
"""Pixels by which two files of a mosaic may be shifted against each other; rounding of coordinates
stays far below."""

_OPEN_FILES: Final = 64
"""Of a mosaic, at once; systems allow some hundreds in a process."""

_CACHE_MB: Final = 128
"""Of decoded blocks; GDAL's own default grows with the machine's memory."""

Box = tuple[int, int, int, int]
"""Pixels of an image: first column, first row, column and row after the last."""


@contextmanager
def raster_settings() -> Iterator[None]:
    """Set GDAL up for work on large rasters; silence its warning of files that lie nowhere."""
    with quiet(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
        yield


@dataclass(frozen=True)
class Source:
    """A file, and where its pixels lie in the image."""

    path: Path
    box: Box
    warped: Affine | None = None
    """Where it is resampled to: the transform of `box`."""
    shrinks: bool = False
    """Whether resampling makes pixels larger."""


@dataclass(frozen=True)
class Header:
    """What a raster file says without its pixels."""

    path: Path
    grid: Grid
    kinds: tuple[str, ...]
    """Types of its bands without alpha."""
    names: tuple[str, ...]
    """Descriptions of these bands; "" where there is none."""

    @classmethod
    def of(cls, path: Path) -> Header:
        """Read it.

        Raises:
            DataError: There is no such file, or it is not a raster.
        """
        if not path.exists():
            raise DataError(f"{path}: there is no such file.\nExpected a GeoTIFF, or a VRT.")
        try:
            with raster_settings(), rasterio.open(path) as file:
                pairs = zip(file.colorinterp, file.dtypes, file.descriptions, strict=True)
                bands = [(kind, name or "") for c, kind, name in pairs if c != ColorInterp.alpha]
                grid = Grid(file.width, file.height, file.transform, file.crs)
        except (RasterioError, OSError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise DataError(f"{path} cannot be read: {reason}.") from None
        if not bands:
            raise DataError(f"{path} has no bands of its own (an alpha band, or other files).")
        return cls(path, grid, tuple(kind for kind, _ in bands), tuple(name for _, name in bands))

    def require_place(self) -> None:
        """Refuse a raster that does not lie north up in a projected system.

        Raises:
            DataError: The message names what to do.
        """
        crs, transform = self.grid.crs, self.grid.transform
        if crs is None:
            raise DataError(
                f"{self.path} has no coordinate reference system.\n"
                f"Give it its own: gdal_edit.py -a_srs EPSG:2154 {self.path} (for Lambert-93)."
            )
        if not crs.is_projected:
            raise DataError(
                f"{self.path} is in {crs.to_string()[:40]}, whose pixels are not metres.\n"
                f"Project it first, as gdalwarp -t_srs EPSG:2154 {self.path} projected.tif."
            )
        if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
            raise DataError(
                f"{self.path} is rotated, sheared or mirrored (transform "
                f"{tuple(transform)[:6]}); expected north up.\n"
                f"Turn it first: gdalwarp {self.path} north_up.tif."
            )


@dataclass(frozen=True)
class Image:
    """One large raster of the bands that a predictor reads.

    Read it within `raster_settings`, in one thread at a time.
    """

    grid: Grid
    sources: tuple[Source, ...]
    """Later ones lie on top."""
    indexes: tuple[int, ...]
    """Of the bands in the files, from 1."""
    kind: np.dtype[Any]
    nodata: float | None = None
    """Instead of the files' own."""
    opened: Callable[[Source, float | None], DatasetReader] = field(
        default_factory=lambda: functools.lru_cache(maxsize=_OPEN_FILES)(_opened), compare=False
    )

    @property
    def crs(self) -> CRS:
        """Its coordinate reference system, projected."""
        assert self.grid.crs is not None, "its files are required to have one"
        return self.grid.crs

    def read(self, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the pixels within a box, (C, H, W), and which of them hold data, (H, W).

        A pixel of whole numbers is nodata where all of its bands are, since 0 is a value of a
        shadow, too; one of floating-point numbers where any is, or is not finite.

        Raises:
            DamagedPatchError: A file cannot be read there.
        """
        shape = (box[3] - box[1], box[2] - box[0])
        pixels = np.zeros((len(self.indexes), *shape), self.kind)
        valid = np.zeros(shape, np.bool_)
        for source in self.sources:
            part = common(source.box, box)
            if part is None:
                continue
            values, holds = self._read(source, part)
            rows = slice(part[1] - box[1], part[3] - box[1])
            columns = slice(part[0] - box[0], part[2] - box[0])
            np.copyto(pixels[:, rows, columns], values, where=holds)
            valid[rows, columns] |= holds
        return pixels, valid

    def _read(self, source: Source, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        left, top = source.box[:2]
        window = Window(box[0] - left, box[1] - top, box[2] - box[0], box[3] - box[1])
        try:
            file = self.opened(source, self.nodata)
            pixels: NDArray[Any] = file.read(self.indexes, window=window)
            missing = self._missing(file, pixels, window)
        except (RasterioError, OSError) as error:
            raise DamagedPatchError(
                f"{source.path} cannot be read at column {window.col_off}, row {window.row_off}: "
                f"{' '.join(str(error).split())}.\nThe file is incomplete or damaged: get it again."
            ) from None
        floating = self.kind.kind == "f"
        empty = (missing | ~np.isfinite(pixels)).any(axis=0) if floating else missing.all(axis=0)
        return pixels, np.logical_not(empty)

    def _missing(
        self, file: DatasetReader, pixels: NDArray[Any], window: Window
    ) -> NDArray[np.bool_]:
        """Return where bands are nodata, (C, H, W)."""
        missing = np.zeros(pixels.shape, np.bool_)
        # GDAL's own masks go by alpha in files of two and four bands alone.
        alpha = [at for at, each in enumerate(file.colorinterp, 1) if each == ColorInterp.alpha]
        if alpha:
            missing |= file.read(alpha[0], window=window) == 0
        for at, index in enumerate(self.indexes):
            nodata = self._nodata(file, index)
            if nodata is not None:
                missing[at] |= np.isnan(pixels[at]) if math.isnan(nodata) else pixels[at] == nodata
            elif MaskFlags.all_valid not in file.mask_flag_enums[index - 1]:
                missing[at] |= file.read_masks(index, window=window) == 0
        return missing

    def _nodata(self, file: DatasetReader, index: int) -> float | None:
        value = file.nodatavals[index - 1] if self.nodata is None else self.nodata
        return None if value is None else float(value)

    def may_hold(self, box: Box) -> bool:
        """Return whether a box may hold data, by what files say of themselves: nothing is read.

        Blocks that a sparse GeoTIFF leaves out are its nodata value.
        """
        for source in self.sources:
            part = common(source.box, box)
            if part is None:
                continue
            file = self.opened(source, self.nodata)
            values = [file.nodatavals[index - 1] for index in self.indexes]
            sparse = file.driver == "GTiff" and source.warped is None and None not in values
            if not sparse or self.nodata not in (None, *values):
                return True
            if any(_has_block(file, index, source.box, part) for index in self.indexes):
                return True
        return False

    def state(self) -> list[list[Any]]:
        """Return what tells whether the files are the same: path, bytes, time of change."""
        states = [(each.path, each.path.stat()) for each in self.sources]
        return [[str(path.absolute()), s.st_size, s.st_mtime_ns] for path, s in states]


def _has_block(file: DatasetReader, index: int, box: Box, part: Box) -> bool:
    """Return whether a GeoTIFF has written any block of a band within a part of its box."""
    height, width = file.block_shapes[index - 1]
    columns = range((part[0] - box[0]) // width, (part[2] - box[0] - 1) // width + 1)
    rows = range((part[1] - box[1]) // height, (part[3] - box[1] - 1) // height + 1)
    return any(
        file.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=index) is not None
        for row in rows
        for column in columns
    )


def _opened(source: Source, nodata: float | None) -> DatasetReader:
    """Return a file, resampled as needed; closed when others push it out."""
    file = rasterio.open(source.path)
    if source.warped is None:
        return file
    box = source.box
    nodata = file.nodata if nodata is None else nodata
    masked = nodata is not None or ColorInterp.alpha in file.colorinterp
    return WarpedVRT(
        file,
        crs=file.crs,
        transform=source.warped,
        width=box[2] - box[0],
        height=box[3] - box[1],
        resampling=Resampling.average if source.shrinks else Resampling.bilinear,
        add_alpha=not masked,
        **({} if nodata is None else {"src_nodata": nodata, "nodata": nodata}),
    )


def common(one: Box, other: Box) -> Box | None:
    """Return what two boxes share; None where that is nothing."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def open_image(
    paths: Sequence[Path],
    predictor: Predictor,
    *,
    bands: Sequence[str] | None = None,
    resample: bool = False,
    nodata: float | None = None,
) -> Image:
    """Return files as one image of what a predictor reads, in its order of bands.

    Args:
        paths: Of one system, resolution and order of bands; later ones lie on top.
        predictor: Says which bands, type and resolution.
        bands: Names of the files' bands, where the files do not describe them.
        resample: Resample to the predictor's resolution, and onto the first file's grid.
        nodata: Value of pixels without data, instead of the files' own.

    Raises:
        DataError: They are not what the predictor reads; the message says what is.
    """
    if not paths:
        raise DataError("no image: name a GeoTIFF, or several of one mosaic.")
    headers = [Header.of(path) for path in paths]
    for header in headers:
        header.require_place()
        _require_alike(headers[0], header)
    indexes = _indexes(headers, predictor, bands)
    kind = predictor.image_type
    _require_resolution(headers, predictor.resolution, resample)
    metres = headers[0].grid.metres[0] / headers[0].grid.resolution[0]
    wanted = predictor.resolution / metres if resample and predictor.resolution else None
    grid, sources = _arranged(headers, wanted)
    return Image(grid, sources, indexes, kind, nodata)


def _require_alike(first: Header, other: Header) -> None:
    kinds: dict[str, list[Any]] = {
        "in another coordinate reference system": [first.grid.crs, other.grid.crs],
        "of another resolution": [
            [f"{m:.6g}" for m in each.grid.metres] for each in (first, other)
        ],
        "of other bands": [[len(each.names), *each.names] for each in (first, other)],
        "of another type": [sorted({*each.kinds}) for each in (first, other)],
    }
    for what, (mine, its) in kinds.items():
        if mine != its:
            raise DataError(
                f"{other.path} is {what} than {first.path}: {_short(its)}, {_short(mine)}.\n"
                "The files of a mosaic must agree; predict them one by one, or convert them first."
            )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(each) for each in value if each != "")
    return str(value.to_string())[:60]


def _indexes(
    headers: Sequence[Header], predictor: Predictor, given: Sequence[str] | None
) -> tuple[int, ...]:
    """Return which of the files' bands the predictor reads, from 1, in its order.

    Raises:
        DataError: One is missing, cannot be told, or is of another type.
    """
    header = headers[0]
    if "aerial" not in predictor.reads:
        return (1,)
    wanted, count = predictor.bands, len(header.names)
    names = tuple(given) if given is not None else header.names
    if given is not None and len(given) != count:
        raise DataError(
            f"{len(given)} names of bands ({', '.join(given)}), and {header.path} has {count} "
            "bands.\nName each of them once, in the file's order."
        )
    if given is None and not any(names):
        if count < len(wanted):
            raise DataError(
                f"{header.path} has {count} band{'s' * (count > 1)}; the run reads "
                f"{', '.join(wanted)}.\nName an image that has them all."
            )
        if count != len(wanted):
            raise DataError(
                f"{header.path} has {count} bands without descriptions; the run reads "
                f"{', '.join(wanted)}.\nName the file's bands in order: "
                f"--bands {' '.join(wanted)} (one name for each of the {count})."
            )
        log.info("%s: no band is described; taken in order as %s", header.path, ", ".join(wanted))
        names = wanted
    lower = [name.strip().lower() for name in names]
    for name in wanted:
        if lower.count(name.lower()) != 1:
            how = "has no band" if name.lower() not in lower else "has more than one band"
            raise DataError(
                f"{header.path} {how} {name!r}; {nearest(name, [n or '(none)' for n in names])}\n"
                f"The run reads {', '.join(wanted)}. Name the file's bands in order with --bands."
            )
    indexes = tuple(lower.index(name.lower()) + 1 for name in wanted)
    kinds = sorted({header.kinds[index - 1] for index in indexes})
    if kinds != [str(predictor.image_type)]:
        raise DataError(
            f"{header.path} holds {', '.join(kinds)}; the run reads {predictor.image_type}.\n"
            "Convert it to the scale of the run's training images first (gdal_translate -ot)."
        )
    return indexes


def _require_resolution(headers: Sequence[Header], wanted: float | None, resample: bool) -> None:
    """Refuse files of another resolution than the run's, and pixels that are not square.

    Raises:
        DataError: The message has both numbers.
    """
    for header in headers:
        width, height = header.grid.metres
        target = wanted or width
        if resample or max(abs(width - target), abs(height - target)) <= TOLERANCE * target:
            continue
        raise DataError(
            f"{header.path} has pixels of {width:.4g} x {height:.4g} m; the run reads "
            f"{target:.4g} m.\nAdd --resample to bring it to {target:.4g} m while it is read."
            if wanted
            else f"{header.path} has pixels of {width:.4g} x {height:.4g} m; expected square ones."
        )


def _arranged(headers: Sequence[Header], wanted: float | None) -> tuple[Grid, tuple[Source, ...]]:
    """Return the grid of all files, and where each lies in it.

    Args:
        headers: North up, of one system.
        wanted: Resolution to which they are resampled where they have another, in units of it.

    Raises:
        DataError: Their pixels do not lie on one grid, and are not resampled.
    """
    first = headers[0].grid
    placed = [_placed(each, first) for each in headers]
    off = [h for h, (_, shift) in zip(headers, placed, strict=True) if shift > _OFF_GRID]
    differs = wanted is not None and any(
        abs(size - wanted) > TOLERANCE * wanted for h in headers for size in h.grid.resolution
    )
    if wanted is not None and (differs or off):
        return _resampled(headers, wanted)
    if off:
        raise DataError(
            f"the pixels of {off[0].path} do not lie on the grid of {headers[0].path}.\n"
            "Add --resample to bring both to one grid."
        )
    left, top = (min(box[at] for box, _ in placed) for at in (0, 1))
    right, bottom = (max(box[at] for box, _ in placed) for at in (2, 3))
    sources = [
        Source(header.path, (box[0] - left, box[1] - top, box[2] - left, box[3] - top))
        for header, (box, _) in zip(headers, placed, strict=True)
    ]
    return first.part(Window(left, top, right - left, bottom - top)), tuple(sources)


def _placed(header: Header, first: Grid) -> tuple[Box, float]:
    """Return a file's box in the first one's pixels, and by how much that is rounded."""
    grid = header.grid
    column, row = ~first.transform @ (grid.transform.c, grid.transform.f)
    left, top = round(column), round(row)
    shift = max(abs(column - left), abs(row - top))
    return (left, top, left + grid.width, top + grid.height), shift


def _resampled(headers: Sequence[Header], wanted: float) -> tuple[Grid, tuple[Source, ...]]:
    """Return the grid of a resolution over all files, and each file resampled to it."""
    sides = [header.grid.bounds for header in headers]
    west, south, east, north = (
        pick(side[at] for side in sides) for at, pick in enumerate((min, min, max, max))
    )
    width, height = (max(1, round(size / wanted)) for size in (east - west, north - south))
    grid = Grid(width, height, Affine(wanted, 0, west, 0, -wanted, north), headers[0].grid.crs)
    sources = []
    for header, side in zip(headers, sides, strict=True):
        box = (
            math.floor((side[0] - west) / wanted + 1e-6),
            math.floor((north - side[3]) / wanted + 1e-6),
            min(width, math.ceil((side[2] - west) / wanted - 1e-6)),
            min(height, math.ceil((north - side[1]) / wanted - 1e-6)),
        )
        own = Source(header.path, box, grid.transform @ Affine.translation(*box[:2]))
        sources.append(replace(own, shrinks=header.grid.resolution[0] < wanted))
    return grid, tuple(sources)
