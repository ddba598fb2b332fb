"""A patch's image and mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair2_exp.data.check.findings import Entry, Finding
from flair2_exp.data.check.names import Area
from flair2_exp.data.check.tiff import open_tiff, read_header
from flair2_exp.errors import some
from flair2_exp.nomenclature import AERIAL_BANDS, CLASSES_19

LARGEST: Final = 4096
"""Pixels on a side beyond which nothing is a patch: such pixels are not even read."""

Size = tuple[int, int]
"""Rows and columns."""


class _Pixels(NamedTuple):
    values: NDArray[Any]
    corner: tuple[float, float]
    resolution: float


def check_patch(
    area: Area, patch: str, findings: list[Finding], *, headers_only: bool
) -> dict[Path, Size]:
    """Check a patch's files, each by itself and one against the other's place.

    Returns:
        The sizes of the files that have a readable header, for `check_sizes` once all are known.
    """
    sizes: dict[Path, Size] = {}
    image = mask = None
    if patch in area.images:
        entry = Entry(area.images[patch], patch, findings)
        image = _check_raster(entry, len(AERIAL_BANDS), sizes, headers_only)
        if image is not None and not image.values.any():
            entry.warn("blank-image", "every pixel of every band is 0")
    if patch in area.masks:
        entry = Entry(area.masks[patch], patch, findings)
        mask = _check_raster(entry, 1, sizes, headers_only)
        if mask is not None:
            _check_classes(entry, mask.values)
        if mask is not None and image is not None:
            _check_place(entry, mask, image)
    return sizes


def check_sizes(areas: Sequence[Area], sizes: Mapping[Path, Size], findings: list[Finding]) -> None:
    """Find the files that are not of the tree's size: the commonest square one."""
    files = (path for area in areas for path in (*area.images.values(), *area.masks.values()))
    known = Counter(sizes[path] for path in files if path in sizes)
    squares = {size: count for size, count in known.items() if size[0] == size[1] <= LARGEST}
    tree_size = max(squares, key=squares.__getitem__, default=None)
    wanted = "not a square" if tree_size is None else f"not {_shown(tree_size)} like the others"
    for area in areas:
        for patch, path in area.images.items():
            if path in sizes and sizes[path] != tree_size:
                message = f"{_shown(sizes[path])}, {wanted}"
                Entry(path, patch, findings).error("wrong-shape", message)
        for patch, path in area.masks.items():
            image_size = sizes.get(area.images[patch]) if patch in area.images else None
            if path not in sizes or sizes[path] in (tree_size, image_size):
                continue
            entry = Entry(path, patch, findings)
            if image_size is not None and image_size == tree_size:
                message = f"{_shown(sizes[path])} for an image of {_shown(image_size)}"
                entry.error("shape-mismatch", message)
            else:
                entry.error("wrong-shape", f"{_shown(sizes[path])}, {wanted}")


def _shown(size: Size) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _check_raster(
    entry: Entry, bands: int, sizes: dict[Path, Size], headers_only: bool
) -> _Pixels | None:
    """Check a file by itself; note its size and return its pixels, where they can be read."""
    header = entry.read(read_header, "unreadable-raster", "truncated-raster")
    if header is None:
        return None
    sizes[entry.path] = header.height, header.width
    if header.bands != bands:
        entry.error("wrong-bands", f"{header.bands} bands instead of {bands}")
    if header.dtype != "uint8":
        entry.error("wrong-dtype", f"{header.dtype} instead of uint8")
    if headers_only or max(header.height, header.width) > LARGEST:
        return None
    return entry.read(_read_pixels, "damaged-raster")


def _read_pixels(path: Path) -> _Pixels:
    with open_tiff(path) as file:
        place = file.transform
        return _Pixels(file.read(), (place.c, place.f), abs(place.a))


def _check_classes(entry: Entry, values: NDArray[Any]) -> None:
    """Find values that no class has."""
    classes = [land_cover.value for land_cover in CLASSES_19]
    strange = [str(value) for value in np.setdiff1d(values, classes).tolist()]
    if strange:
        message = f"values {some(strange, 5)}, where {classes[0]} to {classes[-1]} are classes"
        entry.error("bad-mask-values", message)


def _check_place(entry: Entry, mask: _Pixels, image: _Pixels) -> None:
    """Find a mask that lies elsewhere than its image, by more than half a pixel.

    Corners are compared, not reference systems: some masks carry one without a code. A corner at
    (0, 0) is a file without a place.
    """
    away = max(abs(a - b) for a, b in zip(image.corner, mask.corner, strict=True))
    placed = (0.0, 0.0) not in (image.corner, mask.corner)
    if placed and away > 0.5 * max(image.resolution, mask.resolution):
        entry.warn("misplaced-mask", f"lies {away:,.1f} m away from its image")
