"""Maps of rasters of any size: what they show, whatever way the work was divided, and faults."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rio_cogeo import cog_validate

from flair2_exp.errors import (
    ConfigError,
    DamagedPatchError,
    DeviceError,
    FlairError,
    ShortageError,
    UsageError,
)
from flair2_exp.inference import parts, planning
from flair2_exp.inference.mapping import MapOptions, map_raster
from flair2_exp.inference.predictor import Predictor
from flair2_exp.nomenclature import AERIAL_BANDS
from tests.inference.mapping_made import CLASSES, METRES, checkpoint, echo, pixels, raster, read

HIDDEN = "parts"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("network") / "unet.ckpt")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return raster(tmp_path / "image.tif", pixels(230, 300))


def mapped(predictor: Predictor, image: Path, **options: Any) -> bytes:
    out = image.with_name("made.tif")
    map_raster(predictor, [image], out, MapOptions(overwrite=True, **options))
    assert [each.name for each in image.parent.iterdir() if HIDDEN in each.name] == []
    return out.read_bytes()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    overlap=st.integers(0, 8),
    join=st.sampled_from(("blend", "crop")),
    unit=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    batch=st.integers(1, 5),
)
def test_every_pixel_is_mapped_once_at_its_place(
    size: tuple[int, int],
    overlap: int,
    join: Any,
    unit: tuple[int, int],
    batch: int,
    network: Path,
    tmp_path: Path,
) -> None:
    values = pixels(*size)
    image = raster(tmp_path / "image.tif", values)
    options = MapOptions(
        overlap=overlap, join=join, batch_size=batch, confidence=True, overwrite=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "UNIT_TILES", unit)
        made = map_raster(echo(network), [image], tmp_path / "map.tif", options)
    assert np.array_equal(read(made.files["classes"]), values[0] % CLASSES)
    with rasterio.open(made.files["confidence"]) as file:
        assert (file.read(1) == 250).all()
    assert sum(made.pixels.values()) == size[0] * size[1]
    assert made.pixels["nodata"] == 0


def test_blocks_are_cut_and_put_together_at_their_places(network: Path, tmp_path: Path) -> None:
    values = pixels(700, 1100)
    image = raster(tmp_path / "image.tif", values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "UNIT_TILES", (3, 4))
        made = map_raster(echo(network, 128), [image], tmp_path / "map.tif")
    assert np.array_equal(read(made.files["classes"]), values[0] % CLASSES)


@pytest.mark.parametrize("join", ["blend", "crop"])
def test_a_map_is_what_a_plain_loop_over_tiles_gives(
    join: Any, network: Path, image: Path, tmp_path: Path
) -> None:
    predictor, overlap = Predictor.from_run(network, device="cpu"), 20
    made = map_raster(
        predictor, [image], tmp_path / "map.tif", MapOptions(overlap=overlap, join=join)
    )
    reference = plain_loop(predictor, pixels(230, 300), overlap, join)
    best = np.sort(reference, axis=0)
    clear = best[-1] - best[-2] > 2e-3  # weights are whole parts of 1024
    assert clear.mean() > 0.98
    assert len(np.unique(reference.argmax(axis=0))) > 2
    assert np.array_equal(read(made.files["classes"])[clear], reference.argmax(axis=0)[clear])


def plain_loop(predictor: Predictor, values: np.ndarray, overlap: int, join: str) -> np.ndarray:
    """Mean probabilities of all tiles, (C, H, W), in as simple a way as there is."""
    patch, (height, width) = predictor.patch_size, values.shape[1:]
    padded = np.pad(values, ((0, 0), (0, patch), (0, patch)), mode="reflect")
    distance = np.minimum(np.arange(patch) + 0.5, patch - np.arange(patch) - 0.5)
    ramp = np.sin(np.pi / 2 * np.minimum(1, distance / overlap)) ** 2
    if join == "crop":
        ramp = (distance >= overlap / 2).astype(float)
    sums = np.zeros((CLASSES, *padded.shape[1:]))
    total = np.zeros(padded.shape[1:])
    starts = [range(0, size - overlap, patch - overlap) for size in (height, width)]
    for y in starts[0]:
        for x in starts[1]:
            window = np.s_[y : y + patch, x : x + patch]
            weight = np.outer(*(np.where(outer, 1, ramp) for outer in (
                (np.arange(patch) < overlap) & (y == 0), (np.arange(patch) < overlap) & (x == 0),
            )))  # fmt: skip
            predicted = predictor.predict(np.ascontiguousarray(padded[:, *window])).probabilities
            sums[:, *window] += predicted * weight
            total[window] += weight
    inside = np.s_[:height, :width]
    # At the far ends the last tile stands alone, with less than its whole weight.
    return sums[:, *inside] / np.maximum(total[inside], 1e-12)


def test_an_image_of_one_patch_is_predicted_as_that_patch(network: Path, tmp_path: Path) -> None:
    predictor, values = Predictor.from_run(network, device="cpu"), pixels(64, 64)
    image = raster(tmp_path / "image.tif", values)
    chosen = ("water", "building")
    options = MapOptions(confidence=True, probabilities=chosen)
    made = map_raster(predictor, [image], tmp_path / "map.tif", options)
    own = predictor.predict(values)
    assert np.array_equal(read(made.files["classes"]), own.classes)
    with rasterio.open(made.files["confidence"]) as file:
        assert np.array_equal(file.read(1), np.rint(own.confidence * 250))
    with rasterio.open(made.files["probabilities"]) as file:
        indexes = [own.nomenclature.names.index(name) for name in chosen]
        assert np.array_equal(file.read(), np.rint(own.probabilities[indexes] * 250))
    assert made.predicted == 1


@pytest.mark.parametrize("join", ["blend", "crop"])
def test_the_same_bytes_whatever_order_batches_and_units(
    join: Any, network: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_run(network, device="cpu")
    made = mapped(predictor, image, join=join)
    for batch_size, unit in ((1, (1, 1)), (3, (2, 3)), (64, (100, 1))):
        monkeypatch.setattr(planning, "UNIT_TILES", unit)
        assert mapped(predictor, image, join=join, batch_size=batch_size) == made
    whole = planning.Plan.units
    shuffled = lambda plan: [*reversed(whole(plan))]  # noqa: E731
    monkeypatch.setattr(planning, "UNIT_TILES", (2, 2))
    monkeypatch.setattr(planning.Plan, "units", shuffled)
    assert mapped(predictor, image, join=join) == made


def test_each_tile_is_predicted_once_but_for_the_borders_of_units(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = raster(tmp_path / "image.tif", pixels(96, 96))
    for join, overlap, unit, tiles in (
        ("blend", 0, (2, 2), 36), ("crop", 4, (2, 2), 64), ("blend", 4, (9, 9), 64),
        ("blend", 4, (4, 8), 64 + 8), ("blend", 4, (4, 4), 81),
    ):  # fmt: skip
        monkeypatch.setattr(planning, "UNIT_TILES", unit)
        predictor, calls = echo(network), list[tuple[int, int]]()
        made = map_raster(
            predictor, [image], tmp_path / "map.tif",
            MapOptions(overlap=overlap, join=join, overwrite=True),  # type: ignore[arg-type]
            progress=lambda done, total, calls=calls: calls.append((done, total)),  # type: ignore[misc]
        )  # fmt: skip
        assert predictor.seen == made.predicted == tiles, (join, overlap, unit)
        assert calls == [(done, tiles) for done in range(1, tiles + 1)]


# Nodata, areas.


def test_nodata_is_never_a_class_and_empty_tiles_are_not_predicted(
    network: Path, tmp_path: Path
) -> None:
    values = pixels(100, 120, low=1)
    hole = np.zeros((100, 120), bool)
    hole[20:90, 30:100] = True
    values[:, hole] = 0
    values[0, 5, 5] = 0  # the value of a shadow
    image = raster(tmp_path / "image.tif", values, nodata=0)
    predictor = echo(network)
    made = map_raster(predictor, [image], tmp_path / "map.tif")
    assert np.array_equal(read(made.files["classes"]), np.where(hole, 255, values[0] % CLASSES))
    assert made.pixels["nodata"] == hole.sum()
    assert predictor.seen == made.predicted > 0 < made.skipped


@pytest.mark.parametrize("kind", ["option", "alpha", "mask", "no value"])
def test_what_is_nodata_is_said_by_option_alpha_or_mask(
    kind: str, network: Path, tmp_path: Path
) -> None:
    values, hole = pixels(40, 50, low=1), np.zeros((40, 50), bool)
    hole[:, 25:] = True
    path, options = tmp_path / "image.tif", MapOptions()
    if kind == "alpha":
        with_alpha = np.concatenate([values, np.where(hole, 0, 255).astype(np.uint8)[None]])
        raster(path, with_alpha)
        with rasterio.open(path, "r+") as file:
            colours = rasterio.enums.ColorInterp
            file.colorinterp = [*[colours.undefined] * 5, colours.alpha]
    elif kind == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            raster(path, values)
            with rasterio.open(path, "r+") as file:
                file.write_mask(~hole)
    else:
        values[:, hole] = 7
        raster(path, values)
        options = MapOptions(nodata=7) if kind == "option" else MapOptions()
    made = map_raster(echo(network), [path], tmp_path / "map.tif", options)
    expected = (
        values[0] % CLASSES if kind == "no value" else np.where(hole, 255, values[0] % CLASSES)
    )
    assert np.array_equal(read(made.files["classes"]), expected)


def test_a_raster_without_any_data_is_a_map_without_any(network: Path, tmp_path: Path) -> None:
    image = raster(tmp_path / "image.tif", np.zeros((5, 40, 50), np.uint8), nodata=0)
    made = map_raster(echo(network), [image], tmp_path / "map.tif")
    assert (read(made.files["classes"]) == 255).all()
    assert (made.predicted, made.pixels["nodata"]) == (0, 2000)


def test_bounds_give_the_same_pixels_as_the_whole_map(
    network: Path, image: Path, tmp_path: Path
) -> None:
    predictor = Predictor.from_run(network, device="cpu")
    whole = map_raster(predictor, [image], tmp_path / "whole.tif").files["classes"]
    left, top, right, bottom = 41, 75, 183, 200
    bounds = (
        600_000 + left * METRES, 6_500_000 - bottom * METRES,
        600_000 + right * METRES, 6_500_000 - top * METRES,
    )  # fmt: skip
    made = map_raster(predictor, [image], tmp_path / "part.tif", MapOptions(bounds=bounds))
    assert (made.width, made.height) == (right - left, bottom - top)
    assert made.skipped > 0
    assert np.array_equal(read(made.files["classes"]), read(whole)[top:bottom, left:right])
    with rasterio.open(made.files["classes"]) as file:
        assert np.allclose(file.bounds, bounds)


# Faults.


def interrupted(predictor: Predictor, image: Path, at: int = 7, **options: Any) -> Path:
    """A map that was stopped at a tile; its folder of parts."""

    def stop(done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_raster(
            predictor, [image], image.with_name("map.tif"), MapOptions(**options), progress=stop
        )
    return image.with_name(".map.tif.parts")


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "UNIT_TILES", (2, 2))


@pytest.mark.usefixtures("small_units")
def test_a_stopped_map_resumes_and_ends_with_the_same_bytes(
    network: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_run(network, device="cpu")
    whole = mapped(predictor, image)
    out = image.with_name("map.tif")
    folder = interrupted(predictor, image)
    kept = sorted(each.name for each in folder.glob("*.npz"))
    assert kept
    assert not out.exists()
    monkeypatch.setattr(planning, "UNIT_TILES", (3, 1))  # the division is the first start's
    made = map_raster(predictor, [image], out)
    assert made.resumed == len(kept)
    assert out.read_bytes() == whole
    assert not folder.exists()


@pytest.mark.usefixtures("small_units")
def test_a_damaged_part_is_predicted_again(network: Path, image: Path) -> None:
    predictor = Predictor.from_run(network, device="cpu")
    whole = mapped(predictor, image)
    part = next(interrupted(predictor, image).glob("*.npz"))
    part.write_bytes(part.read_bytes()[:-30])
    assert map_raster(predictor, [image], image.with_name("map.tif")).resumed == 0
    assert image.with_name("map.tif").read_bytes() == whole


@pytest.mark.usefixtures("small_units")
def test_parts_of_another_map_are_refused_or_removed(network: Path, image: Path) -> None:
    predictor = Predictor.from_run(network, device="cpu")
    folder = interrupted(predictor, image)
    out = image.with_name("map.tif")
    with pytest.raises(ConfigError, match=r"unfinished map made otherwise \(join\).*\n.*overwrite"):
        map_raster(predictor, [image], out, MapOptions(join="crop"))
    assert folder.exists()
    os.utime(image, (1, 1))
    with pytest.raises(ConfigError, match=r"\(images\)"):
        map_raster(predictor, [image], out)
    assert map_raster(predictor, [image], out, MapOptions(overwrite=True)).resumed == 0
    assert not folder.exists()


@pytest.mark.usefixtures("small_units")
def test_a_full_disk_is_named_with_what_resumes(
    network: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_run(network, device="cpu")
    whole = mapped(predictor, image)
    store: Callable[..., None] = parts._store
    calls = []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        store(*arguments)

    out = image.with_name("map.tif")
    with monkeypatch.context() as patch:
        patch.setattr(parts, "_store", full)
        with pytest.raises(ShortageError, match=r"disk is full(.|\n)*this resumes: predict it"):
            map_raster(predictor, [image], out, command="predict it")
    assert not out.exists()
    assert map_raster(predictor, [image], out).resumed == 2
    assert out.read_bytes() == whole


def test_files_in_the_way_are_kept(network: Path, image: Path) -> None:
    predictor = echo(network)
    before = image.read_bytes()
    with pytest.raises(UsageError, match="is an image to be mapped"):
        map_raster(predictor, [image], image, MapOptions(overwrite=True))
    other = image.with_name("other.tif")
    other.write_text("mine")
    with pytest.raises(FlairError, match="overwrite"):
        map_raster(predictor, [image], other)
    assert (image.read_bytes(), other.read_text()) == (before, "mine")
    assert len(list(image.parent.iterdir())) == 2


def test_two_predictions_of_one_file_at_once_are_refused(network: Path, image: Path) -> None:
    predictor, out = echo(network), image.with_name("map.tif")
    messages = []

    def again(done: int, total: int) -> None:
        if not messages:
            with pytest.raises(ConfigError, match="in use by process") as caught:
                map_raster(predictor, [image], out)
            messages.append(str(caught.value))

    map_raster(predictor, [image], out, progress=again)
    assert messages
    assert out.exists()


def test_a_raster_that_ends_in_the_middle_is_named(network: Path, tmp_path: Path) -> None:
    image = raster(tmp_path / "image.tif", pixels(400, 400), names=())
    with image.open("r+b") as file:
        file.truncate(300_000)
    out = tmp_path / "map.tif"
    with pytest.raises(DamagedPatchError, match=r"image.tif cannot be read at.*\n.*incomplete"):
        map_raster(echo(network), [image], out)
    assert [*tmp_path.iterdir()] == [image]


def test_a_folder_that_cannot_be_made_is_named(network: Path, image: Path) -> None:
    with pytest.raises(FlairError, match=r"image\.tif"):
        map_raster(echo(network), [image], image / "map.tif")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size 0: expected 1"), ({"devices": 0}, "devices 0: expected 1"),
     ({"join": "mean"}, "expected blend or crop")],
)  # fmt: skip
def test_options_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MapOptions(**options)


def test_more_devices_than_there_are_is_refused(network: Path, image: Path) -> None:
    with pytest.raises(DeviceError, match="devices 5000: this machine has"):
        map_raster(echo(network), [image], image.with_name("map.tif"), MapOptions(devices=5000))
    assert len(list(image.parent.iterdir())) == 1


# Several processes; a process that dies.


@pytest.mark.slow
def test_two_devices_give_the_same_bytes_and_survive_a_dead_one(network: Path, image: Path) -> None:
    predictor, out = Predictor.from_run(network, device="cpu"), image.with_name("map.tif")
    whole = mapped(predictor, image)
    killed = []
    before = multiprocessing.active_children()  # workers of earlier tests' loaders

    def kill(done: int, total: int) -> None:
        locks = image.with_name(".map.tif.parts").glob("[0-9]*.lock")
        if not killed and len(list(locks)) > 1:
            (other,) = (each for each in multiprocessing.active_children() if each not in before)
            os.kill(other.pid or 0, signal.SIGKILL)
            killed.append(other)
        elif not killed:
            time.sleep(0.5)  # until the other process is at work

    for progress in (None, kill):
        map_raster(
            predictor, [image], out, MapOptions(devices=2, overwrite=True), progress=progress
        )
        assert out.read_bytes() == whole
    assert killed


KILLED = """
import sys
from pathlib import Path
from flair2_exp.inference import planning
from flair2_exp.inference.mapping import map_raster
from flair2_exp.inference.predictor import Predictor
planning.UNIT_TILES = (1, 2)
network, image, out = map(Path, sys.argv[1:])
map_raster(Predictor.from_run(network, device="cpu"), [image], out)
"""


@pytest.mark.slow
def test_a_killed_prediction_resumes(network: Path, tmp_path: Path) -> None:
    image, out = raster(tmp_path / "image.tif", pixels(500, 500)), tmp_path / "map.tif"
    command = [sys.executable, "-c", KILLED, str(network), str(image), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    folder = tmp_path / ".map.tif.parts"
    while len(list(folder.glob("*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not out.exists()
    predictor = Predictor.from_run(network, device="cpu")
    assert map_raster(predictor, [image], out).resumed >= 2
    assert out.read_bytes() == mapped(predictor, image)


@pytest.mark.thorough
def test_a_sparse_raster_of_many_pixels_is_mapped_in_little_time(
    network: Path, tmp_path: Path
) -> None:
    from rasterio.windows import Window

    path, size = tmp_path / "sparse.tif", 20_000
    values = pixels(300, 400, low=1)
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=5, dtype="uint8", tiled=True,
        sparse_ok=True, nodata=0, crs="EPSG:2154", bigtiff="IF_SAFER",
        transform=rasterio.Affine(METRES, 0, 1e5, 0, -METRES, 7e6),
    ) as file:  # fmt: skip
        file.write(values, window=Window(9_000, 15_000, 400, 300))
    made = map_raster(echo(network, 64), [path], tmp_path / "map.tif")
    assert made.pixels["nodata"] == size**2 - values[0].size
    assert made.predicted < 100
    assert (tmp_path / "map.tif").stat().st_size < 1e6
    with rasterio.open(tmp_path / "map.tif") as file:
        classes = file.read(1, window=Window(9_000, 15_000, 400, 300))
    assert np.array_equal(classes - 1, values[0] % CLASSES)


def test_a_vrt_is_mapped_as_the_files_that_it_names(network: Path, tmp_path: Path) -> None:
    predictor = echo(network)
    left, right = pixels(40, 30, 1), pixels(40, 30, 2)
    raster(tmp_path / "left.tif", left)
    raster(tmp_path / "right.tif", right, west=600_000 + 30 * METRES)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><Description>{name}</Description>'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{side}.tif</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="30" ySize="40"/>'
            f'<DstRect xOff="{column}" yOff="0" xSize="30" ySize="40"/></SimpleSource>'
            for side, column in (("left", 0), ("right", 30))
        )
        + "</VRTRasterBand>"
        for band, name in enumerate(AERIAL_BANDS, start=1)
    )
    (tmp_path / "both.vrt").write_text(
        '<VRTDataset rasterXSize="60" rasterYSize="40"><SRS>EPSG:2154</SRS><GeoTransform>'
        f"600000, {METRES}, 0, 6500000, 0, -{METRES}</GeoTransform>{bands}</VRTDataset>"
    )
    map_raster(predictor, [tmp_path / "both.vrt"], tmp_path / "map.tif")
    expected = np.concatenate([left[0], right[0]], axis=1) % CLASSES
    assert np.array_equal(read(tmp_path / "map.tif"), expected)


def test_a_cloud_optimised_map_is_one_and_holds_the_same_classes(
    network: Path, image: Path
) -> None:
    predictor, plain, cog = echo(network), image.with_name("plain.tif"), image.with_name("cog.tif")
    map_raster(predictor, [image], plain)
    map_raster(predictor, [image], cog, MapOptions(cog=True))
    assert cog_validate(cog)[0]
    assert np.array_equal(read(cog), read(plain))
