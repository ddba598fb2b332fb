"""An area's satellite series: two arrays and a list of products."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from flair2_exp.data.arrays import DATA_TYPES, MASK_TYPES, Header, open_array, read_header
from flair2_exp.data.check.findings import Finding, file_problem, some
from flair2_exp.data.sentinel2 import acquisition_dates
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
    area: str, data: Path, masks: Path, products: Path, *, headers_only: bool
) -> tuple[list[Finding], SeriesShape | None]:
    """Check the three files of an area and whether they agree.

    Args:
        area: Like "D004_2021/Z1_NN".
        data: Reflectances, (T, 10, H, W) uint16.
        masks: Snow and cloud probabilities, (T, 2, H, W), 0..100.
        products: One product name per line.
        headers_only: Whether to leave the arrays' values unread.

    Returns:
        What is wrong, and the shape of the arrays, where one of them tells it.
    """
    findings: list[Finding] = []
    of_data = _array(data, area, len(SATELLITE_BANDS), DATA_TYPES, findings)
    of_masks = _array(masks, area, len(CHANNELS), MASK_TYPES, findings)
    if of_data is not None and of_masks is not None and of_data != of_masks:
        message = f"{of_masks}, where the data holds {of_data}"
        findings.append(Finding(masks, area, "series-mismatch", message))
    shape = of_data or of_masks
    findings += _products(products, area, shape)
    if not headers_only:
        damaged = {finding.path for finding in findings}
        if of_data is not None and data not in damaged:
            findings += _blank(data, area)
        if of_masks is not None and masks not in damaged:
            findings += _probabilities(masks, area)
    return findings, shape


def _array(
    path: Path, area: str, channels: int, types: tuple[str, ...], findings: list[Finding]
) -> SeriesShape | None:
    """Return an array's shape by its header; None where it cannot be that of a series."""
    problem = file_problem(path, area)
    header = None
    if problem is None:
        try:
            header = read_header(path)
        except EOFError as error:
            problem = Finding(path, area, "truncated-array", str(error))
        except ValueError as error:
            problem = Finding(path, area, "unreadable-array", f"no .npy file: {str(error)[:200]}")
        except OSError as error:
            problem = Finding(path, area, "unreadable-file", f"cannot be read: {error.strerror}")
    if header is None:
        findings += [] if problem is None else [problem]
        return None
    findings += _header_problems(path, area, header, channels, types)
    if len(header.shape) != 4 or 0 in header.shape:
        return None
    return SeriesShape(header.shape[0], header.shape[2], header.shape[3])


def _header_problems(
    path: Path, area: str, header: Header, channels: int, types: tuple[str, ...]
) -> list[Finding]:
    """Find what an array's header says that no series' does; the first that makes the rest moot."""
    if header.dtype.hasobject:
        message = "holds pickled objects, which are never loaded"
        return [Finding(path, area, "object-array", message)]
    size = path.stat().st_size
    findings = []
    if size < header.length:
        message = f"{size:,} bytes, where its header announces {header.length:,}"
        findings.append(Finding(path, area, "truncated-array", message))
    elif size > header.length:
        message = f"{size - header.length:,} bytes more than its header announces"
        findings.append(Finding(path, area, "trailing-bytes", message))
    if header.dtype.str not in types:
        wanted = " or ".join(np.dtype(name).name for name in types)
        message = f"{header.dtype.str} ({header.dtype.name}) instead of {wanted}, little-endian"
        findings.append(Finding(path, area, "wrong-dtype", message))
    if len(header.shape) != 4:
        message = f"shape {header.shape} instead of (T, {channels}, H, W)"
        return [*findings, Finding(path, area, "wrong-dimensions", message)]
    if header.shape[1] != channels:
        message = f"{header.shape[1]} channels instead of {channels}"
        findings.append(Finding(path, area, "wrong-channels", message))
    if 0 in (header.shape[0], *header.shape[2:]):
        message = f"shape {header.shape} holds no acquisition"
        findings.append(Finding(path, area, "no-acquisitions", message))
    return findings


def _products(path: Path, area: str, shape: SeriesShape | None) -> list[Finding]:
    """Find lines without a date, and another number of them than of acquisitions."""
    problem = file_problem(path, area)
    if problem is not None:
        return [problem]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        return [Finding(path, area, "unreadable-text", f"cannot be read as UTF-8 text: {error}")]
    findings = []
    undated = [str(number) for number, line in enumerate(lines, 1) if not _dated(line.strip())]
    if undated:
        message = f"no date in characters 11 to 18 of line {some(undated)}"
        findings.append(Finding(path, area, "undated-product", message))
    count = sum(bool(line.strip()) for line in lines)
    if shape is not None and count != shape.acquisitions:
        message = f"{count} products for {shape.acquisitions} acquisitions"
        findings.append(Finding(path, area, "product-count", message))
    return findings


def _dated(product: str) -> bool:
    """Return whether a line is empty, which is left out, or has a date where products have it."""
    try:
        return not product or len(acquisition_dates([product])) == 1
    except ValueError:
        return False


def _blank(path: Path, area: str) -> list[Finding]:
    """Find a series without any value; single frames of zeros do occur, where an orbit ends."""
    frames = open_array(path)
    if any(frame.any() for frame in frames):
        return []
    message = "every pixel of every acquisition is 0"
    return [Finding(path, area, "blank-series", message, "warning")]


def _probabilities(path: Path, area: str) -> list[Finding]:
    """Find values that are not per cent."""
    frames = open_array(path)
    largest = max(int(frame.max()) for frame in frames)
    if largest <= 100:
        return []
    bad = [str(number) for number, frame in enumerate(frames) if frame.max() > 100]
    message = f"probabilities up to {largest}, where 100 is certain, in frame {some(bad)} (from 0)"
    return [Finding(path, area, "bad-probability", message)]
