"""Patches as batches: what is read, how samples are put together, what damage does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rasterio.shutil
import torch
from numpy.typing import NDArray

from flair2_exp.config.data import AugConfig, S2PreprocConfig
from flair2_exp.data.dataset import (
    COVERED,
    DAMAGED,
    BatchKey,
    Failure,
    PatchDataset,
    pad_series,
)
from flair2_exp.data.layout import index, locate
from flair2_exp.data.readers import TreeReader, open_series, read_dates
from flair2_exp.errors import DamagedPatchError
from tests.data.trees import PRODUCTS, Tree, edit_json, groups_of, write_raster

PATCH = "IMG_000003"
AREA = "D006_2020/Z2_UF"


SMALL = S2PreprocConfig(size=16)
FILTERED = S2PreprocConfig(cloud_filter=True, size=16)
BOTH = frozenset({"aerial", "satellite"})


def reader(tree: Tree, reads: frozenset[str] = BOTH, **options: Any) -> TreeReader:
    groups = groups_of(tree.root, **({"s2_preproc": SMALL} | options))
    return TreeReader(index(locate(groups.dataset)), groups, reads, 32)


def dataset(
    tree: Tree, augmentation: AugConfig | None = None, seed: int = 1, **options: Any
) -> PatchDataset:
    """A tree's patches, as in training where an augmentation is given."""
    read = reader(tree)
    groups = groups_of(tree.root, aug=augmentation or AugConfig())
    training = augmentation is not None
    patches = np.arange(len(read.index))
    return PatchDataset(
        read, patches, groups, seed=seed, part="train" if training else "test", **options
    )


def batch(data: PatchDataset, *positions: int, epoch: int = 0) -> dict[str, Any]:
    made = data[BatchKey(epoch, positions)]
    assert isinstance(made, dict)
    return made


def test_a_sample_is_what_the_files_hold(shared_tree: Tree) -> None:
    sample = reader(shared_tree).read(2)
    assert sample.image is not None
    with rasterio.open(shared_tree.image(PATCH)) as file:
        assert np.array_equal(sample.image, file.read())
    with rasterio.open(shared_tree.mask(PATCH)) as file:
        assert np.array_equal(sample.label, np.minimum(file.read(1), 13) - 1)
    data = np.load(shared_tree.series(AREA, "data.npy"))
    assert np.array_equal(sample.frames, data[:, :, 16:32, 17:33])  # type: ignore[arg-type]
    assert sample.days is not None
    assert sample.days.tolist() == [132, 130, -28, -138]


def test_bands_come_in_the_wanted_order_and_nineteen_classes_stay_apart(shared_tree: Tree) -> None:
    whole = reader(shared_tree).read(0)
    some = reader(shared_tree, bands=("elevation", "red", "nir"), classes=19).read(0)
    assert whole.image is not None
    assert some.image is not None
    assert np.array_equal(some.image, whole.image[[4, 0, 3]])
    with rasterio.open(shared_tree.mask("IMG_000001")) as file:
        assert np.array_equal(some.label, file.read(1) - 1)


def test_a_modality_that_nothing_needs_is_not_read(own_tree: Tree) -> None:
    own_tree.image(PATCH).write_bytes(b"")
    for name in ("data.npy", "masks.npy", "products.txt"):
        own_tree.series(AREA, name).write_bytes(b"")
    sample = reader(own_tree, frozenset()).read(2)
    assert sample.image is None
    assert sample.frames is None


def test_probabilities_are_read_only_by_the_filter(own_tree: Tree) -> None:
    own_tree.series(AREA, "masks.npy").unlink()
    monthly = S2PreprocConfig(monthly=True, size=16)
    assert reader(own_tree, s2_preproc=monthly).read(2).frames is not None
    with pytest.raises(DamagedPatchError, match=r"masks\.npy"):
        reader(own_tree, s2_preproc=FILTERED).read(2)


@pytest.mark.parametrize(("order", "later"), [([0, 1, 2], 0), ([3, 2, 1, 0], 1_000_000)])
def test_a_list_of_products_that_is_mended_is_read_anew(
    own_tree: Tree, order: list[int], later: int
) -> None:
    path = own_tree.series(AREA, "products.txt")
    before, then = read_dates(path), path.stat().st_mtime_ns
    assert read_dates(path) is before
    path.write_text("".join(f"{PRODUCTS[position]}\n" for position in order))
    os.utime(path, ns=(then, then + later))
    assert np.array_equal(read_dates(path), before[order])


def test_a_batch_has_the_files_own_types_and_names(shared_tree: Tree) -> None:
    made = batch(dataset(shared_tree, metadata=np.ones((5, 45), np.float32)), 4, 0)
    kinds = {name: value.dtype for name, value in made.items() if torch.is_tensor(value)}
    assert kinds == {
        "image": torch.uint8,
        "label": torch.uint8,
        "series": torch.uint16,
        "days": torch.int64,
        "padding": torch.bool,
        "metadata": torch.float32,
    }
    assert made["patch_id"] == ["IMG_000005", "IMG_000001"]
    assert made["area"] == ["D015_2020/Z1_UA", "D004_2021/Z1_NN"]
    assert made["series"].shape == (2, 4, 10, 16, 16)
    assert made["padding"].tolist() == [[True, False, False, False]] * 2  # a blank acquisition
    assert made["days"][:, 0].tolist() == [0, 0]


def test_series_of_unequal_lengths_are_padded_at_the_end() -> None:
    def series(count: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        return np.full((count, 10, 4, 4), 7, dtype=np.uint16), np.full(count, 9)

    half_blank = series(2)
    half_blank[0][0, :, 0, 0] = 0  # a blank corner is no blank frame
    frames, days, padding = pad_series(
        [series(3), series(1), half_blank],
        lambda shape, dtype: torch.from_numpy(np.full(shape, 3, dtype)),  # an earlier batch's
    )
    assert frames.dtype == torch.uint16
    assert frames.long().amax((2, 3, 4)).tolist() == [[7, 7, 7], [7, 0, 0], [7, 7, 0]]
    assert days.tolist() == [[9, 9, 9], [9, 0, 0], [9, 9, 0]]
    assert padding.tolist() == [[False] * 3, [False, True, True], [False, False, True]]


def test_augmentation_depends_on_seed_epoch_and_patch_alone(shared_tree: Tree) -> None:
    options = AugConfig(geometry="d4", noise=0.1, drop_dates=0.4)
    data = dataset(shared_tree, augmentation=options)
    together = batch(data, 0, 1, 2, 3, 4)["image"]
    alone = torch.cat([batch(data, position)["image"] for position in range(5)])
    assert torch.equal(together, alone)
    groups = groups_of(shared_tree.root, aug=options)
    other_split = PatchDataset(data.reader, np.array([3]), groups, part="train")
    assert torch.equal(batch(other_split, 0)["image"][0], together[3])
    assert not torch.equal(batch(data, 0, epoch=1)["image"][0], together[0])
    other_seed = dataset(shared_tree, augmentation=options, seed=2)
    assert not torch.equal(batch(other_seed, 0)["image"][0], together[0])


def test_the_satellite_target_is_apart_only_where_the_geometry_leaves_it(shared_tree: Tree) -> None:
    follow = dataset(shared_tree, augmentation=AugConfig(geometry="flips", probability=1.0))
    assert "satellite_label" not in batch(follow, 0)
    stay = dataset(
        shared_tree, augmentation=AugConfig(geometry="flips", probability=1.0, satellite=False)
    )
    plain = dataset(shared_tree)
    made = batch(stay, 0, 1, 2)
    assert torch.equal(made["satellite_label"], batch(plain, 0, 1, 2)["label"])
    assert torch.equal(made["series"], batch(plain, 0, 1, 2)["series"])
    assert not torch.equal(made["label"], made["satellite_label"])


def test_a_clearest_acquisition_that_stands_in_is_counted(own_tree: Tree) -> None:
    path = own_tree.series(AREA, "masks.npy")
    np.save(path, np.full((4, 2, 48, 48), 99, dtype=np.uint8))
    clear = own_tree.series("D004_2021/Z1_NN", "masks.npy")
    np.save(clear, np.zeros((4, 2, 48, 48), dtype=np.uint8))
    read = reader(own_tree, s2_preproc=FILTERED)
    data = PatchDataset(read, np.arange(4), groups_of(own_tree.root))
    batch(data, 0, 1, 2, 3)
    assert (data.flags == COVERED).tolist() == [False, False, True, True]


# Damage.


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def raster(*shape: int, **profile: Any) -> Callable[[Path], None]:
    return lambda path: write_raster(path, np.ones(shape), **profile)


def array(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Path], None]:
    return lambda path: np.save(path, change(np.load(path)))


def mask_of_another_patch(path: Path) -> None:
    """By a virtual raster, GDAL's file that names others."""
    virtual = path.with_suffix(".vrt")
    other = path.with_name("MSK_000004.tif")
    rasterio.shutil.copy(other, virtual, driver="VRT")
    virtual.replace(path)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def far_centroid(path: Path) -> None:
    edit_json(path.parents[4] / "flair-2_centroids_sp_to_patch.json", **{f"{PATCH}.tif": [7, 24]})


IMAGE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut image": lambda path: cut(path, 600),
    "three bands": raster(3, 32, 32),
    "six bands": raster(6, 32, 32),
    "wide pixels": raster(5, 32, 32, dtype="uint16"),
}
MASK_DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty mask": lambda path: path.write_bytes(b""),
    "small mask": raster(1, 31, 32),
    "mask of two bands": raster(2, 32, 32),
    "mask as PNG": raster(1, 32, 32, driver="PNG"),
    "mask of another patch": mask_of_another_patch,
    "mask value 0": lambda path: write_raster(path, np.eye(32)[None]),
    "mask value 20": lambda path: write_raster(path, 1 + 19 * np.eye(32)[None]),
}
SERIES_DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cut series": ("data.npy", lambda path: cut(path, 1)),
    "pickled series": ("data.npy", pickled),
    "float series": ("data.npy", array(lambda frames: frames.astype(np.float32))),
    "nine bands": ("data.npy", array(lambda frames: frames[:, :9])),
    "no acquisition": ("data.npy", array(lambda frames: frames[:0])),
    "other probabilities": ("masks.npy", array(lambda masks: masks[:3])),
    "product too many": ("products.txt", lambda path: path.write_text("\n".join(PRODUCTS * 2))),
    "product without date": ("products.txt", lambda path: cut(path, 50)),
    "far centroid": ("data.npy", far_centroid),
}


def damage(tree: Tree, name: str) -> Path:
    """Damage a file of the patch; returns it."""
    if name in SERIES_DAMAGES:
        file, change = SERIES_DAMAGES[name]
        path = tree.series(AREA, file)
    elif name in IMAGE_DAMAGES:
        path, change = tree.image(PATCH), IMAGE_DAMAGES[name]
    else:
        path, change = tree.mask(PATCH), MASK_DAMAGES[name]
    change(path)
    return path


def damaged(
    tree: Tree, on_damaged: Literal["stop", "skip"], *, replace: bool = False
) -> PatchDataset:
    read = reader(tree, s2_preproc=FILTERED)
    groups = groups_of(tree.root, on_damaged=on_damaged)
    return PatchDataset(
        read, np.arange(len(read.index)), groups, part="train" if replace else "test"
    )


@pytest.mark.parametrize("name", IMAGE_DAMAGES | MASK_DAMAGES | SERIES_DAMAGES)
def test_damage_stops_the_run_with_the_patch_and_its_file(own_tree: Tree, name: str) -> None:
    file = damage(own_tree, name)
    failure = damaged(own_tree, "stop")[BatchKey(0, (0, 2))]
    assert isinstance(failure, Failure)
    assert f"patch {PATCH} of {AREA} is damaged: {file}" in failure.message
    assert failure.message.count("\n") == 1
    assert "dataset.on_damaged=skip" in failure.message


def test_a_file_that_is_gone_since_the_listing_stops_the_run(own_tree: Tree) -> None:
    data = damaged(own_tree, "stop")
    own_tree.image(PATCH).unlink()
    failure = data[BatchKey(0, (2,))]
    assert isinstance(failure, Failure)
    assert str(own_tree.image(PATCH)) in failure.message


@pytest.mark.parametrize("name", ["cut image", "cut series", "mask value 20"])
def test_damage_is_skipped_and_counted(own_tree: Tree, name: str) -> None:
    damage(own_tree, name)
    data = damaged(own_tree, "skip")
    assert batch(data, 0, 2, 4)["patch_id"] == ["IMG_000001", "IMG_000005"]
    assert data[BatchKey(0, (2,))] is None
    assert torch.nonzero(data.flags & DAMAGED).flatten().tolist() == [2]


def test_in_training_another_patch_takes_a_damaged_ones_place(own_tree: Tree) -> None:
    damage(own_tree, "cut image")
    data = damaged(own_tree, "skip", replace=True)
    first, second = batch(data, 0, 2, 4), batch(data, 0, 2, 4)
    assert first["image"].shape[0] == 3
    assert PATCH not in first["patch_id"]
    assert first["patch_id"] == second["patch_id"]
    assert torch.nonzero(data.flags & DAMAGED).flatten().tolist() == [2]


def test_a_split_of_nothing_but_damage_stops_even_with_skip(own_tree: Tree) -> None:
    for patch in ("IMG_000001", "IMG_000002", "IMG_000003", "IMG_000004", "IMG_000005"):
        own_tree.image(patch).write_bytes(b"no image")
    data = damaged(own_tree, "skip", replace=True)
    failure = data[BatchKey(0, (0,))]
    assert isinstance(failure, Failure)
    assert failure.message.startswith("all 5 train patches are damaged or missing")
    assert "on_damaged=skip leaves none of them" in failure.message


@pytest.mark.parametrize("header", [b"{'descr': (", b"{" * 3000, b"{'shape': 1, 'descr': 'u2'}"])
def test_an_array_whose_header_makes_no_sense_is_damaged(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "SEN2_sp_D004_2021-Z1_NN_data.npy"
    padded = header + b" " * (63 - (len(header) + 10) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded)
    with pytest.raises(DamagedPatchError, match=path.name):
        open_series(path, 10, ("<u2",))
