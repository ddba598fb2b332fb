from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from flair2_exp.config.data import SampleConfig
from flair2_exp.data.sample import scene as module
from flair2_exp.data.sample.scene import Scene, write_scene
from flair2_exp.data.sample.tree import ensure_sample
from flair2_exp.errors import DataError

OPTIONS = SampleConfig(patch_size=128, domains=6, super_patch=16)
SMALL = SampleConfig(patch_size=32, domains=6, super_patch=16)
SCRIPT = Path(__file__).parents[3] / "scripts" / "sample.py"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("scene") / "made", patches=4, options=OPTIONS)


def digests(folder: Path) -> dict[str, str]:
    files = (each for each in sorted(folder.rglob("*")) if each.is_file())
    return {
        str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in files
    }


def test_image_and_truth_lie_on_one_grid_in_the_samples_form(scene: Scene) -> None:
    with rasterio.open(scene.image) as image, rasterio.open(scene.truth) as truth:
        assert image.descriptions == ("red", "green", "blue", "nir", "elevation")
        assert (image.count, image.width, image.height) == (5, 512, 512)
        assert (image.crs, truth.crs) == ("EPSG:2154", "EPSG:2154")
        assert (image.transform, truth.transform) == (image.transform, image.transform)
        assert image.res == pytest.approx((0.8, 0.8))
        assert image.profile["tiled"]
        assert set(image.dtypes) == set(truth.dtypes) == {"uint8"}
        values = np.unique(truth.read())
        assert 1 <= values.min() <= values.max() <= 19
        assert len(values) >= 10


@pytest.mark.parametrize("patch_size", [128, 512])  # at 0.2 m masks are in blocks of 2 x 2
def test_neither_ground_nor_noise_breaks_off_between_blocks(
    tmp_path: Path, patch_size: int
) -> None:
    options = SampleConfig(patch_size=patch_size, domains=6, super_patch=16)
    patches = 512 // patch_size
    made = write_scene(tmp_path / "made", patches=patches, options=options, series=False)
    with rasterio.open(made.image) as image, rasterio.open(made.truth) as truth:
        assert image.block_shapes[0] == (384, 384)
        layers = [*image.read().astype(float), truth.read(1)]
    for layer in layers:
        for turned in (layer, layer.T):
            changes = np.abs(np.diff(turned, axis=1)).mean(axis=0)[1::2]  # between blocks of 2 x 2
            edge = changes[383 // 2]
            assert edge < changes.mean() + 3 * changes.std()


def test_the_truth_does_not_depend_on_the_resolution(tmp_path: Path) -> None:
    fine = write_scene(tmp_path / "fine", patches=1, options=OPTIONS, series=False)
    coarse = write_scene(tmp_path / "coarse", patches=1, options=SMALL, series=False)
    with rasterio.open(fine.truth) as one, rasterio.open(coarse.truth) as other:
        assert one.bounds == pytest.approx(other.bounds)
        # The centre of a coarse pixel is a corner of fine ones.
        assert (one.read(1)[2::4, 2::4] == other.read(1)).mean() > 0.9


def test_the_series_shows_the_ground_of_the_truth_where_it_lies(scene: Scene) -> None:
    assert scene.series is not None
    with rasterio.open(scene.truth) as file:
        truth, bounds = file.read(1), file.bounds
    summer = []
    for path in sorted(scene.series.glob("*_2020060*.tif")) + sorted(scene.series.glob("*.tif")):
        with rasterio.open(path) as file:
            assert file.descriptions[:2] == ("B2", "B3")
            assert file.descriptions[9:] == ("B12", "snow", "cloud")
            assert file.res == (10, 10)
            for reach, edge in zip((-131.2, -131.2, 131.2, 131.2), range(4), strict=True):
                sign = -1 if edge < 2 else 1
                assert sign * (file.bounds[edge] - bounds[edge] - reach) >= -1e-6
            pixels, place = file.read().astype(float), file.transform
            if pixels[11].mean() < 10 and "06" <= path.name[15:17] <= "08":
                summer.append((pixels[6] - pixels[2]) / (pixels[6] + pixels[2]))
    greenness = np.mean(summer, axis=0)
    rows, columns = np.indices(truth.shape) + 0.5
    row = ((place.f - bounds.top + 0.8 * rows) // 10).astype(int)
    column = ((bounds.left - place.c + 0.8 * columns) // 10).astype(int)
    wood = np.isin(truth, (6, 7)).astype(float)

    def agreement(down: int, right: int) -> float:
        seen = greenness[row + down, column + right]
        return float(np.corrcoef(seen.ravel(), wood.ravel())[0, 1])

    shifts = {(d, r): agreement(d, r) for d in (-2, -1, 0, 1, 2) for r in (-2, -1, 0, 1, 2)}
    assert max(shifts, key=lambda shift: shifts[shift]) == (0, 0)
    assert shifts[0, 0] > 0.2


def test_the_same_options_give_the_same_bytes_another_seed_others(tmp_path: Path) -> None:
    made = [
        write_scene(tmp_path / name, patches=1, options=options).image.parent
        for name, options in (
            ("one", SMALL),
            ("two", SMALL),
            ("three", SampleConfig(patch_size=32, domains=6, super_patch=16, seed=1)),
        )
    ]
    one, two, three = map(digests, made)
    assert one == two
    assert one["image.tif"] != three["image.tif"]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "three"}


def test_a_scene_is_of_the_samples_test_domain_and_beside_its_areas(
    tmp_path: Path, scene: Scene
) -> None:
    sample = SampleConfig(
        patch_size=32, domains=6, super_patch=16, areas_per_domain=6, patches_per_area=1
    )
    tree = ensure_sample(tmp_path / "tree", sample)
    images = sorted(tree.glob("flair_2_aerial_test/D015_2020/*/img/*.tif"))
    with rasterio.open(scene.image) as file:
        place = file.bounds
    for path in images:
        with rasterio.open(path) as file:
            assert file.bounds.left > place.right
            assert file.bounds.left - place.right < 40_000
    assert scene.flight.startswith("2020-")
    assert len(scene.flight.split()) == 4


@pytest.mark.parametrize("patches", [0, -1, 33])
def test_too_few_or_too_many_patches_are_refused(tmp_path: Path, patches: int) -> None:
    with pytest.raises(DataError, match="expected 1 to 32"):
        write_scene(tmp_path / "scene", patches=patches, options=SMALL)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        write_scene(tmp_path, patches=1, options=SMALL)
    with pytest.raises(DataError, match="is there already"):
        write_scene(tmp_path / "notes", patches=1, options=SMALL)
    assert [each.name for each in tmp_path.iterdir()] == ["notes"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_series", full)
    with pytest.raises(DataError, match="the disk is full"):
        write_scene(tmp_path / "scene", patches=1, options=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_scene_and_says_its_flight(tmp_path: Path) -> None:
    flags = ["--scene", "1", "--patch-size", "32", "--super-patch", "16"]
    command = [sys.executable, str(SCRIPT), str(tmp_path / "scene"), *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = result.stdout.splitlines()
    assert first == str(tmp_path / "scene")
    assert second.startswith("--flight 2020-")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "is there already" in result.stderr
