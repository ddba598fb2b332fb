"""A small data set of GeoTIFF pairs, made by rasterio alone, to train on and to damage."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.data.trees import write_raster

CLASSES: Final = (
    (10, "forest", "#0a5f1c"),
    (20, "field", "#e0c040"),
    (30, "water", "#1553ae"),
    (40, "road", "#555555"),
    (50, "roof", "#c02020"),
)
IGNORED: Final = 255
BANDS: Final = ("nir", "red", "green", "blue")
PARTS: Final = {"train": 4, "validation": 1, "test": 2}
"""Areas of each part; each has two patches."""


def write_pairs(root: Path, *, size: int = 64, kind: str = "uint16", seed: int = 0) -> Path:
    """Write pairs of four bands and five classes, with patches.csv and classes.csv; return root."""
    random = np.random.default_rng(seed)
    rows = []
    areas = [(part, at) for part, count in PARTS.items() for at in range(count)]
    for number, (part, at) in enumerate(areas):
        for patch in range(2):
            name = f"{part}_{at}_{patch}"
            image, mask = made(random, size, kind)
            write_raster(root / "images" / f"{name}.tif", image, dtype=kind, descriptions=BANDS)
            write_raster(root / "masks" / f"{name}.tif", mask[None], nodata=IGNORED)
            rows.append((f"images/{name}.tif", f"masks/{name}.tif", f"area{number}", part))
    write_table(root / "patches.csv", ("image", "mask", "area", "part"), rows)
    write_table(root / "classes.csv", ("value", "name", "colour"), CLASSES)
    return root


def made(random: np.random.Generator, size: int, kind: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """A mask (H, W) of blocks, some of no class, and an image (4, H, W) in its classes' colours."""
    blocks = random.integers(0, len(CLASSES) + 1, (size // 8, size // 8))
    classes = np.kron(blocks, np.ones((8, 8), np.int64))
    values = np.array([value for value, *_ in CLASSES] + [IGNORED], np.uint8)
    top = 1.0 if kind == "float32" else float(np.iinfo(kind).max)
    colours = np.random.default_rng(7).uniform(0.1, 0.9, (len(values), 4))
    noise = random.normal(0, 0.02, (size, size, 4))
    image = np.moveaxis(colours[classes] + noise, -1, 0).clip(0, 1) * top
    return image.astype(kind), values[classes]


def write_table(path: Path, head: tuple[str, ...], rows: Any) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def lines_of(root: Path) -> list[dict[str, str]]:
    with (root / "patches.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rewrite(root: Path, rows: list[dict[str, str]]) -> None:
    write_table(root / "patches.csv", tuple(rows[0]), [row.values() for row in rows])
