"""Files as one image: bands, places, resolutions, mosaics, what holds data; areas of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform_geom

from flair2_exp.data.grids import Grid
from flair2_exp.errors import DataError, UsageError
from flair2_exp.inference.area import area_of
from flair2_exp.inference.image import Image, open_image, raster_settings
from flair2_exp.inference.predictor import Predictor
from tests.inference.mapping_made import METRES, checkpoint, pixels, raster


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    path = checkpoint(tmp_path_factory.mktemp("network") / "unet.ckpt")
    return Predictor.from_run(path, device="cpu")


def whole(image: Image) -> tuple[np.ndarray, np.ndarray]:
    with raster_settings():
        return image.read((0, 0, image.grid.width, image.grid.height))


def test_bands_are_chosen_by_name_whatever_their_order(
    predictor: Predictor, tmp_path: Path
) -> None:
    values = pixels(20, 30)
    names = ("elevation", "Blue", "extra", "nir", "green", "RED")
    mixed = np.stack([values[at] for at in (4, 2, 0, 3, 1, 0)])
    described = raster(tmp_path / "described.tif", mixed, names=names)
    assert np.array_equal(whole(open_image([described], predictor))[0], values)
    bare = raster(tmp_path / "bare.tif", mixed, names=())
    assert np.array_equal(whole(open_image([bare], predictor, bands=names))[0], values)
    in_order = raster(tmp_path / "in_order.tif", values, names=())
    assert np.array_equal(whole(open_image([in_order], predictor))[0], values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": pixels(9, 9)[:3]}, "has no band 'nir'"),
        ({"values": pixels(9, 9)[:3], "names": ()}, "has 3 bands; the run reads red"),
        ({"values": np.repeat(pixels(9, 9), 2, axis=0), "names": ()}, "--bands red green blue"),
        ({"values": pixels(9, 9).astype(np.uint16)}, "holds uint16; the run reads uint8"),
        ({"metres": 0.5}, "pixels of 0.5 x 0.5 m; the run reads 1.6 m.\nAdd --resample"),
        ({"crs": None}, "no coordinate reference system"),
        ({"crs": "EPSG:4326", "metres": 1e-5}, "whose pixels are not metres"),
        (
            {"transform": rasterio.Affine.rotation(10) @ rasterio.Affine.scale(1.6, -1.6)},
            "rotated, sheared or mirrored",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_the_run_does_not_read_is_refused(
    options: dict[str, Any], message: str, predictor: Predictor, tmp_path: Path
) -> None:
    image = raster(tmp_path / "image.tif", **{"values": pixels(9, 9), **options})
    with pytest.raises(DataError) as caught:
        open_image([image], predictor)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_files_that_are_not_there_or_no_rasters_are_refused(
    predictor: Predictor, tmp_path: Path
) -> None:
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    for path, message in ((tmp_path / "none.tif", "no such file"), (text, "cannot be read")):
        with pytest.raises(DataError, match=message):
            open_image([path], predictor)


def test_later_files_of_a_mosaic_lie_on_top_where_they_hold_data(
    predictor: Predictor, tmp_path: Path
) -> None:
    first, second = pixels(20, 30, low=1), pixels(20, 30, seed=1, low=1)
    second[:, :5] = 0
    paths = [
        raster(tmp_path / "first.tif", first, nodata=0),
        raster(tmp_path / "second.tif", second, nodata=0, west=600_000 + 20 * METRES,
               north=6_500_000 + 10 * METRES),
    ]  # fmt: skip
    image = open_image(paths, predictor)
    assert (image.grid.width, image.grid.height) == (50, 30)
    expected = np.zeros((5, 30, 50), np.uint8)
    expected[:, 10:, :30] = first
    expected[:, 5:20, 20:] = second[:, 5:]
    values, valid = whole(image)
    assert np.array_equal(values, expected)
    assert np.array_equal(valid, expected.any(axis=0))


def test_files_that_do_not_go_together_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    first = raster(tmp_path / "first.tif", pixels(20, 30))
    other: list[tuple[dict[str, Any], str]] = [
        ({"crs": "EPSG:32631"}, "in another coordinate reference system"),
        ({"metres": 0.8}, "of another resolution"),
        ({"names": ()}, "of other bands"),
        ({"values": pixels(20, 30).astype(np.uint16)}, "of another type"),
        ({"west": 600_000.7}, "do not lie on the grid"),
    ]
    for options, message in other:
        path = raster(tmp_path / "other.tif", **{"values": pixels(20, 30), **options})
        with pytest.raises(DataError, match=message):
            open_image([first, path], predictor)


def test_another_resolution_is_resampled_on_request(predictor: Predictor, tmp_path: Path) -> None:
    fine = np.kron(pixels(20, 30, low=1), np.ones((1, 2, 2), np.uint8))
    image = open_image(
        [raster(tmp_path / "fine.tif", fine, metres=METRES / 2)], predictor, resample=True
    )
    values, valid = whole(image)
    assert np.array_equal(values, pixels(20, 30, low=1))  # means of four equal pixels
    assert valid.all()
    coarse = open_image(
        [raster(tmp_path / "coarse.tif", pixels(10, 15), metres=METRES * 2)],
        predictor, resample=True,
    )  # fmt: skip
    values, valid = whole(coarse)
    assert (coarse.grid.width, coarse.grid.height) == (30, 20)
    assert coarse.grid.resolution == (METRES, METRES)
    assert valid.all()


def test_what_a_mask_hides_stays_hidden_when_it_is_resampled(
    predictor: Predictor, tmp_path: Path
) -> None:
    path = raster(tmp_path / "image.tif", pixels(40, 60, low=1), metres=METRES / 2)
    hole = np.zeros((40, 60), bool)
    hole[:, 30:] = True
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(~hole)
    _, valid = whole(open_image([path], predictor, resample=True))
    assert np.array_equal(valid, ~hole[::2, ::2])


def test_resampled_windows_are_those_of_the_whole(predictor: Predictor, tmp_path: Path) -> None:
    path = raster(tmp_path / "image.tif", pixels(90, 110), metres=1.1)
    image = open_image([path], predictor, resample=True)
    values, _ = whole(image)
    with raster_settings():
        part, _ = image.read((13, 7, 41, 52))
    assert np.array_equal(part, values[:, 7:52, 13:41])


def test_pixels_that_are_not_finite_hold_no_data(predictor: Predictor, tmp_path: Path) -> None:
    values = pixels(9, 9).astype(np.float32)
    values[4, 2, 3], values[0, 5, 5] = np.nan, -9999
    path = raster(tmp_path / "image.tif", values, nodata=-9999)
    image = Image(Grid.of(path), open_image_sources(path), (1, 2, 3, 4, 5), np.dtype(np.float32))
    expected = np.ones((9, 9), bool)
    expected[2, 3] = expected[5, 5] = False
    assert np.array_equal(whole(image)[1], expected)


def open_image_sources(path: Path) -> Any:
    from flair2_exp.inference.image import Source

    grid = Grid.of(path)
    return (Source(path, (0, 0, grid.width, grid.height)),)


# Areas.


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid.of(raster(tmp_path / "grid.tif", pixels(40, 50)))


def polygons(path: Path, rings: list[list[tuple[float, float]]], grid: Grid) -> Path:
    """A GeoJSON, in degrees, of polygons in pixels of a grid."""
    shapes = []
    for ring in rings:
        corners = [tuple(grid.transform @ corner) for corner in [*ring, ring[0]]]
        shape = {"type": "Polygon", "coordinates": [corners]}
        shapes.append(transform_geom(grid.crs, "EPSG:4326", shape))
    features = [{"type": "Feature", "properties": {}, "geometry": each} for each in shapes]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_an_area_of_polygons_is_brought_to_the_images_system(grid: Grid, tmp_path: Path) -> None:
    rings = [[(5.2, 5.2), (20.2, 5.2), (20.2, 30.2), (5.2, 30.2)],
             [(30.2, 10.2), (45.2, 10.2), (45.2, 12.2)]]  # fmt: skip
    area = area_of(grid, polygons(tmp_path / "area.geojson", rings, grid), None)
    inside = area.inside((0, 0, 50, 40))
    assert inside[5:30, 5:20].all()
    assert inside[10, 31:44].any()
    assert not inside[:, 21:30].any()
    assert not inside[30:].any()
    assert area.box[:2] == (5, 5)
    assert np.array_equal(area.inside((3, 8, 19, 33)), inside[8:33, 3:19])


def test_bounds_are_the_pixels_whose_centres_they_hold(grid: Grid) -> None:
    west, _, _, north = grid.bounds
    bounds = (west + 2.4 * METRES, north - 9.6 * METRES, west + 7.6 * METRES, north - 4.6 * METRES)
    assert area_of(grid, None, bounds).box == (2, 5, 8, 10)


def test_an_area_that_cannot_be_mapped_is_refused(grid: Grid, tmp_path: Path) -> None:
    path = polygons(tmp_path / "far.geojson", [[(500, 500), (510, 500), (510, 510)]], grid)
    with pytest.raises(DataError, match="does not touch the image"):
        area_of(grid, path, None)
    with pytest.raises(DataError, match="does not touch the image"):
        area_of(grid, None, (0.0, 0.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="expected west south east north"):
        area_of(grid, None, (5.0, 0.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="give one of them"):
        area_of(grid, path, (0.0, 0.0, 1.0, 1.0))
    with pytest.raises(DataError, match="no such file"):
        area_of(grid, tmp_path / "none.gpkg", None)
    path.write_text("no polygons")
    with pytest.raises(DataError, match="cannot be read"):
        area_of(grid, path, None)
    point = {"type": "Point", "coordinates": [2, 47]}
    path.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": point}))
    with pytest.raises(DataError, match="holds Point; expected polygons"):
        area_of(grid, path, None)
