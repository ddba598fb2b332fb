"""Finding the files: the released names, the toy set's, each folder by itself; the cached index."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flair2_exp.config.data import DatasetConfig
from flair2_exp.data import layout
from flair2_exp.data.check.tree import check_tree
from flair2_exp.data.layout import Folders, Index, State, index, locate
from flair2_exp.errors import DataError
from tests.data.trees import AREAS, Tree, edit_json

IDS = [f"IMG_00000{number}" for number in range(1, 6)]

AREA = "D006_2020/Z2_UF"

TOY = {
    "flair_aerial_train": "flair_2_toy_aerial_train",
    "flair_2_aerial_test": "flair_2_toy_aerial_test",
    "flair_labels_train": "flair_2_toy_labels_train",
    "flair_2_labels_test": "flair_2_toy_labels_test",
    "flair_sen_train": "flair_2_toy_sen_train",
    "flair_2_sen_test": "flair_2_toy_sen_test",
    "flair_aerial_metadata.json": "flair-2_aerial_metadata.json",
}


def located(root: Path | None = None, **parts: Path) -> Folders:
    places = {name: str(path) for name, path in parts.items()}
    return locate(DatasetConfig(root=None if root is None else str(root), **places))


def found(folders: Folders) -> Index:
    """The index, and that every file it names is there."""
    listed = index(folders)
    for patch in range(len(listed)):
        assert listed.image_path(patch).is_file()
        assert listed.mask_path(patch).is_file()
    for area in range(len(listed.area_names)):
        assert all(path.is_file() for path in listed.series_files(area))
    return listed


def test_the_released_tree_is_found_from_its_root(shared_tree: Tree) -> None:
    listed = found(located(shared_tree.root))
    assert listed.ids.tolist() == IDS
    assert listed.area_names.tolist() == list(AREAS)
    assert listed.test.tolist() == [False] * 4 + [True]
    assert listed.labelled.all()
    assert listed.area_series.all()
    assert listed.domains.tolist() == ["D004_2021"] * 2 + ["D006_2020"] * 2 + ["D015_2020"]
    assert listed.centroids.tolist() == [[24, 25]] * 5
    assert listed.metadata["year"].tolist() == [2018, 2018, 2019, 2019, 2020]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_the_toy_set_is_found_from_its_folder_or_the_one_above(
    own_tree: Tree, tmp_path: Path, inside: bool, beside: bool
) -> None:
    """Its JSON files lie in its folder or beside that."""
    toy = tmp_path / "root" / layout.TOY_FOLDER
    toy.mkdir(parents=True)
    for name in os.listdir(own_tree.root):
        place = toy.parent if beside and name.endswith(".json") else toy
        (own_tree.root / name).rename(place / TOY.get(name, name))
    listed = found(located(toy if inside else toy.parent))
    assert listed.ids.tolist() == IDS
    assert (listed.centroids > 0).all()
    assert (listed.metadata["year"] > 0).all()


def test_each_folder_can_be_given_by_itself(own_tree: Tree, tmp_path: Path) -> None:
    names = {part: own_tree.root / names[0] for part, names in layout.FOLDER_NAMES.items()}
    moved = {part: path.rename(tmp_path / part) for part, path in names.items()}
    assert found(located(**moved)).ids.tolist() == IDS
    only_train = located(aerial_train=moved["aerial_train"])
    assert index(only_train).ids.tolist() == IDS[:4]


def test_a_given_folder_replaces_the_one_under_the_root(own_tree: Tree, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(own_tree.root / "flair_labels_train", other)
    folders = located(own_tree.root, labels_train=other)
    assert folders["labels_train"] == other
    assert folders["labels_test"] == own_tree.root / "flair_2_labels_test"


def test_roots_that_are_no_data_set_are_refused_in_two_lines(tmp_path: Path) -> None:
    empty, other, labels = tmp_path / "empty", tmp_path / "other", tmp_path / "labels"
    for path in (empty, other / "loveda", other / "isprs", labels / "flair_labels_train"):
        path.mkdir(parents=True)
    cases = {
        tmp_path / "missing": r"missing is not a folder.*\n.*flair_aerial_train",
        empty: r"is empty.*\nUnpack FLAIR #2",
        other: r"holds no FLAIR #2 tree but isprs, loveda; expected flair_aerial_train",
        labels: r"no aerial images in",
    }
    for root, message in cases.items():
        with pytest.raises(DataError, match=message) as refusal:
            located(root)
        assert str(refusal.value).count("\n") == 1
    with pytest.raises(DataError, match="no data set is given"):
        located()
    with pytest.raises(DataError, match=r"dataset\.labels_test=.*missing is not a folder"):
        located(labels, labels_test=tmp_path / "missing")


def test_a_tree_without_patches_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flair_aerial_train" / "D004_2021").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no IMG_\*\.tif under .*flair_aerial_train"):
        index(located(tmp_path))


def test_strange_names_are_no_patches(own_tree: Tree) -> None:
    image = own_tree.image(IDS[0])
    for name in ("IMG_000009.tif.aux.xml", "._IMG_000001.tif", "IMG_x.tif", "MSK_000001.tif"):
        shutil.copy(image, image.with_name(name))
    (own_tree.root / "flair_aerial_train" / "__MACOSX" / "Z1_NN" / "img").mkdir(parents=True)
    assert index(located(own_tree.root)).ids.tolist() == IDS


def test_files_that_are_no_json_are_refused(own_tree: Tree) -> None:
    for content, message in (
        ('{"IMG_000001.tif": [1, ', r"flair-2_centroids_sp_to_patch\.json cannot be read"),
        ("[" * 100_000, "cannot be read as JSON: maximum recursion"),
        ("[1, 2]", "holds no JSON object"),
    ):
        own_tree.centroids.write_text(content)
        with pytest.raises(DataError, match=message):
            index(located(own_tree.root))


def test_absent_and_malformed_entries_are_marked(own_tree: Tree) -> None:
    malformed = {"IMG_000002.tif": [3], "IMG_000003.tif": "12", "IMG_000004.tif": [10**99, 2]}
    edit_json(own_tree.centroids, remove="IMG_000001.tif", **malformed)
    edit_json(own_tree.metadata, IMG_000002={"time": "noon"})
    own_tree.mask("IMG_000003").unlink()
    listed = index(located(own_tree.root))
    assert (listed.centroids < 0).any(axis=1).tolist() == [True] * 4 + [False]
    assert (listed.metadata["year"] == 0).tolist() == [False, True, False, False, False]
    assert listed.labelled.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(
    "value", [[12.7, 3], [True, 3], ["12", "3"], "12", {"1": 0, "2": 0}, [math.nan, 1], 1e99, None]
)
def test_a_centroid_that_the_checker_calls_malformed_is_unknown(
    own_tree: Tree, value: object
) -> None:
    edit_json(own_tree.centroids, **{"IMG_000001.tif": value, "IMG_000002.tif": [28.0, 20]})
    folders = located(own_tree.root)
    assert index(folders).centroids[:2].tolist() == [[-1, -1], [28, 20]]
    assert [finding.kind for finding in check_tree(folders)] == ["malformed-centroid"]


# The cached index.


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[Folders]:
    """The folders of each index that was not taken from the cache."""
    seen: list[Folders] = []
    build = layout._build

    def counted(folders: Folders, listed: dict[str, State]) -> Index:
        seen.append(folders)
        return build(folders, listed)

    monkeypatch.setattr(layout, "_build", counted)
    return seen


@pytest.mark.usefixtures("later")
def test_the_index_is_listed_once_and_then_the_same(
    own_tree: Tree, listings: list[Folders]
) -> None:
    folders = located(own_tree.root)
    first, second = index(folders), index(folders)
    assert len(listings) == 1
    for name in layout.INDEX_ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(second, name))
        assert getattr(second, name).dtype == getattr(first, name).dtype
        assert not getattr(second, name).dtype.hasobject


def add_an_area(tree: Tree) -> None:
    area = tree.folder("aerial", "D004_2021/Z1_NN")
    shutil.copytree(area, area.with_name("Z9_NN"))


def move_a_centroid(tree: Tree) -> None:
    tree.centroids.write_text(tree.centroids.read_text().replace("25", "23"))


def copy_a_centroid_with_its_time(tree: Tree) -> None:
    """As `cp -p` over a file does: the size and the time of its content stay."""
    status = tree.centroids.stat()
    move_a_centroid(tree)
    os.utime(tree.centroids, ns=(status.st_mtime_ns, status.st_mtime_ns))


def beside(tree: Tree, name: str) -> Path:
    return tree.image("IMG_000001").with_name(name)


CHANGES: dict[str, Callable[[Tree], object]] = {
    "mask removed": lambda tree: tree.mask("IMG_000002").unlink(),
    "patch added": lambda tree: shutil.copy(
        tree.image("IMG_000001"), beside(tree, "IMG_000099.tif")
    ),
    "patch renamed": lambda tree: tree.image("IMG_000001").rename(beside(tree, "IMG_000099.tif")),
    "area added": add_an_area,
    "domain removed": lambda tree: shutil.rmtree(tree.folder("aerial", AREA).parent),
    "series removed": lambda tree: shutil.rmtree(tree.folder("sen", AREA)),
    "centroid moved": move_a_centroid,
    "centroid moved, time kept": copy_a_centroid_with_its_time,
}


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tree_is_never_read_from_the_cache(
    own_tree: Tree, listings: list[Folders], change: str
) -> None:
    folders = located(own_tree.root)
    index(folders)
    CHANGES[change](own_tree)
    again = index(folders)
    fresh = layout._build(folders, {})
    assert len(listings) == 3
    for name in layout.INDEX_ARRAYS:
        assert np.array_equal(getattr(again, name), getattr(fresh, name))


def test_an_index_of_a_tree_that_just_changed_is_not_kept(
    own_tree: Tree, listings: list[Folders], cache_home: Path
) -> None:
    index(located(own_tree.root))
    assert not list(cache_home.rglob("*.npz"))
    index(located(own_tree.root))
    assert len(listings) == 2


def test_two_trees_do_not_share_a_cached_index(own_tree: Tree, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(own_tree.root, other)
    (other / own_tree.image("IMG_000001").relative_to(own_tree.root)).unlink()
    assert len(index(located(own_tree.root))) == 5
    assert len(index(located(other))) == 4
