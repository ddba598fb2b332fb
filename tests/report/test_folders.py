from __future__ import annotations

import json
from pathlib import Path

import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.report.folders import read_folder, read_folders
from flair2_exp.report.runs import AbsentRun
from flair2_exp.tracking.tags import Tag
from tests.report.made_runs import make_arrays, make_folder, read_run


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    tags = {Tag.IDENTITY: "abc", Tag.FINGERPRINT: "f00"}
    arrays = make_arrays(areas=2)
    run = read_run(make_folder(tmp_path, "unet", 3, arrays, tags=tags, aug__geometry="flips"))
    assert (run.row, run.seed) == ("unet", 3)
    assert (run.record.identity, run.record.fingerprint) == ("abc", "f00")
    assert run.settings["aug.geometry"] == "flips"
    assert run.settings["metadata.enabled"] == "false"
    assert run.record.scores["train/seconds"] == 63.0
    assert run.curves["val/miou"][0][0] == 1
    assert len(run.curves["val/miou"]) == 11
    assert "val/loss" not in run.curves  # blank cells


def test_the_row_is_the_records_wherever_its_folder_lies(tmp_path: Path) -> None:
    make_folder(tmp_path, "leaderboard/unet_lr=0.1", 1)
    assert read_folders([tmp_path]).runs[0].row == "leaderboard/unet_lr=0.1"


def test_folders_are_searched_in_the_order_of_numbers(tmp_path: Path) -> None:
    for seed in (10, 9, 1):
        make_folder(tmp_path, "unet", seed)
    runs = read_folders([tmp_path])
    assert [run.seed for run in runs.runs] == [1, 9, 10]
    assert runs.absent == ()


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run folder"):
        read_folders([tmp_path])


def absent_run(folder: RunFolder) -> AbsentRun:
    run = read_folder(folder)
    assert isinstance(run, AbsentRun)
    return run


def test_a_run_without_counts_is_unfinished(tmp_path: Path) -> None:
    make_folder(tmp_path, "unet", 1)
    folder = make_folder(tmp_path, "unet", 2)
    folder.confusion.unlink()
    runs = read_folders([tmp_path])
    assert [run.seed for run in runs.runs] == [1]
    (absent,) = runs.absent
    assert (absent.row, absent.seed, absent.state) == ("unet", 2, "unfinished")
    assert str(folder.confusion) in absent.reason


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING", "TRAINED"])
def test_a_run_that_did_not_finish_is_absent_whatever_lies_there(
    tmp_path: Path, status: str
) -> None:
    absent = absent_run(make_folder(tmp_path, "a", 1, status=status, error="out of memory"))
    assert absent == AbsentRun("a", 1, status.lower(), "out of memory")
    folder = make_folder(tmp_path, "b", 1, status=status)
    assert absent_run(folder).reason == str(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [("config", "a: [1"), ("config", "3"), ("metrics", "{"), ("record", "{"),
     ("history", "epoch,val/miou\n1,much\n"), ("confusion", "PK torn")],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str) -> None:
    folder = make_folder(tmp_path, "unet", 4)
    path: Path = getattr(folder, file)
    path.write_text(content)
    absent = absent_run(folder)
    assert (absent.row, absent.seed, absent.state) == ("unet", 4, "damaged")
    assert path.name in absent.reason
    assert str(folder) in absent.reason


def test_a_run_of_another_version_is_absent_with_the_reason(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "unet", 1)
    folder.record.write_text(json.dumps({"format": 99}))
    assert "format 99" in absent_run(folder).reason


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("seed: 5\nname: x\n", ("x", 5)),
        (f"seed: 5\nname: x\ntracking: {{tags: {{{Tag.ROW}: y}}}}\n", ("y", 5)),
        ("[", ("seed=1", -1)),
    ],
)
def test_a_run_without_a_record_is_named_by_its_config(
    tmp_path: Path, config: str, place: tuple[str, int]
) -> None:
    folder = make_folder(tmp_path, "unet", 1)
    folder.record.unlink()
    folder.config.write_text(config)
    absent = absent_run(folder)
    assert (absent.row, absent.seed) == place
    assert folder.record.name in absent.reason
