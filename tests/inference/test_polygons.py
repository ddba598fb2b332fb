"""Polygons of class rasters, compared with SciPy's regions and burnt into pixels again."""

from __future__ import annotations

import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from scipy import ndimage

from flair2_exp.data.grids import Grid
from flair2_exp.errors import ConfigError, DataError, UsageError
from flair2_exp.inference.polygons import write_polygons
from flair2_exp.inference.rasters import NODATA, Layer, write_layer
from flair2_exp.nomenclature import FLAIR_13
from tests.inference.outputs_made import TAGS, blocks, grid

PIXEL = 0.04  # m²


def written(path: Path, classes: np.ndarray, place: Grid | None = None) -> Path:
    """A class raster of (H, W) indices."""
    place = place or grid(classes.shape[1], classes.shape[0])
    write_layer(path, place, Layer("classes", FLAIR_13), blocks(classes[None]), TAGS)
    return path


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The polygons as GeoJSON, and the fields."""
    meta, _, geometry, fields = pyogrio.raw.read(path)
    return [_geojson(each) for each in geometry], {
        name: list(each) for name, each in zip(meta["fields"], fields, strict=True)
    }


def _geojson(content: bytes) -> dict[str, Any]:
    order, kind, count = struct.unpack_from("<BII", content)
    assert (order, kind) == (1, 3)
    offset, rings = 9, []
    for _ in range(count):
        (points,) = struct.unpack_from("<I", content, offset)
        numbers = np.frombuffer(content, "<f8", 2 * points, offset + 4)
        rings.append(numbers.reshape(-1, 2).tolist())
        offset += 4 + 16 * points
    return {"type": "Polygon", "coordinates": rings}


def regions(classes: np.ndarray) -> Counter[tuple[int, int]]:
    """Value and number of pixels of each region of pixels that share an edge."""
    counts: Counter[tuple[int, int]] = Counter()
    for index in np.unique(classes[classes != NODATA]):
        labelled, _ = ndimage.label(classes == index)
        counts.update((int(index) + 1, int(n)) for n in np.bincount(labelled.ravel())[1:])
    return counts


def drawn(height: int, width: int, grain: int, seed: int, empty: float = 0.1) -> np.ndarray:
    """Indices in squares of `grain` pixels; some are nodata."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 4, (-(-height // grain), -(-width // grain))).astype(np.uint8)
    small[random.random(small.shape) < empty] = NODATA
    return np.kron(small, np.ones((grain, grain), np.uint8))[:height, :width]


@settings(max_examples=15)
@given(height=st.integers(1, 60), width=st.integers(1, 60), grain=st.integers(1, 9),
       seed=st.integers(0, 99))  # fmt: skip
def test_polygons_are_the_regions_of_the_raster(
    height: int, width: int, grain: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    classes = drawn(height, width, grain, seed)
    raster = written(folder / "landcover.tif", classes)
    summary = write_polygons(raster, folder / "landcover.gpkg", FLAIR_13)
    shapes, fields = read(summary.path)
    assert (summary.polygons, summary.left_out) == (len(shapes), 0)
    areas = [round(area / PIXEL) for area in fields["area_m2"]]
    assert Counter(zip(fields["value"], areas, strict=True)) == regions(classes)
    burnt = np.full(classes.shape, NODATA, np.uint8)
    if shapes:
        values = zip(shapes, fields["value"], strict=True)
        rasterize(values, out=burnt, transform=grid(1, 1).transform)
    with rasterio.open(raster) as file:
        assert (burnt == file.read(1)).all()


def test_polygons_are_whole_across_blocks_and_tell_class_colour_and_crs(tmp_path: Path) -> None:
    classes = np.zeros((700, 1300), np.uint8)
    classes[500:600, 400:1200] = 4  # water, in six blocks
    raster = written(tmp_path / "landcover.tif", classes)
    summary = write_polygons(raster, tmp_path / "map.gpkg", FLAIR_13)
    _, fields = read(summary.path)
    assert sorted(zip(*fields.values(), strict=True)) == [
        (1, "building", "#db0e9a", pytest.approx((700 * 1300 - 80_000) * PIXEL)),
        (5, "water", "#1553ae", pytest.approx(80_000 * PIXEL)),
    ]
    info = pyogrio.read_info(summary.path)
    assert (info["crs"], info["layer_name"]) == ("EPSG:2154", "map")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["landcover.tif", "map.gpkg"]


@settings(max_examples=10)
@given(grain=st.integers(1, 5), seed=st.integers(0, 99), pixels=st.integers(2, 200))
def test_no_polygon_is_smaller_than_asked_for_and_no_area_is_lost_beside_a_large_one(
    grain: int, seed: int, pixels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    classes = drawn(64, 64, grain, seed, empty=0)
    classes[:, :32] = 7  # one that is large enough, which all others can reach
    classes[40:50, 5:20] = NODATA  # stays so, small as it is
    raster = written(folder / "landcover.tif", classes)
    summary = write_polygons(raster, folder / "x.gpkg", FLAIR_13, smallest=pixels * PIXEL)
    _, fields = read(summary.path)
    assert min(fields["area_m2"]) >= pixels * PIXEL * (1 - 1e-6)
    lost = (64 * 64 - 150) * PIXEL - sum(fields["area_m2"])
    assert lost == pytest.approx(0 if summary.left_out == 0 else lost, abs=1e-6)
    assert lost >= -1e-6


@pytest.mark.parametrize("grain", [1, 5, 16])
def test_no_area_is_lost_where_all_polygons_are_small(grain: int, tmp_path: Path) -> None:
    raster = written(tmp_path / "landcover.tif", drawn(512, 512, grain, 0, empty=0))
    summary = write_polygons(raster, tmp_path / "x.gpkg", FLAIR_13, smallest=1500 * PIXEL)
    assert summary.left_out == 0
    assert sum(read(summary.path)[1]["area_m2"]) == pytest.approx(512 * 512 * PIXEL)


def test_what_is_too_small_becomes_part_of_its_largest_neighbour(tmp_path: Path) -> None:
    classes = np.full((60, 60), NODATA, np.uint8)
    classes[:, :30] = 1
    classes[10:12, 28:30] = 3  # within 1
    classes[50:52, 50:52] = 4  # alone in nodata
    raster = written(tmp_path / "landcover.tif", classes)
    summary = write_polygons(raster, tmp_path / "x.gpkg", FLAIR_13, smallest=5 * PIXEL)
    assert (summary.polygons, summary.left_out) == (1, 1)
    assert read(summary.path)[1]["area_m2"] == [pytest.approx(1800 * PIXEL)]
    same = write_polygons(raster, tmp_path / "y.gpkg", FLAIR_13, smallest=4 * PIXEL)
    assert (same.polygons, same.left_out) == (3, 0)


def test_area_is_in_square_metres_in_a_crs_of_feet(tmp_path: Path) -> None:
    place = Grid(10, 10, Affine(2, 0, 0, 0, -2, 0), CRS.from_epsg(2263))  # US survey feet
    raster = written(tmp_path / "landcover.tif", np.zeros((10, 10), np.uint8), place)
    summary = write_polygons(raster, tmp_path / "x.gpkg", FLAIR_13)
    assert read(summary.path)[1]["area_m2"] == [pytest.approx(400 * (1200 / 3937) ** 2)]


def test_a_raster_without_predictions_gives_an_empty_layer(tmp_path: Path) -> None:
    raster = written(tmp_path / "landcover.tif", np.full((20, 20), NODATA, np.uint8))
    assert write_polygons(raster, tmp_path / "x.gpkg", FLAIR_13).polygons == 0
    assert pyogrio.read_info(tmp_path / "x.gpkg")["features"] == 0


@pytest.mark.parametrize("crs", [None, CRS.from_epsg(4326)])
def test_a_raster_whose_areas_nobody_knows_is_refused(crs: CRS | None, tmp_path: Path) -> None:
    place = Grid(10, 10, Affine(2, 0, 0, 0, -2, 0), crs)
    raster = written(tmp_path / "landcover.tif", np.zeros((10, 10), np.uint8), place)
    with pytest.raises(DataError, match="the area of polygons is not known"):
        write_polygons(raster, tmp_path / "x.gpkg", FLAIR_13)
    assert [each.name for each in tmp_path.iterdir()] == ["landcover.tif"]


def test_other_rasters_values_and_areas_are_refused(tmp_path: Path) -> None:
    confidence = tmp_path / "confidence.tif"
    pixels = np.full((1, 10, 10), 250, np.uint8)
    write_layer(confidence, grid(10, 10), Layer("confidence", FLAIR_13), blocks(pixels), TAGS)
    out = tmp_path / "x.gpkg"
    with pytest.raises(DataError, match="pixels of 250, which is not a value"):
        write_polygons(confidence, out, FLAIR_13)
    with pytest.raises(DataError, match=r"missing\.tif"):
        write_polygons(tmp_path / "missing.tif", out, FLAIR_13)
    with pytest.raises(UsageError, match="0 or more"):
        write_polygons(confidence, out, FLAIR_13, smallest=-1)
    assert [each.name for each in tmp_path.iterdir()] == ["confidence.tif"]
    out.write_bytes(b"earlier")
    with pytest.raises(ConfigError, match="is there already"):
        write_polygons(confidence, out, FLAIR_13)


def test_a_truncated_raster_is_named_and_leaves_the_earlier_file(tmp_path: Path) -> None:
    raster = written(tmp_path / "landcover.tif", drawn(600, 600, 1, 0))
    with raster.open("r+b") as file:
        file.truncate(raster.stat().st_size // 2)
    (tmp_path / "x.gpkg").write_bytes(b"earlier")
    for smallest in (0, 1):
        with pytest.raises(DataError, match=r"landcover\.tif"):
            write_polygons(raster, tmp_path / "x.gpkg", FLAIR_13, smallest=smallest, overwrite=True)
    assert (tmp_path / "x.gpkg").read_bytes() == b"earlier"


def test_without_pyogrio_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    with pytest.raises(ConfigError, match=r"pip install 'flair2-exp\[vector\]'"):
        write_polygons(tmp_path / "landcover.tif", tmp_path / "x.gpkg", FLAIR_13)
