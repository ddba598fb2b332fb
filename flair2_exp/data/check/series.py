"""An area's satellite series: two arrays and a list of products."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from flair2_exp.data.arrays import DATA_TYPES, MASK_TYPES, open_array, read_header
from flair2_exp.data.check.findings import Entry, Finding
from flair2_exp.data.layout import SeriesFiles
from flair2_exp.data.sentinel2 import acquisition_dates
from flair2_exp.errors import some
from flair2_exp.nomenclature import SATELLITE_BANDS

CHANNELS: Final = ("snow", "cloud")


class SeriesShape(NamedTuple):
    """Acquisitions, rows and columns of an area's arrays."""

    acquisitions: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.acquisitions} acquisitions of {self.height} x {self.width}"


def check_series(
    area: str, files: SeriesFiles, findings: list[Finding], *, headers_only: bool
) -> SeriesShape | None:
    """Check the three files of an area and whether they agree.

    Args:
        area: Like "D004_2021/Z1_NN".
        files: Reflectances, (T, 10, H, W) uint16; snow and cloud probabilities, (T, 2, H, W),
            0..100; one product name per line.
        findings: Receives what is wrong.
        headers_only: Whether to leave the arrays' values unread.

    Returns:
        The shape of the arrays, where one of them tells it.
    """
    data, masks, products = (Entry(path, area, findings) for path in files)
    data_shape = _check_array(data, len(SATELLITE_BANDS), DATA_TYPES)
    masks_shape = _check_array(masks, len(CHANNELS), MASK_TYPES)
    if data_shape is not None and masks_shape is not None and data_shape != masks_shape:
        masks.error("series-mismatch", f"{masks_shape}, where the data holds {data_shape}")
    shape = data_shape or masks_shape
    _check_products(products, shape)
    damaged = {finding.path for finding in findings}
    if not headers_only and data_shape is not None and data.path not in damaged:
        _check_values(data)
    if not headers_only and masks_shape is not None and masks.path not in damaged:
        _check_probabilities(masks)
    return shape


def _check_array(entry: Entry, channels: int, types: tuple[str, ...]) -> SeriesShape | None:
    """Check an array by its header; return its shape, None where it cannot be that of a series."""
    header = entry.read(read_header, "unreadable-array", "truncated-array")
    if header is None:
        return None
    shape = header.shape
    if header.dtype.hasobject:
        entry.error("object-array", "holds pickled objects, which are never loaded")
        return None
    size = entry.path.stat().st_size
    if size < header.length:
        message = f"{size:,} bytes, where its header announces {header.length:,}"
        entry.error("truncated-array", message)
    elif size > header.length:
        message = f"{size - header.length:,} bytes more than its header announces"
        entry.error("trailing-bytes", message)
    if header.dtype.str not in types:
        wanted = " or ".join(np.dtype(name).name for name in types)
        message = f"{header.dtype.str} ({header.dtype.name}) instead of {wanted}, little-endian"
        entry.error("wrong-dtype", message)
    if len(shape) != 4:
        entry.error("wrong-dimensions", f"shape {shape} instead of (T, {channels}, H, W)")
        return None
    if shape[1] != channels:
        entry.error("wrong-channels", f"{shape[1]} channels instead of {channels}")
    if 0 in shape:
        entry.error("no-acquisitions", f"shape {shape} holds no acquisition")
        return None
    return SeriesShape(shape[0], shape[2], shape[3])


def _check_products(entry: Entry, shape: SeriesShape | None) -> None:
    """Find lines without a date, and another number of them than of acquisitions."""
    text = entry.read(lambda path: path.read_text(encoding="utf-8"), "unreadable-text")
    if text is None:
        return
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    products = {number: line for number, line in lines if line}
    undated = [str(number) for number, line in products.items() if not _is_dated(line)]
    if undated:
        message = f"no date in characters 11 to 18 of line {some(undated)}"
        entry.error("undated-product", message)
    if shape is not None and len(products) != shape.acquisitions:
        message = f"{len(products)} products for {shape.acquisitions} acquisitions"
        entry.error("product-count", message)


def _is_dated(product: str) -> bool:
    try:
        return len(acquisition_dates([product])) == 1
    except ValueError:
        return False


def _check_values(entry: Entry) -> None:
    """Find a series without any value; single frames of zeros do occur, where an orbit ends."""
    if not any(frame.any() for frame in open_array(entry.path)):
        entry.warn("blank-series", "every pixel of every acquisition is 0")


def _check_probabilities(entry: Entry) -> None:
    """Find values that are not per cent."""
    largest = [int(frame.max()) for frame in open_array(entry.path)]
    bad = [str(number) for number, value in enumerate(largest) if value > 100]
    if bad:
        message = f"probabilities up to {max(largest)}, where 100 is certain, in frame {some(bad)}"
        entry.error("bad-probability", f"{message} (from 0)")
