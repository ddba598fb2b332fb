"""The prepared store: bit-equal to the files, resumable, and refused where it no longer fits."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import select
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flair2_exp.config.data import AugConfig, DatasetConfig, S2PreprocConfig
from flair2_exp.data import preparation
from flair2_exp.data.datamodule import FlairDataModule
from flair2_exp.data.layout import Index, index, locate
from flair2_exp.data.preparation import Prepared, prepare
from flair2_exp.data.readers import StoreReader, TreeReader
from flair2_exp.errors import ConfigError, DamagedPatchError, DataError
from flair2_exp.files import replacing
from tests.commands import Answer, answer
from tests.data.trees import TEST_AREA, Tree, edit_json, groups_of, source_of, write_raster

SERIES = S2PreprocConfig(cloud_filter=True, monthly=True, size=16)
AREA = "D006_2020/Z2_UF"


def prepared(
    tree: Tree, path: Path, series: S2PreprocConfig | None = SERIES, **options: Any
) -> Prepared:
    return prepare(
        source_of(groups_of(tree.root), reads(series)), path, series=series,
        **({"shard": 2} | options),
    )  # fmt: skip


def listed(tree: Tree) -> Index:
    return index(locate(DatasetConfig(root=str(tree.root))))


def reads(series: S2PreprocConfig | None) -> frozenset[str]:
    return frozenset({"aerial"} if series is None else {"aerial", "satellite"})


def opened(tree: Tree, path: Path, series: S2PreprocConfig | None = SERIES) -> StoreReader:
    groups = groups_of(tree.root, store=str(path), s2_preproc=series or S2PreprocConfig())
    return StoreReader(source_of(groups, reads(series)), groups, reads(series))


def from_files(tree: Tree, series: S2PreprocConfig = SERIES) -> TreeReader:
    groups = groups_of(tree.root, s2_preproc=series)
    return TreeReader(listed(tree), groups, reads(series), 32)


def assert_same_samples(direct: TreeReader, stored: StoreReader) -> None:
    for patch in range(len(direct.index)):
        np.testing.assert_equal(vars(stored.read(patch)), vars(direct.read(patch)))


@pytest.mark.parametrize(
    "series",
    [
        SERIES,
        S2PreprocConfig(size=16),
        S2PreprocConfig(cloud_filter=True, size=24, cover="sum", days="reference"),
        S2PreprocConfig(monthly=True),
        None,
    ],
)
def test_batches_from_a_store_are_bit_equal_to_those_from_the_files(
    shared_tree: Tree, tmp_path: Path, series: S2PreprocConfig | None
) -> None:
    report = prepared(shared_tree, tmp_path / "store", series)
    assert (report.patches, report.written, report.damaged) == (5, 5, 0)
    for bands, classes in (
        (("red", "green", "blue", "nir", "elevation"), 13),
        (("nir", "red", "blue"), 19),
    ):
        groups = groups_of(
            shared_tree.root,
            bands=bands,
            classes=classes,
            s2_preproc=series or S2PreprocConfig(),
            aug=AugConfig(geometry="flips", noise=0.1, zoom=0.1, drop_dates=0.2),
        )
        dataset = dataclasses.replace(groups.dataset, store=str(tmp_path / "store"))
        direct, stored = (
            FlairDataModule(each, reads=reads(series) | {"metadata"})
            for each in (groups, dataclasses.replace(groups, dataset=dataset))
        )
        for data in (direct, stored):
            data.setup()
        for part in ("train_dataloader", "val_dataloader", "test_dataloader"):
            pairs = zip(getattr(direct, part)(), getattr(stored, part)(), strict=True)
            for one, other in pairs:
                assert one.keys() == other.keys()
                for name, value in one.items():
                    if torch.is_tensor(value):
                        assert value.dtype == other[name].dtype
                        assert torch.equal(value, other[name]), name
                    else:
                        assert value == other[name]
        assert direct.covered == stored.covered
        if series is not None and series.cloud_filter:
            assert any(stored.covered.values())


def test_a_store_with_series_serves_a_run_without_and_no_other_series(
    shared_tree: Tree, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    prepared(shared_tree, path)
    assert opened(shared_tree, path, None).read(0).frames is None
    other = S2PreprocConfig(cloud_filter=True, monthly=True, size=24, threshold=50)
    wrong = r"s2_preproc\.size is 16, not 24, s2_preproc\.threshold is 60, not 50"
    with pytest.raises(DataError, match=rf"other settings: {wrong}\.\nPrepare another"):
        opened(shared_tree, path, other)
    with pytest.raises(DataError, match=f"store of other settings: {wrong}"):
        prepared(shared_tree, path, other)
    scaled = S2PreprocConfig(cloud_filter=True, monthly=True, size=16, scale="reference")
    assert opened(shared_tree, path, scaled).read(0).frames is not None
    prepared(shared_tree, tmp_path / "aerial", None)
    with pytest.raises(DataError, match="satellite is False, not True"):
        opened(shared_tree, tmp_path / "aerial")


def test_several_processes_write_the_same_store(shared_tree: Tree, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    steps: list[tuple[int, int]] = []
    prepared(shared_tree, one)
    prepared(shared_tree, two, workers=2, progress=lambda done, of: steps.append((done, of)))
    assert sorted(steps)[-1] == (5, 5)
    assert len(steps) == 3
    arrays = sorted(file.relative_to(one) for file in one.rglob("*.npy"))
    assert len(arrays) == 9
    for file in arrays:
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_the_arrays_are_plain_numpy_files(shared_tree: Tree, tmp_path: Path) -> None:
    prepared(shared_tree, tmp_path, shard=128)
    folder = tmp_path / "shards" / "00000"
    sample = from_files(shared_tree).read(0)
    images = np.load(folder / "images.npy", allow_pickle=False)
    assert images.shape == (5, 5, 32, 32)
    assert np.array_equal(images[0], sample.image)  # type: ignore[arg-type]
    assert np.load(folder / "masks.npy").shape == (5, 32, 32)
    series = np.load(folder / "series.npy")
    assert series.dtype == np.float32
    assert sample.frames is not None
    assert np.array_equal(series[: len(sample.frames)], sample.frames)


def test_a_killed_preparation_is_refused_and_then_continued(
    own_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    write = preparation._Job._write_arrays

    def killed(job: Any, shard: int, folder: Path) -> Any:
        if shard == 1:
            raise KeyboardInterrupt
        return write(job, shard, folder)

    with monkeypatch.context() as patch:
        patch.setattr(preparation._Job, "_write_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(own_tree, path)
    (path / "shards" / "00001.part77").mkdir()  # what a kill without warning leaves
    with pytest.raises(DataError, match=r"is not finished.*\n.*flair2-exp prepare"):
        opened(own_tree, path)
    first = (path / "shards" / "00000" / "images.npy").stat()
    report = prepared(own_tree, path)
    assert (report.patches, report.written) == (5, 3)
    assert (path / "shards" / "00000" / "images.npy").stat().st_mtime_ns == first.st_mtime_ns
    assert sorted(os.listdir(path / "shards")) == ["00000", "00001", "00002"]
    assert opened(own_tree, path).read(4).frames is not None
    assert prepared(own_tree, path).written == 0


def test_two_preparations_of_one_store_do_not_meet(own_tree: Tree, tmp_path: Path) -> None:
    path = tmp_path / "store"
    refused: list[int] = []
    part = path / "shards" / "00002.part1"

    def progress(done: int, total: int) -> None:
        part.mkdir(exist_ok=True)  # as the running one has it
        with pytest.raises(ConfigError, match="is in use by process"):
            prepared(own_tree, path)
        refused.append(done)
        assert part.exists()

    assert prepared(own_tree, path, progress=progress).written == 5
    assert refused == [2, 4, 5]
    assert prepared(own_tree, path).written == 0


def test_the_processes_of_a_killed_preparation_end_and_free_its_lock(
    own_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, started = tmp_path / "store", tmp_path / "started"

    def stuck(job: Any, shard: int, folder: Path) -> Any:
        started.touch()
        time.sleep(20)
        os._exit(1)  # or a failure of this test would leave it behind

    with monkeypatch.context() as patch:
        patch.setattr(preparation._Job, "_write_arrays", stuck)
        context = multiprocessing.get_context("fork")
        ended, held = os.pipe()
        process = context.Process(target=prepared, args=(own_tree, path), kwargs={"workers": 2})
        process.start()
        os.close(held)  # from here on the preparation and its processes alone hold it
        assert within(10, started.exists)
        process.kill()
        process.join()
        assert select.select([ended], [], [], 10)[0], "all of them have ended"
        os.close(ended)

    def free() -> bool:
        try:
            return prepared(own_tree, path).written == 5
        except DataError:
            return False

    assert within(10, free)


def within(seconds: float, happens: Callable[[], bool]) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_and_the_preparation_continued(
    own_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    path = tmp_path / "store"
    append = preparation._Appended.append

    def full(array: Any, records: Any) -> None:
        if array._records == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(array, records)

    with monkeypatch.context() as patch:
        patch.setattr(preparation._Appended, "append", full)
        with pytest.raises(DataError, match=r"cannot be written \(No space left.*\nMake room"):
            prepared(own_tree, path, workers=workers)
    assert not list((path / "shards").glob("*.part*"))
    assert prepared(own_tree, path).patches == 5
    assert opened(own_tree, path).read(4).frames is not None


def test_a_process_that_dies_is_told(
    own_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation._Job, "_write_arrays", lambda *_: os._exit(9))
    with pytest.raises(DataError, match=r"a process of the preparation died.*\nCall it again"):
        prepared(own_tree, tmp_path / "store", workers=2)


def longer_image(tree: Tree) -> None:
    path = tree.image("IMG_000003")
    status = path.stat()
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def add_patch(tree: Tree) -> None:
    shutil.copy(tree.image("IMG_000003"), tree.image("IMG_000003").with_name("IMG_000009.tif"))
    shutil.copy(tree.mask("IMG_000003"), tree.mask("IMG_000003").with_name("MSK_000009.tif"))
    edit_json(tree.centroids, **{"IMG_000009.tif": [24, 24]})


CHANGES: dict[str, Callable[[Tree], object]] = {
    "mask touched": lambda tree: os.utime(tree.mask("IMG_000003"), ns=(5, 5)),
    "image longer": longer_image,
    "products touched": lambda tree: os.utime(tree.series(AREA, "products.txt"), ns=(5, 5)),
    "centroid moved": lambda tree: edit_json(tree.centroids, **{"IMG_000003.tif": [20, 20]}),
    "patch removed": lambda tree: tree.image("IMG_000003").unlink(),
    "patch added": add_patch,
}


@pytest.mark.parametrize(
    ("change", "difference", "patches", "written"),
    [
        ("mask touched", r"1 of 5 patches changed, first IMG_000003: its mask \(", 5, 2),
        ("image longer", r"1 of 5 patches changed, first IMG_000003: its image \(.* bytes\)", 5, 2),
        ("products touched", r"2 of 5 patches changed, first IMG_000003: its products", 5, 2),
        ("centroid moved", "1 of 5 patches changed, first IMG_000003: its centroid", 5, 2),
        ("patch removed", "0 patches more and 1 fewer, such as .*IMG_000003", 4, 2),
        ("patch added", "1 patches more and 0 fewer, such as .*IMG_000009", 6, 2),
    ],
)
def test_a_stale_store_is_refused_with_the_difference_and_renewed_where_it_is(
    own_tree: Tree, tmp_path: Path, change: str, difference: str, patches: int, written: int
) -> None:
    path = tmp_path / "store"
    prepared(own_tree, path)
    CHANGES[change](own_tree)
    with pytest.raises(DataError, match=difference) as refusal:
        opened(own_tree, path)
    assert str(refusal.value).count("\n") == 1
    report = prepared(own_tree, path)
    assert (report.patches, report.written) == (patches, written)
    assert_same_samples(from_files(own_tree), opened(own_tree, path))


def test_a_smaller_data_set_leaves_no_shards_behind(own_tree: Tree, tmp_path: Path) -> None:
    path = tmp_path / "store"
    prepared(own_tree, path)
    shutil.rmtree(own_tree.folder("aerial", AREA))
    prepared(own_tree, path)
    assert len(os.listdir(path / "shards")) == 2
    assert opened(own_tree, path).read(2).label.shape == (32, 32)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "series.npy"])
def test_a_store_that_lost_bytes_is_refused(shared_tree: Tree, tmp_path: Path, name: str) -> None:
    prepared(shared_tree, tmp_path)
    file = tmp_path / "shards" / "00001" / name
    reader = opened(shared_tree, tmp_path)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=f"is incomplete: .*{name} is missing or damaged"):
        opened(shared_tree, tmp_path)
    with pytest.raises(DamagedPatchError, match=f"{name}: cut off"):
        reader.read(3)
    file.unlink()
    with pytest.raises(DamagedPatchError, match=name):
        reader.read(3)
    assert prepared(shared_tree, tmp_path).written == 2, "as the refusal says: prepare it again"
    assert opened(shared_tree, tmp_path).read(3).frames is not None


def test_what_is_no_store_is_refused(shared_tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a prepared store.*\nPrepare one with"):
        opened(shared_tree, tmp_path / "missing")
    (tmp_path / "store.json").write_text('{"format": 2, "settings": []}')
    with pytest.raises(DataError, match="is not a prepared store"):
        opened(shared_tree, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="is neither empty nor a prepared store"):
        prepared(shared_tree, other)
    assert os.listdir(other) == ["thesis.tex"]
    with pytest.raises(DataError, match="cannot be written"):
        prepared(shared_tree, other / "thesis.tex" / "store")


def test_half_a_description_that_a_killed_preparation_left_is_no_other_folders_content(
    shared_tree: Tree, tmp_path: Path
) -> None:
    with replacing(tmp_path / "store.json") as fresh:
        fresh.write_text("{")
        assert prepared(shared_tree, tmp_path).written == 5


def test_a_disk_that_is_too_small_is_refused_before_anything_is_read(
    shared_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"0\.0 GB free; 5 patches need about"):
        prepared(shared_tree, tmp_path)


@pytest.mark.parametrize("unreadable", [True, False])
def test_damage_stops_a_preparation_or_is_marked(
    own_tree: Tree, tmp_path: Path, unreadable: bool
) -> None:
    if unreadable:
        own_tree.mask("IMG_000003").write_bytes(b"no mask")
    else:
        write_raster(own_tree.mask("IMG_000003"), np.full((1, 32, 32), 20))  # no class has it
    with pytest.raises(DamagedPatchError, match=f"patch IMG_000003 of {AREA} is damaged"):
        prepared(own_tree, tmp_path / "stop")
    report = prepared(own_tree, tmp_path / "skip", on_damaged="skip")
    assert (report.patches, report.damaged) == (5, 1)
    reader = opened(own_tree, tmp_path / "skip")
    assert reader.read(3).label.shape == (32, 32)
    with pytest.raises(DamagedPatchError, match="was damaged or lacked a file when it"):
        reader.read(2)


LACKS: dict[str, Callable[[Tree], object]] = {
    "test labels": lambda tree: shutil.rmtree(tree.root / "flair_2_labels_test"),
    "test mask": lambda tree: tree.mask("IMG_000005").unlink(),
    "test series": lambda tree: shutil.rmtree(tree.root / "flair_2_sen_test"),
    "the area's series": lambda tree: shutil.rmtree(tree.folder("sen", TEST_AREA)),
    "centroid": lambda tree: edit_json(tree.centroids, remove="IMG_000005.tif"),
}


@pytest.mark.parametrize("lack", LACKS)
def test_a_patch_that_lacks_a_file_is_not_stored_and_stops_only_a_run_that_needs_it(
    own_tree: Tree, tmp_path: Path, lack: str
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(own_tree.root, whole)
    LACKS[lack](own_tree)
    report = prepared(own_tree, tmp_path / "store")
    assert (report.patches, report.damaged, report.incomplete) == (5, 0, 1)
    with pytest.raises(DamagedPatchError, match="was damaged or lacked a file when it"):
        opened(own_tree, tmp_path / "store").read(4)
    groups = groups_of(own_tree.root, store=str(tmp_path / "store"), s2_preproc=SERIES)
    some = FlairDataModule(groups, reads=reads(SERIES), parts=("train", "validation"))
    some.setup()
    assert len(list(some.train_dataloader())) == 1
    with pytest.raises(DataError, match=r"1 of 1 test patches have no .*IMG_000005"):
        FlairDataModule(groups, reads=reads(SERIES)).setup()
    shutil.rmtree(own_tree.root)
    whole.rename(own_tree.root)
    with pytest.raises(DataError, match=r"1 of 5 .* IMG_000005: its (centroid|.*absent → \d+)"):
        opened(own_tree, tmp_path / "store")
    assert prepared(own_tree, tmp_path / "store").incomplete == 0
    assert opened(own_tree, tmp_path / "store").read(4).frames is not None


def test_patches_are_found_behind_shards_of_unequal_series(own_tree: Tree, tmp_path: Path) -> None:
    """Areas of unequal series: offsets count from each shard's first frame."""
    for name in ("data.npy", "masks.npy"):
        path = own_tree.series("D004_2021/Z1_NN", name)
        np.save(path, np.load(path)[:2])
    products = own_tree.series("D004_2021/Z1_NN", "products.txt")
    products.write_text("\n".join(products.read_text().splitlines()[:2]))
    raw = S2PreprocConfig(size=16)
    prepared(own_tree, tmp_path / "store", raw, shard=3)
    stored = opened(own_tree, tmp_path / "store", raw)
    assert_same_samples(from_files(own_tree, raw), stored)


def test_the_verb_prepares_what_its_overrides_say_and_refuses_in_few_lines(
    shared_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str) -> Answer:
        return answer("prepare", str(tmp_path / "store"), "dataset=flair2", *overrides)

    root = f"dataset.root={shared_tree.root}"
    done = call(root, "s2_preproc=monthly_cloudfree", "s2_preproc.size=16")
    assert done.status == 0, done.err
    assert "5 patches in" in done.out
    assert opened(shared_tree, tmp_path / "store").read(0).frames is not None
    refused = call(root, "s2_preproc=raw", "s2_preproc.size=16")
    assert refused.status == 1
    assert "store of other settings" in refused.err
    refused = call(root, "s2_prepoc=raw")
    assert refused.status == 1
    assert "did you mean s2_preproc" in refused.err
    experiment = tmp_path / "experiment" / "mine.yaml"
    experiment.parent.mkdir()
    experiment.write_text("# @package _global_\ns2_preproc: {size: 30}\n")
    refused = call(root, f"experiment={experiment}")
    assert refused.status == 1
    assert "s2_preproc.size=30" in refused.err
    assert "name the store's folder first" in answer("prepare", "dataset=flair2", root).err
