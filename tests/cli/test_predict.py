"""The verb predict, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.windows import Window

from flair2_exp.config.data import SampleConfig
from flair2_exp.data.grids import Grid
from flair2_exp.data.sample.scene import Scene, write_scene
from flair2_exp.inference.mapping import MapOptions
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.surroundings import Flight, surroundings_of
from flair2_exp.lifecycle.folder import RunFolder, run_folders
from flair2_exp.lifecycle.record import FINISHED, RunRecord
from flair2_exp.tracking.tags import Tag
from tests.commands import Answer, answer
from tests.inference.conftest import trained


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    return trained(root, "unet", "model=unet", "data=aerial_only")


@pytest.fixture(scope="module")
def utt(root: Path) -> Path:
    return trained(root, "utt", "model=utt", "metadata=on", "s2_preproc.size=16")


@pytest.fixture(scope="module")
def scene(root: Path) -> Scene:
    return write_scene(root / "scene", patches=2, options=SampleConfig(patch_size=64, domains=6))


def refused(made: Answer, *words: str) -> None:
    """A mistake: in one or two lines, and nothing else."""
    assert made.status in (1, 2), made
    assert 1 <= len(made.err.strip().splitlines()) <= 3, made.err
    for word in words:
        assert word in made.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN"], "name --image FILE, or --split test"),
        (["RUN", "--image", "a.tif", "--split", "test"], "name --image FILE, or --split test"),
        (["RUN", "--image", "a.tif"], "--image needs --out"),
        (["RUN", "--image", "a.tif", "--out", "b.tif", "--score"], "--score goes with --split"),
        (["RUN", "--split", "test", "--series", "s2"], "--series goes with --image"),
        (["RUN", "--split", "test", "--join", "crop"], "--join goes with --image"),
        (["--split", "test"], "name a RUN, or several with --ensemble"),
        (["RUN", "--ensemble", "OTHER", "--split", "test"], "name a RUN, or several"),
        (["RUN", "--weights", "1", "--split", "test"], "--weights are of an --ensemble"),
        (["nowhere", "--split", "test"], "nowhere: there is no such run"),
        (["RUN", "--split", "test", "--tta", "d8"], "'d8' is not one of"),
        (["RUN", "--image", "a.tif", "--out", "b.tif", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_anything_is_loaded(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(answer("predict", *words), message)
    assert not any(tmp_path.iterdir())


def test_an_image_becomes_a_map_with_all_that_was_asked_for(
    run: Path, scene: Scene, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "map.tif"
    made = answer(
        "predict", str(run), "--image", str(scene.image), "--out", str(out), "--confidence",
        "--probabilities", "water", "building", "--polygons", "50", "--tta", "flips",
    )  # fmt: skip
    assert made.status == 0, made.err
    assert "128 x 128 pixels, 100.0% of them mapped" in made.out
    names = {each.name for each in out.parent.iterdir()}
    assert names == {
        "map.tif", "map.confidence.tif", "map.probabilities.tif", "map.qml", "map.legend.png",
        "map.gpkg",
    }  # fmt: skip
    with rasterio.open(out) as file, rasterio.open(scene.image) as image:
        assert (file.crs, file.transform, file.shape) == (image.crs, image.transform, image.shape)
        assert set(np.unique(file.read(1))) <= set(range(1, 14))
        assert "--tta flips" in file.tags()["FLAIR2_COMMAND"]
    with rasterio.open(out.with_name("map.probabilities.tif")) as file:
        assert file.descriptions == ("water", "building")

    refused(
        answer("predict", str(run), "--image", str(scene.image), "--out", str(out)), str(out),
        "--overwrite",
    )  # fmt: skip


def test_a_network_that_reads_a_series_and_metadata_asks_for_them(
    utt: Path, scene: Scene, tmp_path: Path
) -> None:
    words = ["predict", str(utt), "--image", str(scene.image), "--out", str(tmp_path / "map.tif")]
    refused(answer(*words), "--series FOLDER")
    series = ["--series", str(scene.series)]
    refused(answer(*words, *series), "--flight")
    refused(answer(*words, *series, "--flight", "2021", "10h33", "UCE", "120"), "flight")
    assert not any(tmp_path.iterdir())
    made = answer(*words, *series, "--flight", *str(scene.flight).split())
    assert made.status == 0, made.err
    assert (tmp_path / "map.tif").is_file()


def test_a_split_becomes_rasters(run: Path, tmp_path: Path) -> None:
    made = answer("predict", str(run), "--split", "test", "--out", str(tmp_path / "maps"),
                  "--workers", "0")  # fmt: skip
    assert made.status == 0, made.err
    files = list((tmp_path / "maps").glob("D*/Z*/PRED_*.tif"))
    assert f"{len(files)} patches" in made.out
    assert len(files) == 4


def test_without_a_place_a_split_is_scored_as_a_run_of_the_leaderboard(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAIR2_EXP_ROOT", str(tmp_path))
    words = ["predict", str(run), "--split", "test", "--tta", "d4", "--workers", "0"]
    made = answer(*words, "--name", "turned")
    assert made.status == 0, made.err
    (folder,) = run_folders(tmp_path)
    record = RunRecord.read(folder)
    assert record is not None
    assert record.status == FINISHED
    assert record.row == "turned"
    assert record.tags[Tag.MEMBERS]
    scores = json.loads(folder.metrics.read_text())
    own = json.loads(RunFolder(run).metrics.read_text())
    assert scores["test/patches"] == own["test/patches"]
    assert scores["test/miou"] != own["test/miou"]

    refused(answer("predict", str(run), "--split", "test"), "--tta d4")  # which is its own test


def test_scores_of_another_part_are_printed_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAIR2_EXP_ROOT", str(tmp_path))
    made = answer("predict", str(run), "--split", "validation", "--workers", "0")
    assert made.status == 0, made.err
    assert "val/miou" in made.out
    assert not any(tmp_path.iterdir())


def test_each_tile_of_a_map_reads_the_series_about_its_own_centre(
    utt: Path, scene: Scene, tmp_path: Path
) -> None:
    assert scene.series is not None
    flight = Flight.parse(scene.flight)
    predictor = Predictor.from_run(utt)
    options = MapOptions(overlap=0, series=scene.series, flight=flight)
    predictor.predict_raster(scene.image, tmp_path / "map.tif", options)
    with rasterio.open(scene.image) as file:
        image, grid = file.read(), Grid.of(scene.image)
    with rasterio.open(tmp_path / "map.tif") as file:
        made = file.read(1)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        window = Window(64 * column, 64 * row, 64, 64)
        x, y = grid.centre(window)
        crs = CRS.from_epsg(2154)
        beside = surroundings_of(predictor, crs, (x, y, x, y), series=scene.series, flight=flight)
        assert beside is not None
        acquisitions, metadata = beside.of(x, y)
        assert acquisitions is not None
        rows, columns = window.toslices()
        own = predictor.predict(
            image[:, rows, columns],
            acquisitions.frames,
            acquisitions.dates,
            metadata,
            probabilities=acquisitions.probabilities,
        )
        assert np.array_equal(made[rows, columns], own.classes + 1)
