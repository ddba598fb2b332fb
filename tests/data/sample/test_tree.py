from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flair2_exp.data.sample import tree as sample
from flair2_exp.data.sample.landscape import (
    BUILDING,
    CONIFEROUS,
    DECIDUOUS,
    PLOWED,
    WATER,
    Landscape,
)
from flair2_exp.data.sample.rendering import plan_flight, render_patch
from flair2_exp.data.sample.tree import (
    SampleConfig,
    ensure_sample,
    sample_domains,
)
from flair2_exp.errors import ConfigError, DataError

# Domain numbers of the official split, from the publication of FLAIR #2.
VALIDATION = {4, 14, 29, 31, 58, 66, 67, 77}
TEST = {15, 22, 26, 36, 61, 64, 68, 69, 71, 84}
TRAIN = {6, 7, 8, 9, 13, 16, 17, 21, 23, 30, 32, 33, 34, 35, 38, 41, 44, 46, 49, 51, 52, 55, 60, 63}
TRAIN |= {70, 72, 74, 78, 80, 81, 86, 91}

TINY = SampleConfig(
    patch_size=32, domains=6, areas_per_domain=1, patches_per_area=1, super_patch=16
)
COARSE = SampleConfig(patch_size=32, super_patch=16)


@dataclasses.dataclass
class Patch:
    """One patch of a tree, read with nothing of the package."""

    name: str
    domain: str
    zone: str
    test: bool
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    profile: dict[str, Any]
    bounds: Any
    centre: tuple[int, int]
    metadata: dict[str, Any]


@dataclasses.dataclass
class Area:
    data: NDArray[np.uint16]
    masks: NDArray[np.uint8]
    products: list[str]


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root
        centroids = json.loads((root / "flair-2_centroids_sp_to_patch.json").read_text())
        metadata = json.loads((root / "flair_aerial_metadata.json").read_text())
        self.names = (set(centroids), set(metadata))
        self.patches: list[Patch] = []
        self.areas: dict[tuple[str, str], Area] = {}
        for prefix, part in (("flair", "train"), ("flair_2", "test")):
            for path in sorted((root / f"{prefix}_aerial_{part}").glob("D*/Z*/img/IMG_*.tif")):
                domain, zone = path.parts[-4:-2]
                number = path.stem[4:]
                labels = root / f"{prefix}_labels_{part}" / domain / zone / "msk"
                with (
                    rasterio.open(path) as image,
                    rasterio.open(labels / f"MSK_{number}.tif") as mask,
                ):
                    assert mask.transform == image.transform
                    self.patches.append(
                        Patch(
                            path.stem,
                            domain,
                            zone,
                            part == "test",
                            image.read(),
                            mask.read(1),
                            dict(image.profile),
                            image.bounds,
                            tuple(centroids[path.name]),
                            metadata[path.stem],
                        )
                    )
                if (domain, zone) not in self.areas:
                    folder = root / f"{prefix}_sen_{part}" / domain / zone / "sen"
                    stem = folder / f"SEN2_sp_{domain}-{zone}_"
                    self.areas[domain, zone] = Area(
                        np.load(f"{stem}data.npy"),
                        np.load(f"{stem}masks.npy"),
                        Path(f"{stem}products.txt").read_text().splitlines(),
                    )

    def area(self, patch: Patch) -> Area:
        return self.areas[patch.domain, patch.zone]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The default sample, with coarse patches and narrow super-areas."""
    return Tree(ensure_sample(tmp_path_factory.mktemp("sample") / "tree", COARSE))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_sample(tmp_path_factory.mktemp("tiny") / "tree", TINY)


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _cells(mask: NDArray[np.uint8], cover: int) -> NDArray[np.float64]:
    """The share of a cover in the 10×10 satellite pixels in the middle of a patch."""
    edges = (1.2 + 10 * np.arange(11)) / 102.4 * len(mask)
    share = np.empty((10, 10))
    for row in range(10):
        for column in range(10):
            top, bottom = (round(edge) for edge in edges[row : row + 2])
            left, right = (round(edge) for edge in edges[column : column + 2])
            share[row, column] = (mask[top:bottom, left:right] == cover).mean()
    return share


def test_every_patch_has_image_mask_centroid_metadata_and_series(tree: Tree) -> None:
    assert len(tree.patches) == 8 * 4 * 4
    names = {patch.name for patch in tree.patches}
    assert names == {f"IMG_{number:06d}" for number in range(1, 129)}
    assert tree.names == ({f"{name}.tif" for name in names}, names)
    assert len(tree.areas) == 32
    for patch in tree.patches:
        assert patch.image.shape == (5, 32, 32)
        assert patch.mask.shape == (32, 32)
        assert patch.image.dtype == patch.mask.dtype == np.uint8
        assert patch.mask.min() >= 1
        assert patch.mask.max() <= 19
    for area in tree.areas.values():
        assert area.data.dtype == np.uint16
        assert area.masks.dtype == np.uint8
        assert area.data.shape[1] == 10
        assert area.masks.shape == (len(area.data), 2, *area.data.shape[2:])
        assert area.masks.max() <= 100
        assert len(area.products) == len(area.data)
        assert 20 <= len(area.data) <= 60
    assert len({len(area.data) for area in tree.areas.values()}) > 4


def test_patches_lie_where_their_metadata_and_centroids_say(tree: Tree) -> None:
    origins: dict[tuple[str, str], tuple[float, float]] = {}
    for patch in tree.patches:
        assert patch.profile["crs"].to_epsg() == 2154
        left, bottom, right, top = patch.bounds
        assert right - left == pytest.approx(102.4, abs=1e-6)
        assert top - bottom == pytest.approx(102.4, abs=1e-6)
        x, y = patch.metadata["patch_centroid_x"], patch.metadata["patch_centroid_y"]
        assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((x, y), abs=1e-6)
        row, column = patch.centre
        origin = (x - 10 * column, y + 10 * row)
        assert origins.setdefault((patch.domain, patch.zone), origin) == pytest.approx(origin)
        height, width = tree.area(patch).data.shape[2:]
        assert 8 <= row <= height - 8
        assert 8 <= column <= width - 8


def test_metadata_has_the_form_of_the_real_one(tree: Tree) -> None:
    for patch in tree.patches:
        meta = patch.metadata
        assert set(meta) == {
            "domain", "zone", "patch_centroid_x", "patch_centroid_y", "patch_centroid_z",
            "date", "time", "camera",
        }  # fmt: skip
        assert (meta["domain"], meta["zone"]) == (patch.domain, patch.zone)
        assert re.fullmatch(r"20(18|19|20|21)-\d\d-\d\d", meta["date"])
        assert meta["date"][:4] == patch.domain[5:]
        assert re.fullmatch(r"\d{1,2}h\d\d", meta["time"])
        assert re.fullmatch(r"UCE-.*|CAMERA#\d{3}", meta["camera"])
        assert 0 <= meta["patch_centroid_z"] < 3165
    assert len({patch.metadata["camera"].startswith("UCE") for patch in tree.patches}) == 2


def test_products_are_dated_within_their_year_and_mostly_sorted(tree: Tree) -> None:
    form = r"S2[AB]_MSIL2A_(\d{8})T\d{6}_N\d{4}_R\d{3}_T\d{2}[A-Z]{3}_(\d{8})T\d{6}"
    unsorted = 0
    for (domain, _), area in tree.areas.items():
        dates = []
        for product in area.products:
            match = re.fullmatch(form, product)
            assert match is not None
            assert match[1] == product[11:19]
            dates.append(np.datetime64(f"{match[1][:4]}-{match[1][4:6]}-{match[1][6:]}"))
            assert match[1][:4] == domain[5:]
        assert len(set(dates)) == len(dates)
        unsorted += dates != sorted(dates)
    assert unsorted <= len(tree.areas) // 2


@given(count=st.integers(6, 40))
def test_domains_follow_the_official_split(count: int) -> None:
    train, validation, test = sample_domains(count)
    assert len(set(train) | set(validation) | set(test)) == count
    assert set(train) <= TRAIN
    assert set(validation) <= VALIDATION
    assert set(test) <= TEST
    assert min(len(train), len(validation), len(test)) >= 1
    assert len(train) >= max(len(validation), len(test))


def test_folders_separate_test_domains_from_the_others(tree: Tree) -> None:
    for patch in tree.patches:
        assert patch.test == (int(patch.domain[1:4]) in TEST)


def test_all_scored_classes_occur_in_each_part_in_sensible_shares(tree: Tree) -> None:
    parts: dict[str, NDArray[np.int64]] = {}
    for patch in tree.patches:
        number = int(patch.domain[1:4])
        part = "test" if number in TEST else "validation" if number in VALIDATION else "train"
        counts = np.bincount(patch.mask.ravel(), minlength=20)
        parts[part] = parts.get(part, np.zeros(20, dtype=np.int64)) + counts
    assert set(parts) == {"train", "validation", "test"}
    for counts in parts.values():
        share = counts / counts.sum()
        assert share[1:13].min() > 0.004  # each can be learnt and scored
        assert share.max() < 0.3  # none swamps the others
        assert 0 < share[13:].sum() < 0.08


def test_clouds_and_snow_cover_as_much_as_in_real_series(tree: Tree) -> None:
    # Real series: about 45 % and 5 % of pixels have a probability of 60 and more.
    flags = [(area.masks >= 60).swapaxes(0, 1).reshape(2, -1) for area in tree.areas.values()]
    snow, cloud = np.concatenate(flags, axis=1).mean(axis=1)
    assert 0.38 < cloud < 0.52
    assert 0.02 < snow < 0.08
    cover = np.concatenate([(a.masks[:, 1] >= 60).mean((1, 2)) for a in tree.areas.values()])
    assert (cover < 0.02).mean() > 0.2
    assert (cover > 0.98).mean() > 0.2
    assert ((cover > 0.1) & (cover < 0.9)).mean() > 0.1


def test_clouds_are_coherent_and_snow_falls_in_winter(tree: Tree) -> None:
    for area in tree.areas.values():
        cloud = area.masks[:, 1] >= 60
        share = cloud.mean((1, 2))
        partial = cloud[(share > 0.3) & (share < 0.7)]
        if len(partial):  # of scattered pixels only about half would agree with their neighbours
            assert (partial[:, :, 1:] == partial[:, :, :-1]).mean() > 0.8
        snowy = (area.masks[:, 0] >= 60).mean((1, 2)) > 0.2
        months = {
            int(product[15:17])
            for product, is_snowy in zip(area.products, snowy, strict=True)
            if is_snowy
        }
        assert months <= {10, 11, 12, 1, 2, 3, 4}


def test_clouds_and_snow_damage_reflectance(tree: Tree) -> None:
    for area in tree.areas.values():
        red = area.data[:, 2].astype(float)
        clear = (area.masks < 20).all(axis=1)
        assert np.median(red[area.masks[:, 1] >= 90]) > 3 * np.median(red[clear])
        snowy = area.masks[:, 0] >= 90
        if snowy.any():
            assert np.median(red[snowy]) > 3 * np.median(red[clear])
            # Snow is dark in the short-wave infrared, cloud is not.
            assert np.median(area.data[:, 8][snowy]) < 0.6 * np.median(red[snowy])


def test_satellite_pixels_show_the_ground_of_the_patch(tree: Tree) -> None:
    """Water in the mask and darkness in the infrared agree, and at no other offset as well."""
    scores = np.zeros((5, 5))
    compared = 0
    for patch in tree.patches:
        water = _cells(patch.mask, WATER)
        if water.std() < 0.15:
            continue
        area = tree.area(patch)
        infrared = area.data[area.masks.mean((1, 2, 3)) < 5, 6].mean(axis=0)
        row, column = patch.centre
        for dy in range(5):
            for dx in range(5):
                top, left = row - 5 + dy - 2, column - 5 + dx - 2
                crop = infrared[top : top + 10, left : left + 10]
                scores[dy, dx] += -np.corrcoef(crop.ravel(), water.ravel())[0, 1]
        compared += 1
    assert compared >= 8
    assert scores.argmax() == 2 * 5 + 2  # no shift
    assert scores[2, 2] / compared > 0.5


def _seasons(tree: Tree, cover: int) -> tuple[float, float, NDArray[np.float64], int]:
    """NDVI of pure pixels of a cover in winter and in summer; aerial colour; pixels."""
    winter: list[float] = []
    summer: list[float] = []
    colours = []
    for patch in tree.patches:
        colours.append(patch.image[:4, patch.mask == cover].T)
        pure = _cells(patch.mask, cover) > 0.99
        area = tree.area(patch)
        row, column = patch.centre
        window = (slice(None), slice(None), slice(row - 5, row + 5), slice(column - 5, column + 5))
        frames, masks = area.data[window].astype(float), area.masks[window]
        for frame, mask, product in zip(frames, masks, area.products, strict=True):
            good = pure & (mask < 20).all(axis=0)
            ndvi = ((frame[6] - frame[2]) / (frame[6] + frame[2]))[good].tolist()
            month = int(product[15:17])
            winter += ndvi if month in (1, 2, 12) else []
            summer += ndvi if month in (6, 7, 8) else []
    pixels = np.concatenate(colours).astype(float)
    return float(np.median(winter)), float(np.median(summer)), pixels, len(winter)


def test_stands_that_look_alike_from_the_air_differ_in_their_course(tree: Tree) -> None:
    needles, leaves = _seasons(tree, CONIFEROUS), _seasons(tree, DECIDUOUS)
    assert min(needles[3], leaves[3]) > 30
    assert needles[0] > leaves[0] + 0.2  # evergreen in winter
    assert leaves[1] > leaves[0] + 0.3
    spread = np.sqrt((needles[2].var(0) + leaves[2].var(0)) / 2)
    assert (np.abs(needles[2].mean(0) - leaves[2].mean(0)) < 0.6 * spread).all()


def test_plowed_land_stays_bare_through_the_summer(tree: Tree) -> None:
    assert _seasons(tree, PLOWED)[1] < 0.35


def test_buildings_and_trees_stand_out_in_the_elevation_band(tree: Tree) -> None:
    def height(cover: int) -> float:
        values = [patch.image[4, patch.mask == cover] for patch in tree.patches]
        return float(np.median(np.concatenate(values))) * 0.2

    assert 3 < height(BUILDING) < 12
    assert 3 < height(DECIDUOUS) < 15
    assert height(PLOWED) < 1
    assert height(WATER) < 1


def test_same_seed_same_bytes_another_seed_others(tiny: Path, tmp_path: Path) -> None:
    again = _digests(ensure_sample(tmp_path / "again", TINY))
    assert again == _digests(tiny)
    other = _digests(ensure_sample(tmp_path / "other", dataclasses.replace(TINY, seed=1)))
    images = {name for name in other if name.endswith((".tif", "_data.npy"))}
    assert images
    assert not {name for name in images if other[name] == again.get(name)}


def test_an_area_does_not_depend_on_how_many_others_there_are(tiny: Path, tmp_path: Path) -> None:
    more = ensure_sample(tmp_path / "more", dataclasses.replace(TINY, domains=8))

    def areas(root: Path) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in sorted(root.glob("flair*/D*/Z*/*/*")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found.setdefault("/".join(path.parts[-5:-2]), []).append(digest)
        return found

    few, many = areas(tiny), areas(more)
    assert len(few) == 3 * 6
    assert len(many) == 3 * 8
    assert {name: many[name] for name in few} == few


def test_512_pixels_show_the_landscape_of_128_with_masks_in_blocks_of_two() -> None:
    rng = np.random.default_rng(0)
    landscape = Landscape(rng, (400.0, 500.0), "UA", 100.0)
    flight = plan_flight(rng, 2020)
    large, fine = render_patch(rng, landscape, flight, (200.0, 250.0), 102.4, 512)
    small, coarse = render_patch(rng, landscape, flight, (200.0, 250.0), 102.4, 128)
    assert len(np.unique(coarse)) >= 4
    blocks = fine.reshape(256, 2, 256, 2)
    assert (blocks == blocks[:, :1, :, :1]).all()
    shares = [(fine == cover).reshape(128, 4, 128, 4).mean((1, 3)) for cover in range(20)]
    # One ground at two resolutions differs along boundaries only.
    assert (np.argmax(shares, axis=0) == coarse).mean() > 0.95
    means = large.reshape(5, 128, 4, 128, 4).mean((2, 4))
    assert np.corrcoef(means[3].ravel(), small[3].ravel())[0, 1] > 0.8


def test_an_existing_tree_of_the_same_options_is_left_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(sample, "_write_tree", refuse)
    assert ensure_sample(tiny, TINY) == tiny


def test_another_tree_is_refused_with_the_difference_named(tiny: Path) -> None:
    before = _digests(tiny)
    with pytest.raises(DataError, match=r"seed=0 instead of 5.*dataset\.root"):
        ensure_sample(tiny, dataclasses.replace(TINY, seed=5))
    assert _digests(tiny) == before


def test_a_tree_of_another_generator_version_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "VERSION", sample.VERSION + 1)
    with pytest.raises(DataError, match="version"):
        ensure_sample(tiny, TINY)


@pytest.mark.parametrize("content", ["", "[]", '{"generator": "another"}'])
def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path, content: str) -> None:
    (tmp_path / "sample.json").write_text(content)
    with pytest.raises(DataError, match="holds no sample data set"):
        ensure_sample(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.json"]


@pytest.fixture
def hollow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of a manifest alone: enough for what happens around the writing."""

    def write(root: Path, options: SampleConfig) -> None:
        (root / "sample.json").write_text(json.dumps(sample._manifest(options)))

    monkeypatch.setattr(sample, "_write_tree", write)


@pytest.mark.usefixtures("hollow")
@pytest.mark.parametrize("root", ["", "."])
def test_the_working_folder_is_not_replaced_under_its_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is the working folder; name one to make in it"):
        ensure_sample(root, TINY)
    assert list(Path().resolve().iterdir()) == []


def test_an_empty_folder_and_missing_parents_are_filled(tmp_path: Path) -> None:
    assert ensure_sample(tmp_path / "a" / "b", TINY).is_dir()
    (tmp_path / "empty").mkdir()
    assert (ensure_sample(tmp_path / "empty", TINY) / "sample.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


@pytest.mark.usefixtures("hollow")
def test_the_first_writing_alone_is_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flair2_exp")
    for _ in range(2):
        ensure_sample(tmp_path / "new", TINY)
    assert caplog.messages == [f"writing the synthetic sample to {tmp_path / 'new'}, this once"]


@pytest.mark.usefixtures("hollow")
@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_the_way_gives_one_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file") as caught:
        ensure_sample(tmp_path / "file" / below, TINY)
    assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("hollow")
def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="link"):
        ensure_sample(tmp_path / "link", TINY)


@pytest.mark.usefixtures("hollow")
def test_a_link_to_an_empty_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert ensure_sample(tmp_path / "link", TINY) == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "sample.json").is_file()


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_tree_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(sample, "_write_series", fail)
    expected = DataError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        ensure_sample(tmp_path / "tree", TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("hollow")
@pytest.mark.parametrize(("seed", "refused"), [(0, False), (1, True)])
def test_who_comes_second_takes_the_same_tree_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, refused: bool
) -> None:
    write = sample._write_tree
    target = tmp_path / "tree"

    def overtaken(root: Path, options: SampleConfig) -> None:
        write(root, options)
        target.mkdir()
        write(target, dataclasses.replace(options, seed=seed))

    monkeypatch.setattr(sample, "_write_tree", overtaken)
    if refused:
        with pytest.raises(DataError, match="seed=1 instead of 0"):
            ensure_sample(target, TINY)
    else:
        assert ensure_sample(target, TINY) == target
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_full_disk_is_named_and_no_folder_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sample, "_write_tree", full)
    with pytest.raises(DataError, match="the disk is full"):
        ensure_sample(tmp_path / "data" / "sample", TINY)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_why_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    script = Path(__file__).parents[3] / "scripts" / "sample.py"
    command = [sys.executable, str(script), str(tmp_path / "file" / "tree")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_two_commands_at_once_write_one_whole_tree(tiny: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "scripts" / "sample.py"
    options = dataclasses.asdict(TINY)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, str(script), str(tmp_path / "tree"), *flags]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    announced = f"writing the synthetic sample to {tmp_path / 'tree'}, this once\n"
    for process in both:
        printed, messages = process.communicate(timeout=120)
        assert process.returncode == 0
        assert messages in (announced, "")  # whoever comes last may find it written
        assert printed.strip() == str(tmp_path / "tree")
    assert _digests(tmp_path / "tree") == _digests(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("patch_size", 16), ("domains", 41), ("seed", -1), ("super_patch", 120)],
)
def test_options_out_of_bounds_are_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(TINY, **{name: value})
