"""The header of a GeoTIFF, read by GDAL without decoding a pixel.

GDAL opens a file whose pixels are missing, and tells it only when they are read. The places of the
blocks of pixels tell it at once. A header takes about 0.7 ms without its
reference system, which would take twice that and is left out.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_GDAL: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_NUM_THREADS": "1",
    "GDAL_PAM_ENABLED": "NO",
}
"""Read the file alone: no side files, none written either."""


class TruncatedError(EOFError, ValueError):
    """The file ends before what its header announces."""


class Header(NamedTuple):
    """What a file's header says: samples of a pixel, rows, columns, NumPy's name of their type."""

    bands: int
    height: int
    width: int
    dtype: str


@contextmanager
def open_tiff(path: Path, **options: str) -> Iterator[DatasetReader]:
    """Open a file with GDAL's own GeoTIFF reader and no other.

    Raises:
        ValueError: The file, or what is read of it in the context, is not a sound GeoTIFF.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings(), rasterio.Env(**_GDAL):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff", **options) as file:
                yield file
    except (RasterioError, OSError) as error:
        reason = error.__cause__ or error  # GDAL's own words, where rasterio wraps them
        raise ValueError(" ".join(str(reason).split()).rstrip(": ")) from error


def read_header(path: Path) -> Header:
    """Read a file's header and make sure that its pixels are in the file.

    Raises:
        TruncatedError: A block of pixels lies beyond the end, or was never written.
        ValueError: Not a TIFF, or one whose header makes no sense.
        OSError: The file cannot be looked up.
    """
    size = path.stat().st_size
    with open_tiff(path, GEOREF_SOURCES="NONE") as file:
        end = _end_of_pixels(file)
        header = Header(file.count, file.height, file.width, file.dtypes[0])
    if end > size:
        raise TruncatedError(f"{size:,} bytes, but pixels up to byte {end:,}")
    return header


def _end_of_pixels(file: DatasetReader) -> int:
    """Return the byte behind the last block of pixels."""
    height, width = file.block_shapes[0]
    banded = file.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "BAND"
    end = 0
    for band, row, column in itertools.product(
        range(1, file.count + 1 if banded else 2),
        range(-(-file.height // height)),
        range(-(-file.width // width)),
    ):
        offset, length = (  # 0 or None for a block without a place in the file
            int(file.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=band) or 0)
            for what in ("OFFSET", "SIZE")
        )
        if not (offset and length):
            raise TruncatedError(f"the block {column}, {row} of its pixels was never written")
        end = max(end, offset + length)
    return end
