"""Averaged weights: against averages by hand, and exact where a run resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from flair2_exp.config.training import AverageConfig
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.signals import Terminated
from flair2_exp.training.averaging import AveragedWeights
from flair2_exp.training.task import SegmentationTask
from tests.configs import run
from tests.lifecycle.helpers import Killed, die_at_the_end_of, scores
from tests.training.helpers import build_task, loader, trainer

MODEL = ("model=unet", "data=aerial_only", "optimizer=adamw", "optimizer.lr=0.01")
EPOCHS = ("trainer.limit_train_batches=3", "trainer.max_epochs=3", "data.batch_size=2")
AVERAGES = {
    "ema": ("callbacks=ema", "callbacks.average.decay=0.6"),
    "swa": ("callbacks=swa", "callbacks.average.start_epoch=2"),
}


class Weights(Callback):
    """Remembers the weights after each step, and those that each epoch's validation sees."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []
        self.validated: list[list[Tensor]] = []

    @staticmethod
    def _copy(module: LightningModule) -> list[Tensor]:
        return [each.detach().clone() for each in module.parameters()]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append(self._copy(pl_module))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        self.validated.append(self._copy(pl_module))


def _trained(options: AverageConfig, **settings: Any) -> tuple[SegmentationTask, Weights]:
    task, weights = build_task(*MODEL), Weights()
    settings = {"max_epochs": 3, "limit_val_batches": 1, **settings}
    trainer(weights, AveragedWeights(options), **settings).fit(task, loader(), loader(2))
    return task, weights


def _close(one: list[Tensor], other: list[Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_an_exponential_average_is_that_by_hand() -> None:
    task, weights = _trained(AverageConfig(kind="ema", decay=0.7))
    average = weights.steps[0]
    for step in range(1, 6):
        average = [
            0.7 * old + 0.3 * new for old, new in zip(average, weights.steps[step], strict=True)
        ]
        if step % 2:  # two steps an epoch
            _close(weights.validated[step // 2], average)
    _close(list(task.parameters()), average)


def test_a_stochastic_average_is_the_mean_over_the_epochs_from_its_start() -> None:
    task, weights = _trained(AverageConfig(kind="swa", start_epoch=2))
    ends = weights.steps[1::2]
    assert weights.validated[0][0].equal(ends[0][0])  # nothing is averaged yet
    _close(weights.validated[1], ends[1])
    mean = [(one + other) / 2 for one, other in zip(*ends[1:], strict=True)]
    _close(weights.validated[2], mean)
    _close(list(task.parameters()), mean)


def test_an_average_that_never_began_leaves_the_weights_alone() -> None:
    task, weights = _trained(AverageConfig(kind="swa", start_epoch=9))
    assert all(map(torch.equal, task.parameters(), weights.steps[-1]))


def test_averaging_does_not_change_what_is_trained() -> None:
    _, averaged = _trained(AverageConfig(kind="ema", decay=0.5))
    _, plain = _trained(AverageConfig(kind="swa", start_epoch=9))
    for one, other in zip(averaged.steps, plain.steps, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_an_average_has_the_precision_of_the_training(precision: Any) -> None:
    _, averaged = _trained(AverageConfig(kind="ema", decay=0.5), precision=precision)
    _, plain = _trained(AverageConfig(kind="swa", start_epoch=9), precision=precision)
    assert all(map(torch.equal, averaged.steps[-1], plain.steps[-1]))
    assert averaged.validated[-1][0].dtype == averaged.steps[-1][0].dtype != torch.float32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("averages")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_a_killed_run_ends_with_the_scores_of_an_unkilled_one(
    kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*MODEL, *EPOCHS, *AVERAGES[kind])
    whole = run(root, tmp_path / "whole", *words)
    for name, epoch, within in (("end", 1, False), ("within", 2, True)):
        with monkeypatch.context() as patch:
            if within:
                _die_within(epoch, patch)
            else:
                die_at_the_end_of(epoch, patch)
            with pytest.raises((Killed, Terminated)):
                run(root, tmp_path / name, *words, "callbacks.resume.save_minutes=1e-6")
        kept = torch.load(RunFolder(tmp_path / name).last, weights_only=True)
        assert "current_model_state" in kept
        again = run(root, tmp_path / name, *words, "callbacks.resume.save_minutes=1e-6")
        assert scores(again) == scores(whole)
    without = run(root, tmp_path / "without", *MODEL, *EPOCHS)
    assert scores(without) != scores(whole)
    assert without["train/loss"] == whole["train/loss"]


def _die_within(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SegmentationTask.training_step

    def dying(self: SegmentationTask, batch: Any, index: int) -> Any:
        if (self.current_epoch, index) == (epoch, 1):
            raise Killed
        return step(self, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", dying)


@pytest.mark.slow
def test_the_best_checkpoint_holds_the_average_that_was_validated(
    root: Path, tmp_path: Path
) -> None:
    words = (*MODEL, *EPOCHS, *AVERAGES["ema"])
    trained = run(root, tmp_path / "trained", *words)
    best = f"checkpoint={RunFolder(tmp_path / 'trained').best}"
    tested = run(root, tmp_path / "tested", *words, "train=false", best)
    names = ("best/val/miou", "best/val/loss", "test/miou", "test/loss")
    assert {n: tested[n] for n in names} == pytest.approx({n: trained[n] for n in names})
