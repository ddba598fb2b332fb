"""What is shown of a training where there is no terminal, by a clock that a test sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from flair2_exp import progress as pace
from flair2_exp.training import progress as room
from flair2_exp.training.progress import ShownProgress

PROPOSED = "try a small one"


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level("INFO")
    made = Clock()
    for module in (room, pace):
        monkeypatch.setattr(module, "time", made)
    return made


def trainer_of(batches: int, *, epochs: int = 2, epoch: int = 0, device: str = "cpu") -> Any:
    return SimpleNamespace(
        num_training_batches=batches,
        num_val_batches=[2],
        num_test_batches=[2],
        current_epoch=epoch,
        max_epochs=epochs,
        is_global_zero=True,
        callback_metrics={"train/loss": torch.tensor(0.5), "val/miou": torch.tensor(0.25)},
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )


def train(
    shown: ShownProgress, trainer: Any, clock: Clock, *, first: int = 0, seconds: int
) -> None:
    """One epoch, each batch of which takes some seconds."""
    module: Any = None
    shown.on_train_epoch_start(trainer, module)
    for batch in range(first, trainer.num_training_batches):
        clock.now += seconds
        shown.on_train_batch_end(trainer, module, None, None, batch)
    for batch in range(2):
        clock.now += seconds
        shown.on_validation_batch_end(trainer, module, None, None, batch)
    shown.on_train_epoch_end(trainer, module)


def test_a_line_comes_every_half_minute_and_one_with_the_scores_of_each_epoch(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    shown = ShownProgress(bars=False)
    trainer = trainer_of(10)
    train(shown, trainer, clock, seconds=10)
    trainer.current_epoch = 1
    train(shown, trainer, clock, seconds=10)
    assert caplog.messages == [
        "epoch 1 of 2: batch 3 of 12, 2 min left",
        # 10 batches of 10 s, and two of validation at a third; two such epochs
        "by the first batches (10.00 s each), an epoch takes 2 min, and 2 epochs 4 min",
        "epoch 1 of 2: batch 6 of 12, 1 min left",
        "epoch 1 of 2: batch 9 of 12, less than a minute left",
        "epoch 1/2 train/loss=0.5000 val/miou=0.2500 (120.0 s, 2 min left)",
        "epoch 2 of 2: batch 3 of 12, 2 min left",
        "epoch 2 of 2: batch 6 of 12, 1 min left",
        "epoch 2 of 2: batch 9 of 12, less than a minute left",
        "epoch 2/2 train/loss=0.5000 val/miou=0.2500 (120.0 s)",
    ]


def test_an_epoch_that_resumes_within_counts_its_first_batches_as_done(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    train(ShownProgress(bars=False), trainer_of(10), clock, first=8, seconds=40)
    assert caplog.messages[:2] == [
        "epoch 1 of 2: batch 9 of 12, 2 min left", "epoch 1 of 2: batch 10 of 12, 1 min left"
    ]  # fmt: skip


@pytest.mark.parametrize(("device", "seconds", "proposed"), [
    ("cpu", 100, True), ("cpu", 10, False), ("meta", 100, False),
])  # fmt: skip
def test_a_long_training_on_the_processor_is_told_of_a_small_one(
    device: str, seconds: int, proposed: bool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    shown = ShownProgress(bars=False, small=PROPOSED)
    train(shown, trainer_of(10, device=device), clock, seconds=seconds)
    assert (PROPOSED in caplog.messages) == proposed


def test_a_short_training_has_its_epochs_lines_alone(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    train(ShownProgress(bars=False), trainer_of(1, epochs=1), clock, seconds=1)
    assert caplog.messages == ["epoch 1/1 train/loss=0.5000 val/miou=0.2500 (3.0 s)"]
