"""Layers as GeoTIFFs, read again by rasterio and by a validator of cloud-optimised files."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from flair2_exp.errors import ConfigError
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.rasters import (
    BLOCK,
    NODATA,
    Layer,
    is_written,
    layer_path,
    layers_of,
    provenance,
    quantised,
    require_free,
    write_layer,
)
from flair2_exp.nomenclature import FLAIR_13, FLAIR_19, LandCover, Nomenclature
from tests.inference.outputs_made import TAGS, blocks, grid
from tests.inference.outputs_run import predictor, trained

__all__ = ["predictor", "trained"]  # fixtures

OWN = Nomenclature(
    (LandCover(200, "wood", "#00ff00"), LandCover(0, "water", "#0000ff"),
     LandCover(7, "other", "#000000")), 2,
)  # fmt: skip
CLASSES = Layer("classes", OWN)
CHOSEN = Layer("probabilities", FLAIR_13, ("water", "building", "other"))


def classes(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Indices of OWN, and nodata."""
    drawn = np.random.default_rng(seed).choice([0, 1, 2, NODATA], (1, height, width))
    return drawn.astype(np.uint8)


@settings(max_examples=15)
@given(
    width=st.integers(1, 1100),
    height=st.integers(1, 1100),
    seed=st.integers(0, 9),
    cog=st.booleans(),
)
def test_classes_are_stored_as_the_values_of_the_masks(
    width: int, height: int, seed: int, cog: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "landcover.tif"
    indices = classes(height, width, seed)
    write_layer(path, grid(width, height), CLASSES, blocks(indices), TAGS, cog=cog)
    with rasterio.open(path) as file:
        pixels = file.read(1)
        mask = file.dataset_mask()
        assert (file.transform, file.crs) == (grid(1, 1).transform, grid(1, 1).crs)
    expected = np.select([indices[0] == 0, indices[0] == 1, indices[0] == 2], [200, 0, 7], NODATA)
    assert (pixels == expected).all()
    assert ((mask == 0) == (indices[0] == NODATA)).all()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("cog", [False, True])
def test_a_class_raster_tells_colours_names_and_where_it_comes_from(
    cog: bool, tmp_path: Path
) -> None:
    path = tmp_path / "landcover.tif"
    layer = Layer("classes", FLAIR_19)
    write_layer(path, grid(600, 600), layer, blocks(classes(600, 600)), TAGS, cog=cog)
    with rasterio.open(path) as file:
        colours = file.colormap(1)
        assert file.colorinterp == (ColorInterp.palette,)
        assert file.nodata == NODATA
        assert file.block_shapes == [(BLOCK, BLOCK)]
        assert {name: file.tags()[name] for name in TAGS} == TAGS
        names = file.tags(1)
    for each in FLAIR_19.classes:
        assert "#{:02x}{:02x}{:02x}".format(*colours[each.value][:3]) == each.colour
        assert names[f"CLASS_{each.value}"] == each.name
    assert colours[NODATA][3] == 0


@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("layer", [CHOSEN, Layer("confidence", FLAIR_13)])
def test_probabilities_are_read_to_a_five_hundredth_by_the_scale_in_the_file(
    layer: Layer, cog: bool, tmp_path: Path
) -> None:
    drawn = np.random.default_rng(1).dirichlet([0.1] * 13, (700, 530)).astype(np.float32)
    probabilities = np.moveaxis(drawn, -1, 0)
    stored = layer.pixels(probabilities.argmax(axis=0).astype(np.uint8), probabilities)
    path = layer_path(tmp_path / "landcover.tif", layer.kind)
    write_layer(path, grid(530, 700), layer, blocks(stored), TAGS, cog=cog)
    expected = {
        "probabilities": probabilities[[4, 0, 12]], "confidence": probabilities.max(axis=0)[None]
    }[layer.kind]  # fmt: skip
    with rasterio.open(path) as file:
        assert file.descriptions == (layer.chosen or ("confidence",))
        scale = np.array(file.scales)[:, None, None]
        assert np.abs(file.read() * scale - expected).max() <= 0.002 + 1e-6
        assert file.dataset_mask().all()


def test_no_probability_is_stored_as_nodata() -> None:
    rounded = np.array([0, 1, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    assert quantised(rounded).tolist() == [0, 250, 250]


def test_an_optimised_file_is_valid_and_its_overviews_hold_classes_alone(tmp_path: Path) -> None:
    path = tmp_path / "landcover.tif"
    indices = classes(2000, 1500)
    write_layer(path, grid(1500, 2000), CLASSES, blocks(indices), TAGS, cog=True)
    valid, errors, warned = cog_validate(path)
    assert (valid, errors, warned) == (True, [], [])
    with rasterio.open(path, overview_level=0) as overview:
        assert set(np.unique(overview.read())) <= {200, 0, 7, NODATA}
        assert overview.width == 750
    write_layer(path, grid(1500, 2000), CLASSES, blocks(indices), TAGS)
    assert cog_validate(path)[2]  # the validator tells them apart


@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("layer", [CLASSES, CHOSEN])
def test_the_same_blocks_give_the_same_bytes_whatever_cache_and_threads_gdal_has(
    layer: Layer, cog: bool, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(2).integers(0, 3, (layer.bands, 1100, 1300), dtype=np.uint8)
    digests = set()
    for number, options in enumerate((
        {}, {"GDAL_NUM_THREADS": "ALL_CPUS"}, {"GDAL_CACHEMAX": 900_000},
    )):  # fmt: skip
        path = tmp_path / f"{number}.tif"
        with rasterio.Env(**options):
            write_layer(path, grid(1300, 1100), layer, blocks(pixels), TAGS, cog=cog)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_what_no_block_covers_is_nodata_and_takes_no_room(tmp_path: Path) -> None:
    sparse, whole = tmp_path / "sparse.tif", tmp_path / "whole.tif"
    pixels = np.full((1, 4 * BLOCK, 4 * BLOCK), NODATA, np.uint8)
    pixels[:, BLOCK : 2 * BLOCK, :BLOCK] = classes(BLOCK, BLOCK)
    only = [each for each in blocks(pixels) if each[:2] == (BLOCK, 0)]
    write_layer(sparse, grid(4 * BLOCK, 4 * BLOCK), CLASSES, only, TAGS)
    write_layer(whole, grid(4 * BLOCK, 4 * BLOCK), CLASSES, blocks(pixels), TAGS)
    assert sparse.read_bytes() == whole.read_bytes()
    with rasterio.open(sparse) as file:
        assert (file.read(1) == CLASSES.values[pixels[0]]).all()
        assert file.tags(ns="TIFF", bidx=1).get("BLOCK_OFFSET_0_0") is None


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_a_raster_beyond_four_gib_is_written_and_read(tmp_path: Path) -> None:
    layer, side = Layer("probabilities", FLAIR_13, FLAIR_13.names), 37 * BLOCK
    drawn = np.random.default_rng(3).integers(0, 251, (5, 13, BLOCK, BLOCK), dtype=np.uint8)
    places = list(product(range(0, side, BLOCK), repeat=2))
    path = tmp_path / "large.tif"
    made = ((*place, drawn[number % 5]) for number, place in enumerate(places))
    write_layer(path, grid(side, side), layer, made, TAGS)
    assert path.stat().st_size > 2**32
    with rasterio.open(path) as file:
        for number in (0, 700, len(places) - 1):
            row, column = places[number]
            pixels = file.read(window=Window(column, row, BLOCK, BLOCK))
            assert (pixels == drawn[number % 5]).all()
    path.unlink()


def test_a_sparse_raster_of_a_hundred_thousand_pixels_on_a_side_is_small(tmp_path: Path) -> None:
    path, side = tmp_path / "wide.tif", 100_000
    last = (side - 1) // BLOCK * BLOCK
    ends = [(0, 0, classes(BLOCK, BLOCK)), (last, last, classes(side - last, side - last, 1))]
    write_layer(path, grid(side, side), CLASSES, ends, TAGS)
    assert path.stat().st_size < 4_000_000
    with rasterio.open(path) as file:
        window = Window(last, last, side - last, side - last)
        assert (file.read(1, window=window) == CLASSES.values[ends[1][2][0]]).all()
        assert (file.read(1, window=Window(50_000, 50_000, 600, 600)) == NODATA).all()


@pytest.mark.parametrize("value", [-1, 255, 300])
def test_classes_whose_values_are_not_a_bytes_are_refused(value: int) -> None:
    odd = Nomenclature((LandCover(value, "odd", "#000000"), LandCover(1, "even", "#ffffff")), 2)
    with pytest.raises(ConfigError, match=f"'odd' has the value {value}"):
        Layer("classes", odd)
    assert Layer("probabilities", odd, ("odd",)).bands == 1


def test_a_class_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'watr': did you mean water"):
        layers_of(FLAIR_13, ("watr",))


def test_files_that_are_there_or_cannot_be_written_are_refused(tmp_path: Path) -> None:
    there = tmp_path / "landcover.tif"
    there.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is there already.*\n.*--overwrite"):
        require_free([there], overwrite=False)
    require_free([there, tmp_path / "new" / "landcover.tif"], overwrite=True)
    for path, reason in ((tmp_path, "is a folder"), (there / "below.tif", "is not a folder"),
                         (tmp_path / ("x" * 300), "300 bytes")):  # fmt: skip
        with pytest.raises(ConfigError, match=reason):
            require_free([path], overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["landcover.tif"]


BEGIN = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from flair2_exp.inference.rasters import Layer, write_layer
from flair2_exp.nomenclature import FLAIR_13
from tests.inference.outputs_made import TAGS, blocks, grid
layer = Layer("confidence", FLAIR_13)
pixels = np.random.default_rng(0).integers(0, 250, (1, 1536, 1536), dtype=np.uint8)
"""
LIMITED = """
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_layer(
        Path(sys.argv[1]), grid(1536, 1536), layer, blocks(pixels), TAGS, cog="cog" in sys.argv
    )
except OSError as error:
    sys.exit(error.errno or 1)
"""
KILLED = """
def some():
    yield next(blocks(pixels))
    os.kill(os.getpid(), signal.SIGKILL)
write_layer(Path(sys.argv[1]), grid(1536, 1536), layer, some(), TAGS)
"""


def start(script: str, *words: str) -> int:
    """Run a script in a process of its own; return its status."""
    return subprocess.run([sys.executable, "-c", BEGIN + script, *words], check=False).returncode


# Room for half the file; for half its copy with overviews.
@pytest.mark.parametrize("words", [["1200000"], ["1200000", "cog"], ["2600000", "cog"]])
def test_a_file_that_cannot_grow_gives_the_systems_error_and_leaves_the_earlier_one(
    words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "landcover.tif"
    path.write_bytes(b"earlier")
    assert start(LIMITED, str(path), *words) == errno.EFBIG
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "landcover.tif"
    path.write_bytes(b"earlier")
    assert start(KILLED, str(path)) == -9
    assert path.read_bytes() == b"earlier"
    assert all(each == path or each.name.startswith(".") for each in tmp_path.iterdir())


def test_a_file_counts_as_written_only_whole_and_of_the_same_networks(tmp_path: Path) -> None:
    path = tmp_path / "landcover.tif"
    assert not is_written(path, CLASSES, TAGS)
    write_layer(path, grid(600, 600), CLASSES, blocks(classes(600, 600)), TAGS)
    assert is_written(path, CLASSES, {**TAGS, "FLAIR2_COMMAND": "another"})
    assert not is_written(path, CLASSES, {**TAGS, "FLAIR2_MADE_FROM": "other"})
    assert not is_written(path, Layer("confidence", OWN), TAGS)
    os.truncate(path, path.stat().st_size - 100)
    assert not is_written(path, CLASSES, TAGS)


def test_tags_name_run_networks_command_and_classes(predictor: Predictor, trained: Path) -> None:
    tags = provenance(predictor, "flair2-exp predict x --tracking-uri https://me:secretword@host")
    record = predictor.members[0].stored.record
    assert record is not None
    assert (tags["FLAIR2_RUN"], tags["FLAIR2_IDENTITY"]) == (record.run_id, record.identity)
    assert "secretword" not in tags["FLAIR2_COMMAND"]
    assert '"1": "building"' in tags["FLAIR2_CLASSES"]
    other = Predictor.from_runs([trained, trained], weights=[1, 2], device="cpu")
    turned = Predictor.from_run(trained, tta="d4", device="cpu")
    made = {provenance(each, "")["FLAIR2_MADE_FROM"] for each in (predictor, other, turned)}
    assert len(made) == 3
