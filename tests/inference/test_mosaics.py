"""Patches of an area as one raster, compared with pixels laid into an array."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.crs import CRS

from flair2_exp.data.grids import Grid
from flair2_exp.inference.mosaics import Mosaic, OffGridError
from flair2_exp.inference.rasters import NODATA, Layer, write_layer
from flair2_exp.nomenclature import FLAIR_13
from tests.inference.outputs_made import TAGS, blocks, grid

PLACES = st.lists(st.tuples(st.integers(-700, 700), st.integers(-700, 700)), min_size=1, max_size=6)


def placed(column: int, row: int, width: int = 90, height: int = 70) -> Grid:
    """A patch's grid, at an offset in pixels."""
    return grid(width, height, west=600_000 + 0.2 * column, north=6_600_000 - 0.2 * row)


@settings(max_examples=15)
@given(places=PLACES, kind=st.sampled_from(["classes", "probabilities"]))
def test_each_pixel_is_that_of_the_last_patch_that_covers_it_else_nodata(
    places: list[tuple[int, int]], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    layer = Layer(kind, FLAIR_13, ("water", "other"))  # type: ignore[arg-type]
    expected = np.full((layer.bands, 1600, 1700), NODATA, np.uint8)
    random, files, grids = np.random.default_rng(0), [], []
    for number, (column, row) in enumerate(places):
        pixels = random.integers(0, 13, (layer.bands, 70, 90), dtype=np.uint8)
        files.append(folder / f"{number}.tif")
        grids.append(placed(column, row))
        write_layer(files[-1], grids[-1], layer, blocks(pixels), TAGS)
        expected[:, row + 700 : row + 770, column + 700 : column + 790] = layer.values[pixels]
    Mosaic.of(grids).write(folder / "mosaic.tif", files, layer, TAGS)
    west, north = min(each[0] for each in places), min(each[1] for each in places)
    with rasterio.open(folder / "mosaic.tif") as file:
        pixels = file.read()
        assert file.transform.almost_equals(placed(west, north).transform, 1e-6)
        assert file.crs == grids[0].crs
        assert file.descriptions == layer.descriptions
    rows, columns = slice(north + 700, None), slice(west + 700, None)
    expected = expected[:, rows, columns][:, : pixels.shape[1], : pixels.shape[2]]
    assert (pixels == expected).all()
    east, south = max(each[0] for each in places) + 90, max(each[1] for each in places) + 70
    assert pixels.shape[1:] == (south - north, east - west)


def test_patches_far_apart_take_only_their_own_room(tmp_path: Path) -> None:
    layer = Layer("classes", FLAIR_13)
    grids = [placed(0, 0), placed(80_000, 60_000)]
    files = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path, each in zip(files, grids, strict=True):
        write_layer(path, each, layer, blocks(np.full((1, 70, 90), 3, np.uint8)), TAGS)
    Mosaic.of(grids).write(tmp_path / "mosaic.tif", files, layer, TAGS)
    assert (tmp_path / "mosaic.tif").stat().st_size < 1_000_000


@pytest.mark.parametrize(("other", "reason"), [
    (placed(90, 0).part(rasterio.windows.Window(0.5, 0, 90, 70)), "between each other's pixels"),
    (replace(placed(90, 0), transform=Affine(0.25, 0, 600_000, 0, -0.25, 6_600_000)), "resolution"),
    (replace(placed(90, 0), transform=Affine(0, 0.2, 600_000, 0.2, 0, 6_600_000)), "resolution"),
    (replace(placed(90, 0), crs=CRS.from_epsg(32631)), "differ in CRS"),
    (None, "no place on the ground"),
])  # fmt: skip
def test_patches_that_share_no_grid_are_no_mosaic(other: Grid | None, reason: str) -> None:
    with pytest.raises(OffGridError, match=reason):
        Mosaic.of([placed(0, 0), other])
