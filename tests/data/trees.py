"""The smallest valid FLAIR #2 tree, written by the specification alone, for tests to damage."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import DataConfig, DataGroups, DatasetConfig
from flair2_exp.config.fields import hints
from flair2_exp.data.flair import FlairSource

AREAS: Final = {
    "D004_2021/Z1_NN": ("IMG_000001", "IMG_000002"),
    "D006_2020/Z2_UF": ("IMG_000003", "IMG_000004"),
    "D015_2020/Z1_UA": ("IMG_000005",),
}
"""Patches by area; the last area is the test tree's."""

TEST_AREA: Final = "D015_2020/Z1_UA"

PRODUCTS: Final = (
    "S2A_MSIL2A_20210103T104431_N0211_R008_T32UMD_20210103T115449",
    "S2B_MSIL2A_20210105T103429_N0211_R108_T32UMD_20210105T134113",
    "S2A_MSIL2A_20210612T104429_N0211_R008_T32UMD_20210612T134409",
    "S2B_MSIL2A_20210930T103029_N0211_R108_T32UMD_20210930T141541",
)


def groups_of(root: Path, **options: Any) -> DataGroups:
    """The groups of a tree.

    Args:
        root: The tree's.
        options: Those of `data` and `dataset` by their names; other groups whole.
    """
    of_data = {name: options.pop(name) for name in hints(DataConfig) if name in options}
    whole = {name: options.pop(name) for name in hints(DataGroups) if name in options}
    dataset = DatasetConfig(root=str(root), **options)
    return DataGroups(data=DataConfig(**{"workers": 0} | of_data), dataset=dataset, **whole)


def source_of(groups: DataGroups, reads: frozenset[str], patch_size: int = 32) -> FlairSource:
    """A tree's source, the size of its patches known."""
    source = FlairSource(groups, reads)
    source.patch_size = patch_size
    return source


@dataclass(frozen=True)
class Tree:
    """A tree's root, and where its files are."""

    root: Path
    areas: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(AREAS))
    test_areas: tuple[str, ...] = (TEST_AREA,)

    def area(self, patch: str) -> str:
        return next(area for area, patches in self.areas.items() if patch in patches)

    def folder(self, part: str, area: str) -> Path:
        """The folder of an area in the part `aerial`, `labels` or `sen`."""
        train = f"flair_{part}_train"
        return self.root / (f"flair_2_{part}_test" if area in self.test_areas else train) / area

    def image(self, patch: str) -> Path:
        return self.folder("aerial", self.area(patch)) / "img" / f"{patch}.tif"

    def mask(self, patch: str) -> Path:
        return self.folder("labels", self.area(patch)) / "msk" / f"MSK{patch[3:]}.tif"

    def series(self, area: str, what: str) -> Path:
        """The file `data.npy`, `masks.npy` or `products.txt` of an area."""
        name = f"SEN2_sp_{area.replace('/', '-')}_{what}"
        return self.folder("sen", area) / "sen" / name

    @property
    def centroids(self) -> Path:
        return self.root / "flair-2_centroids_sp_to_patch.json"

    @property
    def metadata(self) -> Path:
        return self.root / "flair_aerial_metadata.json"


def edit_json(path: Path, remove: str = "", **entries: Any) -> None:
    """Replace entries of a JSON object, or take one out."""
    content = json.loads(path.read_text())
    content.pop(remove, None)
    path.write_text(json.dumps(content | entries))


def write_tree(root: Path, *, size: int = 32, super_area: int = 48, seed: int = 0) -> Tree:
    """Write a valid tree: two training areas of two patches and a test area of one.

    Args:
        root: The folder to fill.
        size: Pixels on a side of a patch.
        super_area: Pixels on a side of the areas' series.
        seed: Of the pixels.
    """
    tree = Tree(root)
    random = np.random.default_rng(seed)
    centroids: dict[str, list[int]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for number, (area, patches) in enumerate(AREAS.items()):
        write_series(tree, area, random, super_area)
        for patch in patches:
            x, y = 900_000.0 + 102.4 * int(patch[-3:]), 6_500_000.0
            corner = (x - 51.2, y + 51.2)
            write_raster(
                tree.image(patch), random.integers(1, 256, (5, size, size)), corner, 102.4 / size
            )
            write_raster(
                tree.mask(patch), random.integers(1, 20, (1, size, size)), corner, 102.4 / size
            )
            centroids[f"{patch}.tif"] = [super_area // 2, super_area // 2 + 1]
            metadata[patch] = {
                "domain": area.split("/")[0],
                "zone": area.split("/")[1],
                "patch_centroid_x": x,
                "patch_centroid_y": y,
                "patch_centroid_z": 39.5,
                "date": f"20{18 + number}-07-09",
                "time": "9h05" if number else "10h33",
                "camera": "UCE-M3-f120-s06" if number else "CAMERA#020",
            }
    tree.centroids.write_text(json.dumps(centroids))
    tree.metadata.write_text(json.dumps(metadata))
    return tree


def write_series(tree: Tree, area: str, random: np.random.Generator, size: int) -> None:
    """Write an area's acquisitions: the first is zero everywhere, as happens at an orbit's edge."""
    data = random.integers(1, 10_000, (len(PRODUCTS), 10, size, size), dtype=np.uint16)
    data[0] = 0
    masks = random.integers(0, 101, (len(PRODUCTS), 2, size, size), dtype=np.uint8)
    tree.series(area, "data.npy").parent.mkdir(parents=True, exist_ok=True)
    np.save(tree.series(area, "data.npy"), data)
    np.save(tree.series(area, "masks.npy"), masks)
    tree.series(area, "products.txt").write_text("".join(f"{line}\n" for line in PRODUCTS))


def write_raster(
    path: Path,
    pixels: NDArray[Any],
    corner: tuple[float, float] = (0.0, 0.0),
    resolution: float = 0.2,
    *,
    dtype: str = "uint8",
    descriptions: tuple[str, ...] = (),
    **profile: object,
) -> None:
    """Write a GeoTIFF of (bands, rows, columns) with its upper left corner in Lambert-93."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    options: dict[str, Any] = {
        "driver": "GTiff",
        "crs": "EPSG:2154",
        "transform": rasterio.Affine(resolution, 0, corner[0], 0, -resolution, corner[1]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", count=count, height=height, width=width, dtype=dtype, **options | profile
        ) as file:
            file.write(pixels.astype(dtype))
            for band, description in enumerate(descriptions, start=1):
                file.set_band_description(band, description)
