"""Loaders: the same batches whatever the workers, every patch once, damage told in two lines."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer

from flair2_exp.config.data import AugConfig, S2PreprocConfig
from flair2_exp.data.datamodule import BatchSampler, FlairDataModule, PatchLoader
from flair2_exp.data.dataset import BatchKey, PatchDataset
from flair2_exp.data.flair import FlairSource
from flair2_exp.data.layout import Index, index, locate
from flair2_exp.data.readers import TreeReader
from flair2_exp.errors import DamagedPatchError, DataError
from tests.data.trees import Tree, edit_json, groups_of, write_raster

SERIES = S2PreprocConfig(cloud_filter=True, monthly=True, size=16)


BOTH = frozenset({"aerial", "satellite"})
ALL = BOTH | {"metadata"}


def module(
    tree: Tree,
    reads: frozenset[str] = BOTH,
    parts: tuple[str, ...] = ("train", "validation", "test"),
    **options: Any,
) -> FlairDataModule:
    groups = groups_of(tree.root, **({"s2_preproc": SERIES, "batch_size": 2} | options))
    data = FlairDataModule(groups, reads=reads, parts=parts)
    data.setup()
    return data


def same(one: Any, other: Any) -> bool:
    if torch.is_tensor(one):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def at_epoch(loader: PatchLoader, epoch: int) -> Iterator[dict[str, Any]]:
    loader.sampler.set_epoch(epoch)
    yield from loader


def test_setup_tells_what_the_data_are(shared_tree: Tree) -> None:
    data = module(shared_tree)
    assert data.patch_size == 32
    assert data.counts == {"train": 2, "validation": 2, "test": 1}
    assert len(data.fingerprint) == 64
    data.setup("fit")


def test_batches_do_not_depend_on_the_workers(shared_tree: Tree) -> None:
    aug = AugConfig(geometry="d4", noise=0.05, drop_dates=0.3)
    alone, shared = (module(shared_tree, ALL, workers=n, batch_size=1, aug=aug) for n in (0, 2))
    loaders = [data.train_dataloader() for data in (alone, shared)]
    for epoch in (0, 1, 5):
        ours, theirs = (list(at_epoch(loader, epoch)) for loader in loaders)
        assert len(ours) == len(theirs) == 2
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            assert all(same(one[name], other[name]) for name in one)
    for one, other in zip(alone.test_dataloader(), shared.test_dataloader(), strict=True):
        assert all(same(one[name], other[name]) for name in one)


def test_evaluation_is_neither_shuffled_nor_augmented(shared_tree: Tree) -> None:
    data = module(shared_tree, aug=AugConfig(geometry="d4"), val_batch_size=1, test_batch_size=1)
    first, later = (list(at_epoch(data.val_dataloader(), epoch)) for epoch in (0, 3))
    assert [batch["patch_id"] for batch in first] == [["IMG_000001"], ["IMG_000002"]]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, later, strict=True))


def test_elevation_keeps_its_values_wherever_its_band_is(shared_tree: Tree) -> None:
    bands = ("elevation", "red", "nir")
    changes = AugConfig(brightness=0.5, noise=0.1)
    plain, changed = (
        module(shared_tree, bands=bands, aug=each).dataset("train").sample(0, 0).image
        for each in (AugConfig(), changes)
    )
    assert plain is not None
    assert changed is not None
    assert np.array_equal(plain[0], changed[0])
    assert not np.array_equal(plain[1], changed[1])


class Recorder(LightningModule):
    """A model that learns nothing and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[str], float]] = []

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        mean = batch["image"].mean()
        self.seen.append((self.current_epoch, batch["patch_id"], float(mean)))
        assert batch["image"].dtype == torch.float32
        loss: torch.Tensor = self.weight.sum() * mean
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_gives_each_epoch_its_order_also_after_a_resume(
    shared_tree: Tree, tmp_path: Path
) -> None:
    def train(epochs: int, checkpoint: str | None) -> list[tuple[int, list[str], float]]:
        model = Recorder()
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar"), False)
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, enable_model_summary=False,
            enable_checkpointing=False, limit_val_batches=0, **quiet,
        )  # fmt: skip
        augmentation = AugConfig(geometry="d4", noise=0.1)
        groups = groups_of(shared_tree.root, s2_preproc=SERIES, batch_size=1, aug=augmentation)
        data = FlairDataModule(groups, reads=BOTH)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model.seen

    whole = train(4, None)
    first = train(2, None)
    rest = train(4, str(tmp_path / "2.ckpt"))
    assert first + rest == whole
    assert len({tuple(image for _, _, image in whole[i : i + 2]) for i in range(0, 8, 2)}) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_epoch_goes_on_behind_its_batches_and_the_next_is_whole(
    shared_tree: Tree, workers: int
) -> None:
    """Two epochs of two batches, left after the first batch."""

    def images(batches: Iterator[dict[str, Any]]) -> list[list[str]]:
        return [batch["patch_id"] for batch in batches]

    whole = module(shared_tree, batch_size=1).train_dataloader()
    expected = [images(at_epoch(whole, epoch)) for epoch in (0, 1)]
    begun = iter(whole)
    next(begun)
    state = whole.state_dict()
    assert state == {"batches": 1}
    resumed = module(shared_tree, batch_size=1, workers=workers).train_dataloader()
    resumed.load_state_dict(state)
    assert images(at_epoch(resumed, 0)) == expected[0][1:]
    assert resumed.state_dict() == {"batches": 2}
    assert images(at_epoch(resumed, 1)) == expected[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_leaves_the_random_numbers_of_dropout_alone(
    shared_tree: Tree, workers: int
) -> None:
    loader = module(shared_tree, workers=workers).train_dataloader()
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


# The sampler.


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**31), st.integers(0, 5))
def test_one_process_sees_every_patch_once_an_epoch(
    count: int, size: int, seed: int, epoch: int
) -> None:
    for shuffle in (True, False):
        sampler = BatchSampler(count, size, shuffle=shuffle, seed=seed)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(keys) == len(sampler)
        assert all(key.epoch == epoch and 1 <= len(key.positions) <= size for key in keys)
        positions = [position for key in keys for position in key.positions]
        assert sorted(positions) == list(range(count))
        assert shuffle or positions == sorted(positions)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(2, 5), st.integers(0, 2**31))
def test_several_processes_share_the_patches_in_equally_many_batches(
    count: int, size: int, replicas: int, seed: int
) -> None:
    for shuffle in (True, False):
        shares = [
            list(BatchSampler(count, size, shuffle=shuffle, seed=seed, replicas=replicas, rank=r))
            for r in range(replicas)
        ]
        assert len({len(share) for share in shares}) == 1
        seen = [position for share in shares for key in share for position in key.positions]
        assert set(seen) == set(range(count))
        assert all(len(key.positions) <= size for share in shares for key in share)
        batches = sum(len(share) for share in shares)
        if shuffle:
            assert len(seen) < count + replicas
        elif count >= batches:
            assert len(seen) == count


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_without_the_last_partial_batch_all_are_whole_and_as_many_in_each_process(
    count: int, size: int, replicas: int, shuffle: bool, epoch: int
) -> None:
    def batches(rank: int, **options: Any) -> list[tuple[int, ...]]:
        sampler = BatchSampler(count, size, shuffle=shuffle, seed=3, rank=rank, **options)
        sampler.set_epoch(epoch)
        keys = [key.positions for key in sampler]
        assert len(keys) == len(sampler)
        return keys

    shares = [batches(rank, replicas=replicas, drop_last=True) for rank in range(replicas)]
    assert [len(share) for share in shares] == [count // (replicas * size)] * replicas
    assert all(len(batch) == size for share in shares for batch in share)
    seen = [position for share in shares for batch in share for position in batch]
    assert len(seen) == len(set(seen))
    if replicas == 1:  # as torch's own BatchSampler drops it
        assert shares[0] == [batch for batch in batches(0) if len(batch) == size]
    elif not shuffle:
        assert sorted(seen) == list(range(len(seen)))


def test_training_and_validation_drop_the_last_partial_batch_and_the_test_keeps_it(
    own_tree: Tree,
) -> None:
    for old, number in (("04", "10"), ("02", "11"), ("05", "12")):  # 3 + 3 patches, and 2 to test
        for path in (own_tree.image(f"IMG_0000{old}"), own_tree.mask(f"IMG_0000{old}")):
            shutil.copy(path, path.with_name(path.name.replace(old, number)))
    sizes = {"batch_size": 2, "val_batch_size": 2, "test_batch_size": 5}
    for drops, expected in ((True, ([2], [2], [2])), (False, ([2, 1], [2, 1], [2]))):
        data = module(own_tree, frozenset({"aerial"}), drop_last=drops, **sizes)
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        lengths = tuple([len(batch["patch_id"]) for batch in loader] for loader in loaders)
        assert lengths == expected
        assert [len(loader) for loader in loaders] == [len(each) for each in expected]


def test_dropping_every_batch_of_a_part_is_refused_with_what_fits(shared_tree: Tree) -> None:
    sizes = {"batch_size": 2, "val_batch_size": 10, "test_batch_size": 10}
    data = module(shared_tree, drop_last=True, **sizes)
    with pytest.raises(DataError) as refusal:
        data.require_whole_batches(1)
    assert str(refusal.value) == (
        "data.drop_last=true leaves no whole batch of 10 patches, of 2 validation patches.\n"
        "Set data.val_batch_size=2 or data.drop_last=false."
    )
    with pytest.raises(DataError, match="whole batch"):
        data.val_dataloader()
    data = module(shared_tree, drop_last=True, **sizes | {"val_batch_size": 1})
    data.require_whole_batches(1)
    data.test_dataloader()
    with pytest.raises(DataError, match=r"2 patches for each of 2 devices.*\n.*batch_size=1 or"):
        data.require_whole_batches(2)
    with pytest.raises(DataError, match=r"each of 3 devices.*\nSet data.drop_last=false"):
        data.require_whole_batches(3)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[BatchKey]:
        sampler = BatchSampler(50, 5, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    distinct = [[k.positions for k in order(s, e)] for s in (1, 2) for e in (0, 1)]
    assert all(a != b for i, a in enumerate(distinct) for b in distinct[:i])


# Scaling on the device.


@pytest.mark.parametrize(
    ("series", "factor"),
    [
        (S2PreprocConfig(size=16), 10_000),
        (S2PreprocConfig(size=16, scale="reference"), 65_535),
        (S2PreprocConfig(size=16, monthly=True, scale="reference"), 1),
    ],
)
def test_batches_are_scaled_after_the_transfer(
    shared_tree: Tree, series: S2PreprocConfig, factor: int
) -> None:
    data = module(shared_tree, s2_preproc=series)
    (batch,) = data.val_dataloader()
    scaled = data.on_after_batch_transfer(batch, 0)
    assert batch["image"].dtype == torch.uint8
    torch.testing.assert_close(scaled["image"], batch["image"].double().div(255).float())
    expected = batch["series"].double().div(factor).float()
    torch.testing.assert_close(scaled["series"], expected, rtol=1e-6, atol=0)
    assert scaled["label"].dtype == scaled["satellite_label"].dtype == torch.int64
    assert torch.equal(scaled["satellite_label"], batch["label"].long())
    if not series.monthly:
        assert not scaled["series"][scaled["padding"]].any()
        assert scaled["padding"].sum() == 2


# What a data set lacks.


LACKS: dict[str, Callable[[Tree], object]] = {
    "mask": lambda tree: tree.mask("IMG_000003").unlink(),
    "centroid": lambda tree: edit_json(tree.centroids, remove="IMG_000003.tif"),
    "valid entry in flair_aerial_metadata.json": lambda tree: edit_json(
        tree.metadata, IMG_000003={"date": "July"}
    ),
}


@pytest.mark.parametrize("lack", LACKS)
def test_what_is_missing_stops_the_run_or_is_skipped_and_counted(own_tree: Tree, lack: str) -> None:
    LACKS[lack](own_tree)
    with pytest.raises(DataError, match=f"1 of 2 train patches have no {lack}.*\n?.*IMG_000003"):
        module(own_tree, ALL)
    data = module(own_tree, ALL, on_damaged="skip")
    assert data.counts["train"] == 1
    assert data.skipped == {"train": 1, "validation": 0, "test": 0}


def test_what_a_run_does_not_read_it_does_not_miss(own_tree: Tree) -> None:
    for lack in ("centroid", "valid entry in flair_aerial_metadata.json"):
        LACKS[lack](own_tree)
    assert module(own_tree, frozenset({"aerial"})).counts["train"] == 2
    assert module(own_tree, parts=("validation", "test")).counts["test"] == 1


def test_images_of_another_data_set_are_refused(own_tree: Tree) -> None:
    write_raster(own_tree.image("IMG_000003"), np.ones((3, 32, 32)))
    with pytest.raises(DataError, match="3 bands of 32 x 32 pixels; FLAIR #2 has 5 square"):
        module(own_tree)


def test_thousands_of_damaged_patches_are_passed_over_without_a_warning(own_tree: Tree) -> None:
    own_tree.image("IMG_000003").write_bytes(b"no image")
    write_raster(own_tree.image("IMG_000004"), np.ones((5, 32, 32)), crs=None, transform=None)
    source = FlairSource(groups_of(own_tree.root, on_damaged="skip"), BOTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that of an image without a place
        source.settle(np.array([2] * 2000 + [3]), "train")
    assert source.patch_size == 32
    with pytest.raises(DataError, match=r"all 2 train patches are damaged .*IMG_000003"):
        source.settle(np.array([2, 2]), "train")


@pytest.mark.parametrize("shape", [(5, 16, 16), (5, 16, 32), (3, 32, 32)])
def test_a_first_patch_of_another_form_is_skipped_and_not_taken_for_the_measure(
    own_tree: Tree, shape: tuple[int, int, int]
) -> None:
    for number in range(10, 20):
        for path in (own_tree.image("IMG_000004"), own_tree.mask("IMG_000004")):
            shutil.copy(path, path.with_name(path.name.replace("04", str(number))))
    write_raster(own_tree.image("IMG_000003"), np.ones(shape))
    data = module(own_tree, frozenset({"aerial"}), ("train", "test"), on_damaged="skip")
    assert data.index.ids[data.split.train[0]] == "IMG_000003"
    assert data.patch_size == 32
    (batch,) = data.test_dataloader()
    assert batch["patch_id"] == ["IMG_000005"]
    list(data.train_dataloader())
    assert data.skipped == {"train": 1, "validation": 0, "test": 0}


PATCHES = {"train": (3, 4), "validation": (1, 2), "test": (5,)}


@pytest.mark.parametrize("part", PATCHES)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_part_of_which_every_patch_is_damaged_is_named_with_its_count(
    own_tree: Tree, part: str, workers: int
) -> None:
    data = module(own_tree, workers=workers, on_damaged="skip")
    for number in PATCHES[part]:
        own_tree.image(f"IMG_00000{number}").write_bytes(b"no image")
    loaders = {
        "train": data.train_dataloader, "validation": data.val_dataloader,
        "test": data.test_dataloader,
    }  # fmt: skip
    with pytest.raises(DataError) as refusal:
        list(loaders[part]())
    count = len(PATCHES[part])
    assert f"all {count} {part} patches are damaged or missing; the first is" in str(refusal.value)
    assert "flair2-exp check" in str(refusal.value)
    assert str(refusal.value).count("\n") == 1


def test_a_part_of_which_every_patch_lacks_a_file_is_named_with_its_count(own_tree: Tree) -> None:
    for number in PATCHES["validation"]:
        own_tree.mask(f"IMG_00000{number}").unlink()
    with pytest.raises(DataError, match="all 2 validation patches are damaged or missing"):
        module(own_tree, on_damaged="skip")


def test_an_empty_part_is_refused_unless_the_run_leaves_it_out(own_tree: Tree) -> None:
    empty = str(own_tree.root / "flair_labels_train")
    with pytest.raises(DataError, match="split=official leaves no test patches"):
        module(own_tree, aerial_test=empty)
    data = module(own_tree, parts=("train", "validation"), aerial_test=empty)
    assert data.counts["test"] == 0


def test_a_year_outside_the_code_is_said(own_tree: Tree) -> None:
    content = own_tree.metadata.read_text().replace("2019-", "2017-")
    own_tree.metadata.write_text(content)
    with pytest.warns(UserWarning, match="2 train patches are of a year outside 2018 to 2021"):
        data = module(own_tree, ALL)
    (batch,) = data.train_dataloader()
    assert not batch["metadata"][:, 35:39].any()


# Damage in a worker.


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_in_a_worker_stops_the_run_in_two_lines(own_tree: Tree, workers: int) -> None:
    data = module(own_tree, workers=workers)
    own_tree.image("IMG_000003").write_bytes(b"")
    with pytest.raises(DamagedPatchError) as stop:
        list(data.train_dataloader())
    assert "IMG_000003" in str(stop.value)
    assert str(stop.value).count("\n") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_in_a_worker_is_skipped_counted_and_said(own_tree: Tree, workers: int) -> None:
    data = module(own_tree, workers=workers, on_damaged="skip", val_batch_size=1, test_batch_size=1)
    for patch in ("IMG_000001", "IMG_000003"):
        own_tree.mask(patch).write_bytes(b"no mask")
    (batch,) = data.train_dataloader()
    assert batch["patch_id"] == ["IMG_000004"] * 2
    assert [batch["patch_id"] for batch in data.val_dataloader()] == [["IMG_000002"]]
    assert data.skipped == {"train": 1, "validation": 1, "test": 0}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data.teardown("fit")
    assert "1 damaged validation patches were skipped" in {str(one.message) for one in said}


# Memory.


def private_bytes(pid: int) -> int:
    """Memory of a process that no other shares, blocks of batches left out.

    Those are bounded by test_sharing, and private whenever the trainer has none of them.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    held = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    private = sum(size for name, size in held.items() if name.startswith("Private_"))
    return 1024 * (private - held.get("Pss_Shmem", 0))


def padded(small: Index, count: int) -> Index:
    """An index of `count` patches more than can be read, as large as that makes it."""
    rows = np.resize(np.arange(len(small)), count)
    names = ("ids", "area", "labelled", "centroids", "metadata")
    return dataclasses.replace(small, **{name: getattr(small, name)[rows] for name in names})


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps")
def test_a_worker_shares_the_index_and_does_not_grow_over_thousands_of_samples(
    shared_tree: Tree,
) -> None:
    groups = groups_of(shared_tree.root, s2_preproc=SERIES, aug=AugConfig(geometry="flips"))
    small = index(locate(groups.dataset))
    large = padded(small, 600_000)  # 60 MB
    held: dict[str, list[int]] = {}
    for name, listed in (("small", small), ("large", large)):
        reader = TreeReader(listed, groups, BOTH, 32)
        data = PatchDataset(reader, np.arange(500) % 5, groups, part="train")
        sampler = BatchSampler(500, 20, shuffle=True)
        gc.collect()
        gc.freeze()  # or the worker's collector writes to what other tests left
        others = set(multiprocessing.active_children())
        loader = PatchLoader(
            data, batch_size=None, sampler=sampler, num_workers=1, persistent_workers=True,
            multiprocessing_context="fork", collate_fn=lambda batch: batch,
        )  # fmt: skip
        epochs = range(5 if name == "small" else 1)
        held[name] = [worker_memory(loader, epoch, others) for epoch in epochs]
        gc.unfreeze()
    assert sum(getattr(large, n).nbytes for n in ("ids", "metadata")) > 40e6
    assert held["large"][0] < held["small"][0] + 15e6
    assert held["small"][-1] < held["small"][0] + 5e6


def worker_memory(loader: PatchLoader, epoch: int, others: set[Any]) -> int:
    """What the only worker holds for itself after an epoch."""
    assert sum(len(batch["patch_id"]) for batch in at_epoch(loader, epoch)) == 500
    (worker,) = set(multiprocessing.active_children()) - others
    assert worker.pid is not None
    return private_bytes(worker.pid)
