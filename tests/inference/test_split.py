"""A part of a run's own data as rasters: places, mosaics, interrupted commands."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.crs import CRS

from flair2_exp.data.grids import Grid, quiet
from flair2_exp.errors import ConfigError, DataError, UsageError
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.split import predict_split, prediction_name
from tests.commands import forked
from tests.inference.outputs_made import contents
from tests.inference.outputs_run import predictor, trained

__all__ = ["predictor", "trained"]  # fixtures


def test_each_patch_lies_where_its_image_does_with_the_classes_and_probabilities_predicted(
    predictor: Predictor, tmp_path: Path
) -> None:
    data = predictor.data[0]
    patches = data.split.test.tolist()
    with rasterio.open(data.index.mask_path(patches[0]), "r+") as mask:  # as some of FLAIR's
        mask.crs = CRS.from_wkt('LOCAL_CS["unknown",UNIT["metre",1]]')
    steps: list[tuple[int, int]] = []
    summary = predict_split(
        predictor, "test", tmp_path / "out", probabilities=("water", "building"), confidence=True,
        command="a command", progress=lambda *done: steps.append(done),
    )  # fmt: skip
    assert (summary.patches, summary.predicted) == (len(patches),) * 2
    assert steps == [(n + 1, len(patches)) for n in range(len(patches))]
    for patch in predictor.split("test"):
        path = tmp_path / "out" / patch.area / f"PRED_{patch.patch_id[4:]}.tif"
        grid = data.source.grid(patch.patch)
        assert grid is not None
        with rasterio.open(path) as file:
            assert (file.read(1) == patch.prediction.classes + 1).all()
            assert (file.transform, file.crs) == (grid.transform, grid.crs)
            assert file.crs.to_epsg() == 2154
            assert file.tags()["FLAIR2_COMMAND"] == "a command"
        with rasterio.open(path.with_suffix(".probabilities.tif")) as file:
            expected = patch.prediction.probabilities[[4, 0]]
            assert np.abs(file.read() / 250 - expected).max() <= 0.002 + 1e-6
        with rasterio.open(path.with_suffix(".confidence.tif")) as file:
            assert np.abs(file.read(1) / 250 - patch.prediction.confidence).max() <= 0.002 + 1e-6
    assert (tmp_path / "out" / "landcover.qml").is_file()


def on_one_grid(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's patches stand 110 m apart, which is no whole number of pixels of this size."""
    source = predictor.data[0].source
    read = source.grid

    def grid(patch: int) -> Grid:
        made = read(patch)
        assert made is not None
        a, _, west, _, e, north = made.transform[:6]
        west, north = round(west / a) * a, round(north / a) * a
        return replace(made, transform=Affine(a, 0, west, 0, e, north))

    monkeypatch.setattr(source, "grid", grid)


def test_an_areas_patches_are_one_raster_where_they_share_a_grid(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_one_grid(predictor, monkeypatch)
    summary = predict_split(predictor, "test", tmp_path, probabilities=("water",))
    patches = list(predictor.split("test"))
    areas = {each.area for each in patches}
    assert (summary.mosaics, dict(summary.without_mosaic)) == (len(areas), {})
    for patch in patches:
        grid = predictor.data[0].source.grid(patch.patch)
        assert grid is not None
        name = patch.area.replace("/", "_")
        assert (tmp_path / "mosaics" / f"{name}.qml").is_file()
        for suffix in (".tif", ".probabilities.tif"):
            own = tmp_path / patch.area / f"PRED_{patch.patch_id[4:]}{suffix}"
            with (
                rasterio.open(tmp_path / "mosaics" / f"{name}{suffix}") as mosaic,
                rasterio.open(own) as file,
            ):
                column, row = ~mosaic.transform @ (grid.transform.c, grid.transform.f)
                place = rasterio.windows.Window(round(column), round(row), grid.width, grid.height)
                assert (mosaic.read(window=place) == file.read()).all()


def test_patches_that_share_no_grid_have_no_mosaic_which_is_said(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = predict_split(predictor, "test", tmp_path)
    assert summary.mosaics == 0
    assert all("between each other's pixels" in each for each in summary.without_mosaic.values())
    assert "have no mosaic, as D0" in caplog.text
    assert not (tmp_path / "mosaics").exists()
    assert predict_split(predictor, "test", tmp_path, mosaics=False).without_mosaic == {}


def test_patches_without_a_place_have_files_without_a_crs(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor.data[0].source, "grid", lambda patch: None)
    summary = predict_split(predictor, "test", tmp_path)
    assert set(summary.without_mosaic.values()) == {"its patches have no place on the ground"}
    for path in tmp_path.rglob("PRED_*.tif"):
        with quiet(), rasterio.open(path) as file:
            assert (file.crs, file.transform) == (None, Affine.identity())


def test_a_killed_prediction_resumes_and_ends_with_the_same_bytes(
    predictor: Predictor, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"

    def die(done: int, _: int) -> None:
        if done == 2:
            (killed / "D").mkdir(exist_ok=True)
            (killed / "D" / ".PRED_1.tif.0123abcd").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def predict() -> None:
        predict_split(predictor, "test", killed, confidence=True, progress=die)

    assert forked(predict) == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("PRED_*.tif")}
    assert len(before) == 4
    resumed = predict_split(predictor, "test", killed, confidence=True, batch_size=3)
    assert resumed.predicted == resumed.patches - 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    predict_split(predictor, "test", tmp_path / "whole", confidence=True)
    assert contents(killed) == contents(tmp_path / "whole")
    done = predict_split(predictor, "test", killed, confidence=True)
    assert (done.predicted, done.seconds) == (0, 0.0)


def test_files_of_other_networks_or_damaged_ones_are_replaced_only_when_asked(
    predictor: Predictor, trained: Path, tmp_path: Path
) -> None:
    predict_split(predictor, "test", tmp_path)
    expected = contents(tmp_path)
    turned = Predictor.from_run(trained, tta="flips", device="cpu")
    with pytest.raises(ConfigError, match=r"is there already, .*\n.*--overwrite"):
        predict_split(turned, "test", tmp_path)
    assert contents(tmp_path) == expected
    assert predict_split(turned, "test", tmp_path, overwrite=True).predicted == 4
    assert predict_split(predictor, "test", tmp_path, overwrite=True).predicted == 4
    assert contents(tmp_path) == expected
    path = next(tmp_path.rglob("PRED_*.tif"))
    os.truncate(path, 300)
    with pytest.raises(ConfigError, match="damaged"):
        predict_split(predictor, "test", tmp_path)
    assert predict_split(predictor, "test", tmp_path, overwrite=True).predicted == 1
    assert contents(tmp_path) == expected


def test_parts_and_places_that_are_none_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="part 'tests': did you mean test"):
        predict_split(predictor, "tests", tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="is not a folder"):
        predict_split(predictor, "test", tmp_path / "file" / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_patch_that_cannot_be_read_stops_with_its_name_and_keeps_what_is_done(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predictor.split

    def split(part: str, **options: object) -> object:
        patches = whole(part, **options)  # type: ignore[arg-type]
        yield next(patches)

    monkeypatch.setattr(predictor, "split", split)
    with pytest.raises(DataError, match="3 patches cannot be read and were skipped"):
        predict_split(predictor, "test", tmp_path)
    assert len(list(tmp_path.rglob("PRED_*.tif"))) == 1
    monkeypatch.undo()
    assert predict_split(predictor, "test", tmp_path).predicted == 3


@pytest.mark.parametrize(("patch_id", "name"), [
    ("IMG_061946", "PRED_061946.tif"), ("tiles/a 1", "PRED_tiles_a_1.tif"),
    ("../../etc/x", "PRED__.._etc_x.tif"), ("..", "PRED__.tif"), ("été.2", "PRED_été.2.tif"),
])  # fmt: skip
def test_a_prediction_is_named_after_its_patch_and_never_a_path(patch_id: str, name: str) -> None:
    assert prediction_name(patch_id) == name


def test_a_real_patch_gets_the_place_of_its_image(tmp_path: Path) -> None:
    folder = os.environ.get("FLAIR2_REAL_DIR")
    if not folder:
        pytest.skip("FLAIR2_REAL_DIR is not set: the real patches are not here")
    from tests.inference.outputs_run import run_folder

    real = (
        "dataset=real", "split=reference", "split.train_fraction=0.5",
        "model.encoder_weights=null",
    )  # fmt: skip
    run = run_folder(tmp_path, tmp_path / "run", *real, sample=False)
    summary = predict_split(Predictor.from_run(run, device="cpu"), "test", tmp_path / "out")
    assert (summary.patches, summary.mosaics) == (1, 1)
    image = next(Path(folder).rglob("IMG_084558.tif"))
    with (
        rasterio.open(tmp_path / "out" / "D036_2020" / "Z17_UA" / "PRED_084558.tif") as file,
        rasterio.open(image) as original,
    ):
        assert (file.transform, file.crs) == (original.transform, original.crs)
        assert file.shape == (512, 512)
