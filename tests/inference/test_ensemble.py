"""What words name the members of an ensemble, and which of them are refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.inference.ensemble import runs_of
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.tracking.store import local_uri
from flair2_exp.tracking.tags import Tag
from tests.lifecycle.made import config_below, finished_folder

WHOLE = tuple(f"trainer.limit_{part}_batches=null" for part in ("train", "val", "test"))


def left(path: Path, row: str, seed: int, *overrides: str, status: str = "FINISHED") -> RunFolder:
    """A run's folder with a checkpoint, below a root `path` has `multirun` or `outputs` in."""
    root = next(each.parent for each in path.parents if each.name in ("multirun", "outputs"))
    config = config_below(root, f"name={row}", f"seed={seed}", "model=unet", *WHOLE, *overrides)
    folder = finished_folder(path, config, status=status)
    folder.checkpoints.mkdir()
    folder.best.write_bytes(b"weights")
    return folder


def tagged(folder: RunFolder, tag: str, value: str) -> None:
    record = RunRecord.read(folder)
    assert record is not None
    record.tags[str(tag)] = value
    record.write(folder)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two finished seeds of a row and one that failed, in a sweep; another row beside it."""
    for seed, status in ((2, "FINISHED"), (1, "FINISHED"), (3, "FAILED")):
        folder = left(tmp_path / f"multirun/rows/unet/{seed}", "unet", seed, status=status)
        tagged(folder, Tag.SWEEP, "rows")
    left(tmp_path / "outputs/utt/now", "utt", 1, "model=utt")
    return tmp_path


def folders(words: list[str], root: Path) -> list[str]:
    return [str(run.checkpoint.parents[1].relative_to(root)) for run in runs_of(words, root)]


@pytest.mark.parametrize("word", ["unet", "rows/unet"])
def test_a_row_is_its_finished_runs_by_seed_and_the_others_are_named(
    word: str, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = folders([word], results)
    assert found == ["multirun/rows/unet/1", "multirun/rows/unet/2"]
    (warning,) = caplog.messages
    assert "multirun/rows/unet/3 is left out" in warning
    assert "failed" in warning


def test_words_name_runs_folders_of_runs_and_rows_in_their_order(results: Path) -> None:
    sweep, single = results / "multirun/rows", results / "outputs/utt/now"
    expected = ["multirun/rows/unet/1", "multirun/rows/unet/2", "outputs/utt/now"]
    assert folders([str(sweep), str(single)], results) == expected
    checkpoint = single / "checkpoints/best.ckpt"
    assert folders([str(checkpoint), "unet"], results) == [expected[2], *expected[:2]]


def test_a_word_that_names_nothing_is_answered_with_the_nearest_rows(results: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows/unte is not a run.*did you mean rows/unet"):
        runs_of(["rows/unte"], results)
    with pytest.raises(ConfigError, match="nothing is not a run"):
        runs_of(["nothing"], results / "elsewhere")


def test_a_row_or_a_folder_without_a_finished_run_is_refused(results: Path) -> None:
    for path in results.rglob("run.json"):
        record = RunRecord.read(RunFolder(path.parent))
        assert record is not None
        record.status = "RUNNING"
        record.write(RunFolder(path.parent))
    with pytest.raises(ConfigError, match="row unet has no finished run"):
        runs_of(["unet"], results)
    with pytest.raises(ConfigError, match="3 that did not finish"):
        runs_of([str(results / "multirun/rows")], results)


def test_a_run_that_is_named_twice_is_refused(results: Path) -> None:
    with pytest.raises(ConfigError, match=r"best\.ckpt is named twice"):
        runs_of(["unet", str(results / "multirun/rows/unet/1")], results)


def test_a_training_that_was_done_twice_is_refused(results: Path) -> None:
    shutil.copytree(results / "outputs/utt/now", results / "copy")
    with pytest.raises(ConfigError, match=r"now and .*copy are the same experiment"):
        runs_of([str(results / "outputs/utt/now"), str(results / "copy")], results)


def test_two_sweeps_with_one_row_and_seed_are_told_apart_by_their_names(results: Path) -> None:
    other = left(results / "multirun/again/unet/1", "unet", 1, "optimizer.lr=0.5")
    tagged(other, Tag.SWEEP, "again")
    with pytest.raises(ConfigError, match=r"two runs of seed 1: .*again/unet/1 and .*rows/unet/1"):
        runs_of(["unet"], results)
    assert folders(["again/unet"], results) == ["multirun/again/unet/1"]


def test_a_row_of_the_sample_is_not_mixed_with_one_of_other_data(results: Path) -> None:
    real = left(results / "outputs/real", "unet", 7)
    tagged(real, Tag.DATASET, "flair2")
    with pytest.raises(ConfigError, match=r"different data: .*\(sample\) and .*\(flair2\)"):
        runs_of(["unet"], results)


@pytest.mark.slow
def test_a_row_elsewhere_is_found_by_the_mlflow_store(results: Path, tmp_path: Path) -> None:
    from flair2_exp.lifecycle.assembly import store_at
    from flair2_exp.tracking.run import open_run

    place = left(tmp_path / "elsewhere/outputs/run", "moved", 4)
    uri = local_uri(results / "mlruns")
    tags = {Tag.ROW: "moved", Tag.SWEEP: "far", Tag.FOLDER: str(place)}
    with open_run(store_at(uri), "flair2", "moved", tmp_path / "unsent", tags=tags):
        pass
    for word in ("moved", "far/moved"):
        assert [run.folder for run in runs_of([word], results)] == [place]
    shutil.rmtree(place.path)
    with pytest.raises(ConfigError, match="moved is not a run"):
        runs_of(["moved"], results)


def test_scores_of_ensembles_are_not_members(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tagged(left(results / "multirun/rows/unet_d4", "unet", 9), Tag.MEMBERS, "unet seed 1")
    with caplog.at_level(logging.WARNING):
        found = folders([str(results / "multirun/rows")], results)
    assert found == ["multirun/rows/unet/1", "multirun/rows/unet/2"]
    assert any("an ensemble's score" in each for each in caplog.messages)
    assert folders(["unet"], results) == found
