"""A patch's image and mask."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair2_exp.data.check.findings import Finding, file_problem, some
from flair2_exp.data.check.tiff import Header, TruncatedError, read_header
from flair2_exp.nomenclature import AERIAL_BANDS, CLASSES_19

LARGEST: Final = 4096
"""Pixels on a side beyond which nothing is a patch: such pixels are not even read."""

_GDAL: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_NUM_THREADS": "1",
    "GDAL_PAM_ENABLED": "NO",
}
"""Read the file alone: no side files, none written either."""

Size = tuple[int, int]
"""Rows and columns."""

Sizes = tuple[Size | None, Size | None]
"""Of a patch's image and mask; None for a file without a readable header."""


class PatchSizes(NamedTuple):
    """A patch's files and their sizes."""

    patch: str
    image: Path | None
    mask: Path | None
    sizes: Sizes


class _Pixels(NamedTuple):
    values: NDArray[Any]
    corner: tuple[float, float]
    resolution: float


def check_patch(
    patch: str, image: Path | None, mask: Path | None, *, headers_only: bool
) -> tuple[list[Finding], Sizes]:
    """Check a patch's files, each by itself and one against the other's place.

    Args:
        patch: The patch's id.
        image: Its image; None where there is none to check.
        mask: Its mask, likewise.
        headers_only: Whether to leave the pixels unread.

    Returns:
        What is wrong, and the sizes of image and mask, for `check_sizes` once all are known.
    """
    findings: list[Finding] = []
    headers: list[Header | None] = []
    pixels: list[_Pixels | None] = []
    for path, bands in ((image, len(AERIAL_BANDS)), (mask, 1)):
        header = None if path is None else _header(path, patch, bands, findings)
        headers.append(header)
        sound = header is not None and max(header.height, header.width) <= LARGEST
        read = path is not None and sound and not headers_only
        pixels.append(_pixels(path, patch, findings) if path is not None and read else None)
    if image is not None and pixels[0] is not None and not pixels[0].values.any():
        message = "every pixel of every band is 0"
        findings.append(Finding(image, patch, "blank-image", message, "warning"))
    if mask is not None and pixels[1] is not None:
        findings += _mask_values(mask, patch, pixels[1].values)
        if pixels[0] is not None:
            findings += _place(mask, patch, pixels[0], pixels[1])
    sizes = [None if header is None else (header.height, header.width) for header in headers]
    return findings, (sizes[0], sizes[1])


def check_sizes(patches: Iterable[PatchSizes]) -> list[Finding]:
    """Find the patches that are not of the tree's size: the commonest square one."""
    patches = list(patches)
    counts: dict[Size, int] = {}
    for patch in patches:
        for size in patch.sizes:
            if size is not None and size[0] == size[1] <= LARGEST:
                counts[size] = counts.get(size, 0) + 1
    expected = max(counts, key=lambda size: counts[size], default=None)
    wanted = "a square" if expected is None else f"{expected[0]} x {expected[1]} like the others"
    findings = []
    for name, image, mask, (image_size, mask_size) in patches:
        if image is not None and image_size not in (None, expected):
            findings.append(Finding(image, name, "wrong-shape", f"{_of(image_size)}, not {wanted}"))
        if mask is None or mask_size in (None, expected):
            continue
        if image_size is not None and image_size == expected:
            message = f"{_of(mask_size)} for an image of {_of(image_size)}"
            findings.append(Finding(mask, name, "shape-mismatch", message))
        elif mask_size != image_size:
            findings.append(Finding(mask, name, "wrong-shape", f"{_of(mask_size)}, not {wanted}"))
    return findings


def _of(size: Size | None) -> str:
    return "unknown" if size is None else f"{size[0]} x {size[1]} pixels"


def _header(path: Path, patch: str, bands: int, findings: list[Finding]) -> Header | None:
    """Return a file's header, where it is a raster of the right kind."""
    problem = file_problem(path, patch)
    if problem is None:
        try:
            header = read_header(path)
        except TruncatedError as error:
            problem = Finding(path, patch, "truncated-raster", str(error))
        except ValueError as error:
            problem = Finding(path, patch, "unreadable-raster", str(error))
        except OSError as error:
            problem = Finding(path, patch, "unreadable-file", f"cannot be read: {error.strerror}")
    if problem is not None:
        findings.append(problem)
        return None
    if header.bands != bands:
        message = f"{header.bands} bands instead of {bands}"
        findings.append(Finding(path, patch, "wrong-bands", message))
    if header.dtype != "uint8":
        findings.append(Finding(path, patch, "wrong-dtype", f"{header.dtype} instead of uint8"))
    return header


def _pixels(path: Path, patch: str, findings: list[Finding]) -> _Pixels | None:
    """Return a file's pixels, decoded by GDAL's own GeoTIFF reader and by no other."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings(), rasterio.Env(**_GDAL):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as file:
                place = file.transform
                return _Pixels(file.read(), (place.c, place.f), abs(place.a))
    except (RasterioError, OSError, ValueError) as error:
        reason = error.__cause__ or error  # GDAL's own words, where rasterio wraps them
        text = " ".join(str(reason).split()).rstrip(": ")
        message = f"its pixels cannot be decoded ({text[:200]})"
        findings.append(Finding(path, patch, "damaged-raster", message))
        return None


def _mask_values(mask: Path, patch: str, values: NDArray[Any]) -> list[Finding]:
    """Find values that no class has."""
    classes = [land_cover.value for land_cover in CLASSES_19]
    if values.dtype == np.uint8:
        present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    else:
        present = np.unique(values)
    strange = [str(value) for value in present.tolist() if value not in classes]
    if not strange:
        return []
    message = f"values {some(strange, 5)}, where {classes[0]} to {classes[-1]} are classes"
    return [Finding(mask, patch, "bad-mask-values", message)]


def _place(mask: Path, patch: str, image: _Pixels, other: _Pixels) -> list[Finding]:
    """Find a mask that lies elsewhere than its image, by more than half a pixel.

    Corners are compared, not reference systems: some masks carry one without a code. A corner at
    (0, 0) is a file without a place.
    """
    if (0.0, 0.0) in (image.corner, other.corner):
        return []
    away = max(abs(a - b) for a, b in zip(image.corner, other.corner, strict=True))
    if away <= 0.5 * max(image.resolution, other.resolution):
        return []
    message = f"lies {away:,.1f} m away from its image"
    return [Finding(mask, patch, "misplaced-mask", message, "warning")]
