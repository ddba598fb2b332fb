"""Fingerprints: equal for the same content, another one for any change, known again at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flair2_exp.config.data import SampleConfig, SplitConfig
from flair2_exp.data import digests, layout
from flair2_exp.data.datamodule import FlairDataModule
from flair2_exp.data.fingerprint import fingerprint
from flair2_exp.data.preparation import prepare
from flair2_exp.data.sample import tree as sample
from flair2_exp.errors import DataError
from tests.data.trees import Tree, edit_json, groups_of, source_of

EVERYTHING = frozenset({"aerial", "satellite", "metadata"})
AREA = "D006_2020/Z2_UF"
PATCH = "IMG_000003"


def of(root: Path, reads: frozenset[str] = EVERYTHING, **options: Any) -> str:
    return fingerprint(groups_of(root, **options), reads)


def change_unseen(path: Path) -> None:
    """Change a file's last byte in place, then put its times back as far as that can be done."""
    before = path.stat()
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content was looked at."""
    paths: list[str] = []
    digest = digests._digest

    def noted(path: str) -> bytes:
        paths.append(path)
        return digest(path)

    monkeypatch.setattr(digests, "_digest", noted)
    return paths


def test_a_copy_of_a_tree_elsewhere_has_the_same_fingerprint(
    own_tree: Tree, tmp_path: Path
) -> None:
    shutil.copytree(own_tree.root, tmp_path / "copy", copy_function=shutil.copyfile)
    before = of(own_tree.root)
    assert len(before) == 64
    assert of(tmp_path / "copy") == before
    parts = {f"labels_{part}": str(own_tree.root / f"flair_{name}_{part}")
             for part, name in (("train", "labels"), ("test", "2_labels"))}  # fmt: skip
    assert of(tmp_path / "copy", **parts) == before


CHANGED = {
    "image": lambda tree: tree.image(PATCH),
    "mask": lambda tree: tree.mask(PATCH),
    "data": lambda tree: tree.series(AREA, "data.npy"),
    "masks": lambda tree: tree.series(AREA, "masks.npy"),
    "products": lambda tree: tree.series(AREA, "products.txt"),
}
READ_BY = {"image": "aerial", "data": "satellite", "masks": "satellite", "products": "satellite"}


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("name", CHANGED)
def test_a_file_changed_in_place_with_size_and_mtime_put_back_is_noticed(
    own_tree: Tree, name: str
) -> None:
    reads = [EVERYTHING, frozenset({READ_BY[name]} if name in READ_BY else ())]
    before = [of(own_tree.root, each) for each in reads]
    without = of(own_tree.root, EVERYTHING - {READ_BY.get(name, "")})
    change_unseen(CHANGED[name](own_tree))
    after = [of(own_tree.root, each) for each in reads]
    assert all(one != other for one, other in zip(before, after, strict=True))
    if name in READ_BY:
        assert of(own_tree.root, EVERYTHING - {READ_BY[name]}) == without


def test_a_large_file_counts_by_blocks_from_its_first_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = np.random.default_rng(0).bytes(1_000_000)
    path.write_bytes(content)
    whole = digests._digest(str(path))
    for start in range(0, len(content), 100_000):  # any sizeable stretch holds a block
        end = start + 150_000
        path.write_bytes(content[:start] + bytes(len(content[start:end])) + content[end:])
        assert digests._digest(str(path)) != whole
    for changed in (b"\0" + content[1:], content[:-1] + b"\0", content + b"\0"):
        path.write_bytes(changed)
        assert digests._digest(str(path)) != whole


def test_what_the_two_tables_say_counts_where_it_is_read(own_tree: Tree) -> None:
    aerial = frozenset({"aerial"})
    before = of(own_tree.root, aerial), of(own_tree.root)
    edit_json(own_tree.centroids, **{f"{PATCH}.tif": [20, 20]})
    moved = of(own_tree.root, aerial), of(own_tree.root)
    assert moved[0] == before[0]
    assert moved[1] != before[1]
    own_tree.metadata.write_text(own_tree.metadata.read_text().replace("10h33", "10h34"))
    assert of(own_tree.root, aerial) == before[0]
    assert of(own_tree.root) != moved[1]


def test_a_file_that_is_gone_counts_as_such(own_tree: Tree) -> None:
    before = of(own_tree.root)
    own_tree.mask(PATCH).unlink()
    assert of(own_tree.root) != before
    shutil.rmtree(own_tree.root / "flair_2_labels_test")
    shutil.rmtree(own_tree.root / "flair_2_sen_test")
    assert len(of(own_tree.root)) == 64


def test_a_split_file_counts_by_its_content(shared_tree: Tree, tmp_path: Path) -> None:
    def split(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        options = SplitConfig(name="file", file=str(tmp_path / name))
        return of(shared_tree.root, split=options)

    first = split("a.yaml", "train: [D006_2020]\nvalidation: [D004_2021]\ntest: [D015_2020]")
    same = split("b.yaml", "# the official one\ntest: [D015_2020]\ntrain: [D006_2020]\n"
                 "validation: [IMG_000002, IMG_000001]")  # fmt: skip
    assert first == same == of(shared_tree.root)
    assert (
        split("b.yaml", "train: [D004_2021]\nvalidation: [D006_2020]\ntest: [D015_2020]") != first
    )


def test_the_data_module_has_the_same_and_lists_the_tree_once(
    shared_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = groups_of(shared_tree.root)
    expected = fingerprint(groups, EVERYTHING)
    data = FlairDataModule(groups, reads=EVERYTHING)
    data.setup()
    monkeypatch.setattr(layout, "index", None)
    assert data.fingerprint == expected


def test_patches_that_a_run_leaves_out_still_count(own_tree: Tree) -> None:
    own_tree.mask(PATCH).unlink()
    groups = groups_of(own_tree.root, on_damaged="skip")
    data = FlairDataModule(groups, reads=EVERYTHING)
    data.setup()
    assert data.counts["train"] == 1
    assert data.fingerprint == fingerprint(groups, EVERYTHING)


# Known again.


@pytest.mark.usefixtures("later")
def test_a_file_is_read_once_and_again_only_after_a_change(
    own_tree: Tree, read_files: list[str]
) -> None:
    before = of(own_tree.root, frozenset({"aerial"}))
    assert len(read_files) == 10
    assert of(own_tree.root) != before
    assert len(read_files) == 10 + 9
    del read_files[:]
    assert of(own_tree.root, frozenset({"aerial"})) == before
    assert read_files == []
    change_unseen(own_tree.mask(PATCH))
    os.utime(own_tree.image(PATCH))
    assert of(own_tree.root, frozenset({"aerial"})) != before
    assert sorted(read_files) == sorted(map(str, (own_tree.image(PATCH), own_tree.mask(PATCH))))


def test_what_changed_just_now_is_read_again(own_tree: Tree, read_files: list[str]) -> None:
    """A second change within one tick of the clock would leave all its times as they are."""
    before = of(own_tree.root)
    assert of(own_tree.root) == before
    assert len(read_files) == 2 * 19


@pytest.mark.usefixtures("later")
def test_a_broken_cache_is_made_anew_and_an_unwritable_one_does_no_harm(
    own_tree: Tree, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of(own_tree.root)
    files = sorted(cache_home.rglob("*.npz"))
    assert [file.name.partition("-")[0] for file in files] == ["digests", "index"]
    for file in files:
        whole = file.read_bytes()
        for content in (b"", b"no zip", whole[: len(whole) // 2]):
            file.write_bytes(content)
            assert of(own_tree.root) == before
    (cache_home / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home / "file"))
    assert of(own_tree.root) == before


# Prepared stores and samples.


@pytest.mark.parametrize("reads", [EVERYTHING, frozenset({"aerial"}), frozenset({"satellite"})])
def test_a_store_has_the_fingerprint_of_the_files_that_it_was_made_from(
    own_tree: Tree, tmp_path: Path, reads: frozenset[str]
) -> None:
    groups = groups_of(own_tree.root, store=str(tmp_path / "store"))
    prepare(source_of(groups, EVERYTHING), tmp_path / "store", series=groups.s2_preproc)
    before = of(own_tree.root, reads)
    assert fingerprint(groups, reads) == before
    for name in CHANGED:  # unnoticed by the store, which is read all the same
        change_unseen(CHANGED[name](own_tree))
    assert of(own_tree.root, reads) != before
    assert fingerprint(groups, reads) == before
    data = FlairDataModule(groups, reads=reads)
    data.setup()
    assert data.fingerprint == before


def test_a_store_of_other_patches_and_one_that_is_not_there_are_refused(
    own_tree: Tree, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    groups = groups_of(own_tree.root, store=str(store))
    with pytest.raises(DataError, match="is not a prepared store") as refusal:
        fingerprint(groups, EVERYTHING)
    assert str(refusal.value).count("\n") == 1
    prepare(source_of(groups, EVERYTHING), store, series=groups.s2_preproc)
    own_tree.image(PATCH).unlink()
    with pytest.raises(DataError, match="0 patches more and 1 fewer"):
        fingerprint(groups, EVERYTHING)
    (store / "index.npz").unlink()
    with pytest.raises(DataError, match="is not finished"):
        fingerprint(groups, EVERYTHING)


def test_a_sample_has_none_before_it_is_made_and_after_it_was_removed(tmp_path: Path) -> None:
    options = SampleConfig(
        patch_size=32, domains=6, areas_per_domain=1, patches_per_area=1, super_patch=16
    )
    root = tmp_path / "sample"
    assert of(root, sample=options) == ""
    root.mkdir()
    assert of(root, sample=options) == ""
    sample.ensure_sample(root, options)
    made = of(root, sample=options)
    assert len(made) == 64
    shutil.rmtree(root)
    assert of(root, sample=options) == ""
    sample.ensure_sample(root, options)
    assert of(root, sample=options) == made


def test_another_sample_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(DataError, match="holds no sample data set"):
        of(tmp_path, sample=SampleConfig())


def test_it_is_known_without_torch_lightning_and_rasterio(shared_tree: Tree) -> None:
    code = (
        "import sys\n"
        "from flair2_exp.config.data import DataGroups, DatasetConfig\n"
        "from flair2_exp.data.fingerprint import fingerprint\n"
        "groups = DataGroups(dataset=DatasetConfig(root=sys.argv[1]))\n"
        "print(fingerprint(groups, frozenset({'aerial', 'satellite', 'metadata'})))\n"
        "heavy = {'torch', 'lightning', 'rasterio', 'scipy', 'mlflow'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, str(shared_tree.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [of(shared_tree.root), "[]"]
