from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject, transform
from scipy.ndimage import map_coordinates

from flair2_exp.config.data import S2PreprocConfig, SampleConfig
from flair2_exp.data import layout, sentinel2
from flair2_exp.data.readers import read_series
from flair2_exp.data.sample.tree import ensure_sample
from flair2_exp.errors import DamagedPatchError, DataError
from flair2_exp.inference.patches import Acquisitions
from flair2_exp.inference.series import Bounds, SeriesFolder, open_series
from tests.data.trees import groups_of
from tests.inference.series_made import (
    BANDS,
    DATES,
    LAMBERT,
    Area,
    area,
    write_images,
    write_stack,
    write_tif,
)

SIZE = 16
MADE = area()
FORMS = ("bands", "file", "stack")


def opened(
    folder: Path, size: int = SIZE, *, masks: bool = True, about: Any = None
) -> SeriesFolder:
    """A folder, checked at one place: the area's middle."""
    x, y = MADE.centre(20, 24) if about is None else about
    return open_series(
        folder, LAMBERT, sizes=frozenset({size}), bounds=(x, y, x, y), masks=masks
    )  # fmt: skip


def in_order(cut: Acquisitions) -> list[NDArray[Any]]:
    """Frames, probabilities and dates by date."""
    order = np.argsort(cut.dates, kind="stable")
    assert cut.probabilities is not None
    return [cut.frames[order], cut.probabilities[order], cut.dates[order]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("series")
    made = {form: write_images(root / form, MADE, form) for form in ("bands", "file", "none")}
    return {**made, "stack": write_stack(root / "stack", MADE)}


# Equal grids.


@settings(max_examples=25)
@given(form=st.sampled_from(FORMS), row=st.integers(12, 28), column=st.integers(12, 36),
       size=st.sampled_from([2, 8, 16, 24]))  # fmt: skip
def test_on_its_own_grid_a_cut_is_the_crop_of_the_arrays(
    folders: dict[str, Path], form: str, row: int, column: int, size: int
) -> None:
    cut = opened(folders[form], size).at(*MADE.centre(row, column))
    rows, columns = sentinel2.crop_window((row, column), size, MADE.data.shape[2:])
    frames, masks, dates = in_order(cut)
    np.testing.assert_array_equal(frames, MADE.data[:, :, rows, columns])
    np.testing.assert_array_equal(masks, MADE.masks[:, :, rows, columns])
    assert dates.astype(str).tolist() == list(DATES)
    assert (frames.dtype, masks.dtype) == (np.uint16, np.uint8)


@pytest.mark.parametrize("form", ["images", "stack"])
def test_a_patch_of_the_data_set_gets_the_series_that_its_reader_gives(
    tmp_path: Path, form: str
) -> None:
    sample = SampleConfig(
        patch_size=32, domains=6, areas_per_domain=1, patches_per_area=2, super_patch=24
    )
    groups = groups_of(ensure_sample(tmp_path / "tree", sample))
    index = layout.index(layout.locate(groups.dataset))
    patch = int(np.flatnonzero(index.area_test[index.area])[1])
    files = index.series_files(int(index.area[patch]))
    record, centroid = index.metadata[patch], index.centroids[patch]
    place = Affine(10, 0, record["x"] - 10 * centroid[1], 0, -10, record["y"] + 10 * centroid[0])
    dates = [text[11:19] for text in files.products.read_text().splitlines()]
    made = Area(np.load(files.data), np.load(files.masks), dates)
    folder = tmp_path / "series"
    if form == "images":
        write_images(folder, made, place=place)
    else:
        write_stack(folder, made, f'{{"crs": "EPSG:2154", "transform": {list(place)[:6]}}}')
    series = opened(folder, 24, about=(record["x"], record["y"]))
    cut = series.at(float(record["x"]), float(record["y"]))
    for size in (16, 24):  # of a member that reads fewer pixels: the middle
        for monthly in (False, True):
            options = S2PreprocConfig(cloud_filter=True, monthly=monthly, size=size)
            expected = read_series(files, centroid, options)
            result = cut.preprocessed(options)
            np.testing.assert_array_equal(result.frames, expected.frames)
            np.testing.assert_array_equal(result.days, expected.days)


def test_an_odd_surplus_of_pixels_has_no_middle() -> None:
    cut = Acquisitions(MADE.data[..., :17, :17], np.array(DATES, "datetime64[D]"))
    with pytest.raises(DataError, match="17 x 17 pixels: the run reads 16 x 16"):
        cut.preprocessed(S2PreprocConfig(size=16))


# Other grids.


def smooth(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
    """A field on the ground, (10, …), in reflectance × 10,000."""
    waves = (np.sin(xs / (90 + 7 * band)) + np.cos(ys / (110 + 5 * band)) for band in range(10))
    return np.stack([3000 + 1000 * wave for wave in waves])


@pytest.mark.parametrize("code", [32631, 32632, 3035])
@pytest.mark.parametrize("pixel", [10.0, 20.0])
def test_in_another_crs_a_cut_is_what_gdal_makes_of_the_file(
    tmp_path: Path, code: int, pixel: float
) -> None:
    crs, about = CRS.from_epsg(code), (700_123.4, 6_600_456.7)
    (east,), (north,) = transform(LAMBERT, crs, [about[0]], [about[1]])
    count = int(900 / pixel)
    place = Affine(pixel, 0, round(east) - 450, 0, -pixel, round(north) + 450)
    columns, rows = np.meshgrid(np.arange(count) + 0.5, np.arange(count) + 0.5)
    xs, ys = place.c + pixel * columns, place.f - pixel * rows
    pixels = np.rint(smooth(xs, ys)).astype(np.uint16)
    path = write_tif(tmp_path / "20200730.tif", pixels, place=place, crs=crs)
    frames = opened(tmp_path, 40, masks=False, about=about).at(*about).frames
    target = Affine(10, 0, about[0] - 200, 0, -10, about[1] + 200)
    expected = np.zeros((10, 40, 40), np.uint16)
    with rasterio.open(path) as file:
        reproject(
            rasterio.band(file, list(range(1, 11))), expected, dst_transform=target,
            dst_crs=LAMBERT, resampling=Resampling.bilinear, tolerance=0, XSCALE=1, YSCALE=1,
        )  # fmt: skip
    assert np.abs(frames[0].astype(int) - expected).max() <= 1  # how halves are rounded


@settings(max_examples=25)
@given(dx=st.floats(-60, 60), dy=st.floats(-60, 60))
def test_between_pixels_reflectances_are_bilinear_and_probabilities_the_nearest(
    folders: dict[str, Path], dx: float, dy: float
) -> None:
    x, y = MADE.centre(20, 24)
    cut = opened(folders["bands"]).at(x + dx, y + dy)
    frames, masks, _ = in_order(cut)
    rows = 12 - round(dy / 10, 6) + np.arange(SIZE)
    columns = 16 + round(dx / 10, 6) + np.arange(SIZE)
    points = np.meshgrid(rows, columns, indexing="ij")
    for frame, band in ((0, 0), (3, 9)):
        image = MADE.data[frame, band].astype(np.float64)
        expected = map_coordinates(image, points, order=1)
        np.testing.assert_allclose(frames[frame, band], expected, rtol=0, atol=0.51)
    nearest = (np.floor(each + 0.5).astype(int) for each in (rows, columns))
    np.testing.assert_array_equal(masks, MADE.masks[:, :, *np.ix_(*nearest)])


def test_files_may_differ_in_crs_and_a_date_of_two_tiles_is_two_acquisitions(
    tmp_path: Path,
) -> None:
    x, y = MADE.centre(20, 24)
    for number, code in enumerate((2154, 32631)):
        crs = CRS.from_epsg(code)
        (east,), (north,) = transform(LAMBERT, crs, [x], [y])
        place = Affine(10, 0, round(east) - 300, 0, -10, round(north) + 300)
        constant = np.full((10, 60, 60), 500 * (number + 1), np.uint16)
        write_tif(tmp_path / f"T{number}_20200730.tif", constant, place=place, crs=crs)
    cut = opened(tmp_path, masks=False).at(x, y)
    assert sorted(frame.ravel()[0] for frame in cut.frames) == [500, 1000]
    assert all((frame == frame.ravel()[0]).all() for frame in cut.frames)


# What does not cover a place.


def test_a_date_without_data_somewhere_in_the_cut_is_left_out_there_alone(tmp_path: Path) -> None:
    data = MADE.data.copy()
    data[1, :, 0:5, :] = 0  # Sentinel-2's own nodata
    data[2, 0:9, 18, 20] = 0  # dark, and yet data
    write_images(tmp_path, Area(data, MADE.masks))
    series = opened(tmp_path)
    for row, dates in ((20, set(DATES)), (13, set(DATES)), (12, set(DATES) - {DATES[1]})):
        cut = series.at(*MADE.centre(row, 24))
        assert set(cut.dates.astype(str)) == dates


@pytest.mark.parametrize("form", ["nodata", "mask"])
def test_a_file_says_itself_what_has_no_data(tmp_path: Path, form: str) -> None:
    write_images(tmp_path, Area(MADE.data[:1], MADE.masks[:1], DATES[:1]))
    pixels, names = MADE.data[1].copy(), BANDS
    pixels[:, 20, 24] = 65_535
    options = {"nodata": 65_535} if form == "nodata" else {}
    path = write_tif(tmp_path / "20200901.tif", pixels, names, **options)
    if form == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            file.write_mask((pixels[0] != 65_535).astype(np.uint8) * 255)
    series = opened(tmp_path, masks=False)
    assert series.at(*MADE.centre(20, 24)).dates.astype(str).tolist() == [DATES[0]]
    assert len(series.at(*MADE.centre(10, 10)).dates) == 2


def test_a_date_that_ends_within_the_cut_is_left_out_there(tmp_path: Path) -> None:
    write_images(tmp_path, MADE)
    write_tif(tmp_path / "20200901.tif", MADE.data[0][:, :, :24], BANDS)
    series = opened(tmp_path, masks=False)
    assert len(series.at(*MADE.centre(20, 16)).dates) == len(DATES) + 1
    assert len(series.at(*MADE.centre(20, 17)).dates) == len(DATES)


def test_a_place_that_no_date_covers_is_named(folders: dict[str, Path]) -> None:
    series = opened(folders["stack"])
    with pytest.raises(DataError, match=r"covers the 160 m about x = 700010, y = 6599800 \(EPSG:"):
        series.at(*MADE.centre(20, 1))


@pytest.mark.parametrize(
    "bounds",
    [
        (900_000, 6_500_000, 900_500, 6_500_500),
        (700_080, 6_599_700, 700_410, 6_599_900),  # one pixel too far to the east
        (700_074, 6_599_700, 700_100, 6_599_900),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_series_of_another_place_or_too_small_is_refused_before_it_is_read(
    folders: dict[str, Path], form: str, bounds: Bounds
) -> None:
    with pytest.raises(DataError, match="does not cover the map") as raised:
        open_series(folders[form], LAMBERT, sizes=frozenset({SIZE}), bounds=bounds)
    assert "700000 6599600 700480 6600000" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2


def test_a_series_that_just_reaches_is_taken(folders: dict[str, Path]) -> None:
    bounds = (700_080, 6_599_680, 700_400, 6_599_920)
    series = open_series(folders["file"], LAMBERT, sizes=frozenset({8, SIZE}), bounds=bounds)
    for x in bounds[::2]:
        for y in bounds[1::2]:
            assert series.at(x, y).frames.shape == (5, 10, SIZE, SIZE)


# Who reads, and in what order.


def cut_at(job: tuple[SeriesFolder, tuple[float, float]]) -> list[NDArray[Any]]:
    return in_order(job[0].at(*job[1]))


@pytest.mark.parametrize("kind", ["threads", "fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["file", "stack"])
def test_a_cut_depends_on_the_place_alone(folders: dict[str, Path], form: str, kind: str) -> None:
    series = opened(folders[form])
    places = [MADE.centre(row, 24) for row in range(10, 30)] + [(700_203.7, 6_599_777.1)]
    expected = [cut_at((series, place)) for place in places]  # and this process has files open
    pool: Executor
    if kind == "threads":
        pool = ThreadPoolExecutor(4)
    else:
        pool = ProcessPoolExecutor(2, multiprocessing.get_context(kind))
    with pool:
        jobs = [(series, place) for place in reversed(places)]
        for results, wanted in zip(pool.map(cut_at, jobs), reversed(expected), strict=True):
            for result, each in zip(results, wanted, strict=True):
                np.testing.assert_array_equal(result, each)


# Names, bands and tags.


@pytest.mark.parametrize(
    "name",
    [
        "S2A_MSIL2A_20200229T104431_N0211_R008_T32UMD_20200303T115449",
        "T31TCJ_20200229T105031_10m",
        "lyon 2020-02-29",
        "20200229",
        "id_99999999_2020-02-29_v2",
    ],
)
def test_dates_are_read_from_names(tmp_path: Path, name: str) -> None:
    write_tif(tmp_path / f"{name}.TIFF", MADE.data[0])
    assert opened(tmp_path, masks=False).dates.astype(str).tolist() == ["2020-02-29"]


def test_a_date_may_stand_in_the_tag_alone(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "spring.tif", MADE.data[0])
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2020:04:05 10:43:00")
    assert opened(tmp_path, masks=False).dates.astype(str).tolist() == ["2020-04-05"]


def test_bands_are_found_by_their_descriptions(tmp_path: Path) -> None:
    names = ["cloud probability", *reversed(BANDS), "B1, coastal", "snow"]
    names[names.index("B2")] = "B02, central wavelength 490 nm"
    pixels = np.concatenate(
        (MADE.masks[0, 1:], MADE.data[0, ::-1], MADE.data[1, :1], MADE.masks[0, :1])
    ).astype(np.uint16)
    write_tif(tmp_path / "20200105.tif", pixels, names)
    cut = opened(tmp_path).at(*MADE.centre(20, 24))
    np.testing.assert_array_equal(cut.frames[0], MADE.data[0, :, 12:28, 16:32])
    assert cut.probabilities is not None
    np.testing.assert_array_equal(cut.probabilities[0], MADE.masks[0, :, 12:28, 16:32])


def test_probabilities_are_not_needed_where_nothing_is_filtered(folders: dict[str, Path]) -> None:
    assert opened(folders["none"], masks=False).at(*MADE.centre(20, 24)).probabilities is None


def test_products_with_an_offset_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "S2B_MSIL2A_20220612T104429_N0400_R008_T32UMD_20220612T134409.tif"
    write_tif(tmp_path / name, MADE.data[0])
    with caplog.at_level(logging.WARNING):
        opened(tmp_path, masks=False)
    assert "subtract 1,000 unless that was done" in caplog.text


# Mistakes.


def refused(folder: Path, *parts: str, masks: bool = True) -> None:
    """Expect an error in two lines that holds some parts."""
    with pytest.raises(DataError) as raised:
        opened(folder, masks=masks)
    text = str(raised.value)
    assert all(part in text for part in parts), text
    assert len(text.splitlines()) <= 2, text


PIXELS = MADE.data[0]


@pytest.mark.parametrize(
    ("name", "pixels", "options", "part"),
    [
        ("20200105", PIXELS, {"crs": None}, "no CRS; expected one in metres"),
        ("20200105", PIXELS, {"crs": CRS.from_epsg(4326)}, "EPSG:4326 is not a projected CRS"),
        ("20200105", PIXELS, {"place": Affine(60, 0, 7e5, 0, -60, 66e5)}, "pixels of 60 x 60 m"),
        ("20200105", PIXELS, {"place": Affine(1, 0, 7e5, 0, -1, 66e5)}, "pixels of 1 x 1 m"),
        ("spring", PIXELS, {}, "no date in its name"),
        ("20200230", PIXELS, {}, "no date in its name"),
        ("20200105", PIXELS[:9], {}, "9 bands without descriptions"),
        ("20200105", np.concatenate((PIXELS, PIXELS[:2])), {}, "12 bands without descriptions"),
        ("20200105", PIXELS, {"names": (*BANDS[:9], "B1")}, "no band described B12"),
        ("20200105", PIXELS.astype(np.float32) / 10_000, {}, "bands of float32; expected uint16"),
        ("20200105", PIXELS.astype(np.int16), {}, "bands of int16; expected uint16"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_acquisition_is_refused(
    tmp_path: Path, name: str, pixels: NDArray[Any], options: dict[str, Any], part: str
) -> None:
    path = write_tif(tmp_path / f"{name}.tif", pixels, **options)
    refused(tmp_path, str(path), part, masks=False)


def test_a_map_without_a_projected_crs_is_refused(folders: dict[str, Path]) -> None:
    for crs in (CRS(), CRS.from_epsg(4326)):
        with pytest.raises(DataError, match="the map: "):
            open_series(folders["bands"], crs, sizes=frozenset({SIZE}), bounds=(2, 46, 3, 47))


def test_missing_probabilities_are_refused_where_the_run_filters(folders: dict[str, Path]) -> None:
    refused(folders["none"], f"S2_{DATES[0]}.tif: no snow and cloud", "cloud_filter")


def test_missing_arrays_of_probabilities_are_refused_where_the_run_filters(tmp_path: Path) -> None:
    folder = write_stack(tmp_path / "stack", MADE)
    (folder / "SEN2_masks.npy").unlink()
    refused(folder, "SEN2_masks.npy: no snow and cloud")
    assert opened(folder, masks=False).at(*MADE.centre(20, 24)).probabilities is None


@pytest.mark.parametrize("form", FORMS)
def test_probabilities_beyond_100_are_no_per_cent(tmp_path: Path, form: str) -> None:
    masks = MADE.masks.copy()
    masks[2, 1, 20, 24] = 255
    made = Area(MADE.data, masks)
    folder = tmp_path / "series"
    series = opened(
        write_stack(folder, made) if form == "stack" else write_images(folder, made, form)
    )
    with pytest.raises(DataError, match=r"probability of 255; expected per cent"):
        series.at(*MADE.centre(20, 24))


def test_a_second_file_on_another_grid_is_refused(tmp_path: Path) -> None:
    write_tif(tmp_path / "20200105.tif", PIXELS)
    path = write_tif(tmp_path / "20200105_masks.tif", MADE.masks[0, :, 1:])
    refused(tmp_path, f"{path} is not on the grid")
    write_tif(path, np.repeat(MADE.masks[0], 2, axis=0))
    refused(tmp_path, f"{path} has 4 bands; expected two")


def test_more_than_a_year_is_refused(tmp_path: Path) -> None:
    for date in ("20190105", "20200105", "20200107"):
        write_tif(tmp_path / f"{date}.tif", PIXELS)
    refused(tmp_path, "from 2019-01-05 to 2020-01-07", "one year", masks=False)
    (tmp_path / "20200107.tif").unlink()
    assert len(opened(tmp_path, masks=False).dates) == 2


def test_a_folder_without_acquisitions_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "is not a folder")
    (tmp_path / "notes.txt").write_text("none yet")
    refused(tmp_path, "holds no acquisitions")
    refused(tmp_path / "notes.txt", "is not a folder")


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16},
                                     {"compress": "deflate"}])  # fmt: skip
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_ends_too_early_is_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], share: float
) -> None:
    write_images(tmp_path, MADE, **options)
    path = tmp_path / f"S2_{DATES[3]}.tif"
    os.truncate(path, int(path.stat().st_size * share))
    refused(tmp_path, str(path))


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    write_images(tmp_path, MADE)
    series, place = opened(tmp_path), MADE.centre(20, 24)
    first = in_order(series.at(*place))[0]
    write_images(tmp_path, Area(MADE.data + np.uint16(1), MADE.masks), compress="deflate")
    np.testing.assert_array_equal(in_order(series.at(*place))[0], first + 1)


def test_a_file_that_is_cut_off_later_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, MADE)
    series = opened(tmp_path)
    path = tmp_path / f"S2_{DATES[3]}.tif"
    os.truncate(path, 4000)
    with pytest.raises(DamagedPatchError, match=path.name):
        series.at(*MADE.centre(20, 24))


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("SEN2_data.npy", b"\x93NUMPY", "SEN2_data.npy"),
        ("SEN2_products.txt", b"S2A_MSIL2A_20200105T1", "1 products of 5 acquisitions"),
        ("SEN2_products.txt", b"S2A_MSIL2A_20201305T1", "SEN2_products.txt"),
        ("grid.json", b"{}", "grid.json: 'transform'"),
        ("grid.json", b'{"crs": "EPSG:2154", "transform": [10, 0, 700000]}', "grid.json"),
        ("grid.json", b'{"crs": "nowhere", "transform": [10, 0, 0, 0, -10, 0]}', "grid.json"),
        ("grid.json", b'{"crs": "EPSG:4326", "transform": [10, 0, 0, 0, -10, 0]}', "projected"),
        ("other_data.npy", b"", "holds 2 series"),
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    folder = write_stack(tmp_path / "stack", MADE)
    (folder / name).write_bytes(content)
    refused(folder, part)


def test_arrays_without_a_place_are_refused_with_what_to_write(tmp_path: Path) -> None:
    folder = write_stack(tmp_path / "stack", MADE)
    (folder / "grid.json").unlink()
    refused(folder, "No such file", '{"crs": "EPSG:2154"')


def test_arrays_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    folder = write_stack(tmp_path / "stack", MADE)
    np.save(folder / "SEN2_masks.npy", MADE.masks[:, :, 1:])
    refused(folder, "SEN2_masks.npy: shape (5, 2, 39, 48) of data")


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    folder = write_stack(tmp_path / "stack", MADE)
    np.save(folder / "SEN2_data.npy", np.full((1, 10, 4, 4), None), allow_pickle=True)
    refused(folder, "pickled objects")
