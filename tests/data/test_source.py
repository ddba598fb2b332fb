"""A data source of one's own: trained, resumed, stored, checked and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flair2_exp.config.data import DataConfig, DataGroups, DatasetConfig, S2PreprocConfig
from flair2_exp.data.datamodule import FlairDataModule
from flair2_exp.data.fingerprint import fingerprint
from flair2_exp.data.preparation import prepare
from flair2_exp.data.source import open_source
from flair2_exp.errors import DataError, FlairError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_metrics
from tests.commands import answer
from tests.data.pairs import IGNORED, write_pairs
from tests.data.test_geotiff import groups_of as pairs_of
from tests.lifecycle.helpers import Killed, die_at_the_end_of, scores

HERE = "tests.data.made_up"
EVERYTHING = frozenset({"aerial", "satellite", "metadata"})
SERIES = S2PreprocConfig(size=16)


def groups_of(name: str = "MadeUp", store: Path | None = None, **options: Any) -> DataGroups:
    place = None if store is None else str(store)
    dataset = DatasetConfig(name="mine", _target_=f"{HERE}.{name}", options=options, store=place)
    return DataGroups(data=DataConfig(workers=0), dataset=dataset, s2_preproc=SERIES)


FILE = f"""\
name: mine
_target_: {HERE}.MadeUp
options: {{areas: 7}}
"""


@pytest.fixture
def line(tmp_path: Path) -> tuple[str, ...]:
    """A command on the made-up source, which a YAML file of the user's names."""
    file = tmp_path / "own" / "dataset" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(FILE)
    return (
        "--config-dir", str(tmp_path / "own"), "dataset=mine", "preset=debug", "trainer=cpu",
        "tracking=off", "s2_preproc.size=16", f"paths.root={tmp_path / 'root'}",
        "trainer.limit_train_batches=null", "trainer.limit_test_batches=null",
    )  # fmt: skip


def test_it_is_trained_resumed_and_reported_with_series_and_metadata(
    line: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*line, "model=utt", "metadata=on", "trainer.max_epochs=2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = answer(*words, f"hydra.run.dir={whole}")
    assert done.status == 0, done.err
    with monkeypatch.context() as patch:
        die_at_the_end_of(0, patch)
        with pytest.raises(Killed):
            answer(*words, f"hydra.run.dir={cut}")
    resumed = answer(*words, f"hydra.run.dir={cut}")
    assert resumed.status == 0, resumed.err
    assert scores(read_metrics(RunFolder(cut))) == scores(read_metrics(RunFolder(whole)))
    assert "test/iou/moss" in read_metrics(RunFolder(whole))
    with np.load(RunFolder(whole).confusion) as counts:
        assert counts["classes"].tolist() == ["rock", "ice", "moss", "unclear"]
        assert counts["scored"] == 3
        assert set(counts["areas"]) == {"island1/bay5", "island0/bay6"}
    assert RunFolder(whole).panel_figure.exists()


@pytest.mark.slow
def test_a_sweep_over_it_ends_in_a_report_of_its_classes(
    line: tuple[str, ...], tmp_path: Path
) -> None:
    done = answer(*line, "--multirun", "model=unet", "data.bands=null,[swir]", "sweep.name=own")
    assert done.status == 0, done.err
    report = tmp_path / "root" / "multirun" / "own" / "report" / "leaderboard.json"
    content = json.loads(report.read_text())
    assert content["class_names"] == ["rock", "ice", "moss", "unclear"]
    assert content["scored"] == ["rock", "ice", "moss"]
    assert len(content["rows"]) == 2


def test_its_fingerprint_is_of_what_it_reads() -> None:
    before = fingerprint(groups_of(), EVERYTHING)
    assert before == fingerprint(groups_of(), EVERYTHING)
    assert before != fingerprint(groups_of(seed=1), EVERYTHING)
    assert before != fingerprint(groups_of(), EVERYTHING - {"metadata"})


@pytest.mark.parametrize("reads", [EVERYTHING, frozenset({"aerial"})])
def test_batches_from_a_store_are_those_of_the_source(
    tmp_path: Path, reads: frozenset[str]
) -> None:
    direct, stored = groups_of(), groups_of(store=tmp_path / "store")
    done = prepare(open_source(direct, EVERYTHING), tmp_path / "store", series=SERIES, shard=5)
    assert (done.patches, done.damaged) == (12, 0)
    _assert_same(direct, stored, reads)
    assert fingerprint(stored, reads)
    other = groups_of("Shapeless", store=tmp_path / "store")
    with pytest.raises(DataError, match="image_type is float32, not uint8"):
        module(other, reads)


def test_a_store_of_pairs_is_as_good_as_their_files(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "pairs")
    direct, store = pairs_of(root, data={"bands": ("blue", "nir")}), tmp_path / "store"
    stored = DataGroups(
        data=direct.data,
        dataset=DatasetConfig(**{**vars(direct.dataset), "store": str(store)}),
    )
    prepare(open_source(direct, frozenset({"aerial"})), store, series=None, workers=2, shard=4)
    _assert_same(direct, stored, frozenset({"aerial"}))
    assert fingerprint(stored, frozenset({"aerial"})) == fingerprint(direct, frozenset({"aerial"}))
    mask = root / "masks" / "train_0_0.tif"
    mask.write_bytes(mask.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"1 of 14 patches changed, first images/train_0_0: its"):
        module(stored, frozenset({"aerial"}))


def module(groups: DataGroups, reads: frozenset[str]) -> FlairDataModule:
    data = FlairDataModule(groups, reads=reads)
    data.setup()
    return data


def _assert_same(direct: DataGroups, stored: DataGroups, reads: frozenset[str]) -> None:
    pairs = zip(
        *(list(module(groups, reads).test_dataloader()) for groups in (direct, stored)), strict=True
    )
    for one, other in pairs:
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, list):
                assert other[name] == value
            else:
                assert other[name].dtype == value.dtype
                np.testing.assert_array_equal(other[name].numpy(), value.numpy())


REFUSED: dict[str, tuple[DataGroups, str]] = {
    "no class": (
        groups_of("Nameless"),
        r"Nameless \(.*made_up.py, line \d+\) does not set its att",
    ),
    "no source": (groups_of("Sample"), r"dataset._target_=.*Sample: not such a class"),
    "nothing there": (groups_of("Nowhere"), r"dataset._target_=.*Nowhere: .* has no Nowhere"),
    "a misspelt option": (groups_of(area=3), r"dataset.options.area: MadeUp .*did you mean areas"),
    "a mistyped option": (groups_of(areas="x"), r"dataset.options.areas=x: .*valid integer"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_source_that_is_none_is_refused_with_its_file(what: str) -> None:
    groups, message = REFUSED[what]
    with pytest.raises(FlairError, match=message) as refusal:
        open_source(groups, EVERYTHING)
    assert str(refusal.value).count("\n") <= 1


def test_a_patch_that_is_not_what_the_source_says_stops_the_run_with_its_name() -> None:
    data = module(groups_of("Shapeless"), frozenset({"aerial"}))
    with pytest.raises(DataError, match=r"p8 of island0/bay4 is damaged: Shapeless .*float32 inst"):
        next(iter(data.test_dataloader()))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_check_reads_every_patch_of_any_source(tmp_path: Path, workers: str) -> None:
    root = write_pairs(tmp_path / "pairs")
    words = ["dataset=geotiff", f"dataset.root={root}", f"dataset.options.ignored=[{IGNORED}]"]
    sound = answer("check", *words, "model=unet", "--workers", workers)
    assert (sound.status, "sound: 14 patches" in sound.out) == (0, True), sound.err
    (root / "masks" / "train_0_0.tif").unlink()
    image = root / "images" / "test_1_1.tif"
    image.write_bytes(image.read_bytes()[:900])
    damaged = answer("check", *words, "model=unet", "--json", "-", "--workers", workers)
    found = json.loads(damaged.out)["findings"]
    assert damaged.status == 1
    assert [each["path"] for each in found] == ["images/test_1_1.tif", "masks/train_0_0.tif"]
    content = json.loads(answer("check", *words, "--headers-only", "--json", "-").out)
    assert (content["patches"], content["kinds"]) == (14, {"unreadable-raster": 2})
    nowhere = answer("check", "dataset=geotiff", "dataset.root=/nowhere", "model=unet")
    assert (nowhere.status, "is not a folder" in nowhere.err) == (1, True)


def test_the_store_of_any_source_is_prepared_by_its_verb_and_trained_from(tmp_path: Path) -> None:
    root, store = write_pairs(tmp_path / "pairs"), str(tmp_path / "store")
    words = ["dataset=geotiff", f"dataset.root={root}", f"dataset.options.ignored=[{IGNORED}]",
             "model=unet", f"paths.root={tmp_path / 'root'}"]  # fmt: skip
    prepared = answer("prepare", store, *words)
    assert (prepared.status, "14 patches in" in prepared.out) == (0, True), prepared.err
    done = answer(*words, f"dataset.store={store}", "preset=debug", "trainer=cpu", "tracking=off")
    assert done.status == 0, done.err
