"""A run as its folder records it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flair2_exp.errors import ConfigError, DataError
from flair2_exp.results.run import RecordedRun
from tests.lifecycle.made import config_below, finished_folder


def test_a_history_has_what_was_measured_in_each_epoch(tmp_path: Path) -> None:
    folder = finished_folder(tmp_path / "run", config_below(tmp_path))
    folder.history.write_text("epoch,train/loss,val/miou\n1,0.9,\n2,0.5,0.4\n")
    run = RecordedRun.find(folder.path)
    assert run.history == [{"epoch": 1, "train/loss": 0.9},
                           {"epoch": 2, "train/loss": 0.5, "val/miou": 0.4}]  # fmt: skip


@pytest.mark.parametrize("text", ["epoch,a\n0,x\n", "a\n1\n"])
def test_a_damaged_history_is_named(text: str, tmp_path: Path) -> None:
    folder = finished_folder(tmp_path / "run", config_below(tmp_path))
    folder.history.write_text(text)
    with pytest.raises(DataError, match=r"history\.csv cannot be read"):
        RecordedRun.find(folder.path).history  # noqa: B018


def test_a_run_has_the_config_that_it_ran_with(tmp_path: Path) -> None:
    config = config_below(tmp_path, "model=unet", "seed=7")
    folder = finished_folder(tmp_path / "run", config)
    run = RecordedRun.find(folder.path)
    assert run.config == config
    assert run.settings["model.name"] == "unet"
    assert run.epochs == 2


def test_the_one_run_below_a_folder_is_meant_and_of_several_none(tmp_path: Path) -> None:
    folder = finished_folder(tmp_path / "name" / "time", config_below(tmp_path))
    assert RecordedRun.find(tmp_path / "name").folder == folder
    finished_folder(tmp_path / "name" / "later", config_below(tmp_path))
    with pytest.raises(ConfigError, match="Name the folder of one run"):
        RecordedRun.find(tmp_path / "name")


def test_a_checkpoint_that_lies_by_itself_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes(b"")
    with pytest.raises(ConfigError, match="lies by itself"):
        RecordedRun.find(tmp_path / "best.ckpt")
