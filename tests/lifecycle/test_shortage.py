"""A run on a machine that runs out of disk, shared memory or open files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flair2_exp import shortage
from flair2_exp.errors import DataError, ShortageError
from flair2_exp.lifecycle import experiment, results
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED
from flair2_exp.tracking import history
from flair2_exp.training import whole
from flair2_exp.training.checkpoint import read_checkpoint
from tests.configs import run
from tests.lifecycle.helpers import FULL, record_of


def full_from_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which finds the disk full from its so-manyeth call on."""
    calls: list[int] = []

    def writing(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*arguments, **named)

    return writing


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        (whole, "write_bytes", 3),  # the first checkpoint of the second epoch
        (history, "write_text", 2),  # history.csv
        (results, "replacing", 1),  # the results of the test
    ],
    ids=["checkpoint", "history", "results"],
)
def test_a_run_whose_disk_is_full_fails_in_words_and_resumes_from_a_whole_checkpoint(
    module: Any, name: str, number: int, root: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    overrides = ("model=unet", "tracking=local", *FULL, "trainer.max_epochs=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, full_from_call(number, getattr(module, name)))
        with pytest.raises(ShortageError) as failure:
            run(root, folder.path, *overrides)
    first, second = str(failure.value).splitlines()
    assert "the disk is full: " in first
    assert " MB free of " in first
    assert f"{folder.last} (" in second
    assert second.endswith(f"this resumes: flair2-exp resume={folder.path}")
    assert record_of(folder.path).status == FAILED
    left = {path.name for path in folder.checkpoints.iterdir()}
    assert left <= {"best.ckpt", "last.ckpt", "previous.ckpt"}
    for path in folder.checkpoints.iterdir():
        read_checkpoint(path)
    assert not folder.reserve.exists()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")
    assert client.get_run(record_of(folder.path).run_id).info.status == FAILED
    assert run(root, folder.path, *overrides)["train/epochs"] == 2


def test_the_record_is_written_though_the_disk_is_full_at_the_end(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the reserved room is given back."""
    folder = RunFolder(tmp_path / "run")
    write = experiment.RunRecord.write

    def fits(self: Any, into: RunFolder) -> None:
        if self.status == FAILED:
            assert not folder.reserve.exists()
        write(self, into)

    monkeypatch.setattr(experiment.RunRecord, "write", fits)
    monkeypatch.setattr(whole, "write_bytes", full_from_call(1, whole.write_bytes))
    with pytest.raises(ShortageError, match="No checkpoint was written yet; this resumes"):
        run(root, folder.path, "model=unet")
    assert record_of(folder.path).status == FAILED


def test_batches_that_shared_memory_cannot_hold_are_refused_with_figures(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10_000

    def usage(place: Path) -> Any:
        return os.statvfs(place) and shortage.shutil._ntuple_diskusage(free, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(shortage.shutil, "disk_usage", usage)
    with pytest.raises(DataError) as refusal:
        run(root, tmp_path / "run", "model=unet", "data.workers=2")
    first, second = str(refusal.value).splitlines()
    assert first.startswith("data.workers=2: ")
    assert "0 MB of shared memory, and /dev" in first
    assert "data.workers=0" in second
    assert "--shm-size" in second
    assert not (tmp_path / "run").exists()
