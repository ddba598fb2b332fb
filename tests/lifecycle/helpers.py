"""What tests of runs share: equal scores, and processes that die at a chosen moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.training.callbacks import ResumePoint

FULL = ("trainer.limit_train_batches=null", "trainer.limit_val_batches=null",
        "trainer.limit_test_batches=null", "trainer.max_epochs=4")  # fmt: skip
"""Whole epochs, and four of them."""


def scores(metrics: dict[str, float]) -> dict[str, float]:
    """What two equal runs must agree on: all but times."""
    return {name: value for name, value in metrics.items() if "seconds" not in name}


def record_of(path: Path) -> RunRecord:
    """The record in a folder, which must hold one."""
    record = RunRecord.read(RunFolder(path))
    assert record is not None
    return record


class Killed(BaseException):
    """Stands for a process that ends between two instructions."""


def die_at_the_end_of(
    epoch: int, monkeypatch: pytest.MonkeyPatch, *, before_writing: bool = False
) -> None:
    """Let training die at an epoch's end, before or after its checkpoint is written."""
    write = ResumePoint.on_train_epoch_end

    def dying(self: ResumePoint, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == epoch and before_writing:
            raise Killed
        write(self, trainer, module)
        if trainer.current_epoch == epoch:
            raise Killed

    monkeypatch.setattr(ResumePoint, "on_train_epoch_end", dying)
