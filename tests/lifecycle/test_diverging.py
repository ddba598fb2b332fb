"""A run whose loss is no longer finite fails, and keeps what was sound."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from flair2_exp.compat import epochs_trained
from flair2_exp.errors import DivergedError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED
from flair2_exp.tracking.tags import Tag
from flair2_exp.training.callbacks import FiniteLoss
from flair2_exp.training.task import SegmentationTask
from tests.commands import answer
from tests.configs import SMALL_SAMPLE, run
from tests.lifecycle.helpers import FULL, record_of

SMALL_BATCHES = ("data.batch_size=4", "trainer.max_epochs=2")
WILD = ("optimizer=sgd", "optimizer.lr=1e4", "scheduler=none", "trainer.limit_train_batches=null")
"""With which the smallest U-Net diverges in its first epoch."""


def spoil(head: str, epoch: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a head's loss NaN in one batch of the training; batches count from 0."""
    batches: list[int] = []
    loss = SegmentationTask.loss

    def spoilt(self: SegmentationTask, outputs: Any, data: Any) -> dict[str, Tensor]:
        losses = loss(self, outputs, data)
        if self.trainer.training and self.trainer.current_epoch == epoch:
            batches.append(1)
            if len(batches) == batch + 1:
                bad = losses[head] * math.nan
                return {**losses, head: bad, "total": losses["total"] + bad}
        return losses

    monkeypatch.setattr(SegmentationTask, "loss", spoilt)


def trained_epochs(checkpoint: Path) -> int:
    """The epochs of a checkpoint whose weights are all finite."""
    content = torch.load(checkpoint, weights_only=True)
    assert all(torch.isfinite(each).all() for each in content["state_dict"].values())
    return epochs_trained(content)


def test_a_run_whose_loss_is_nan_fails_at_that_step_and_resumes_from_before_it(
    root: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    overrides = ("model=utt", "tracking=local", *FULL, *SMALL_BATCHES)
    with pytest.MonkeyPatch.context() as patch:
        spoil("satellite", 1, 1, patch)
        with pytest.raises(DivergedError) as failure:
            run(root, folder.path, *overrides)
    text = str(failure.value)
    assert "in epoch 2, batch 2, step " in text
    assert "(satellite)" in text
    assert f"model.weights={folder.last}" in text
    assert len(text.splitlines()) == 2
    assert record_of(folder.path).status == FAILED
    assert not folder.metrics.exists()
    assert (trained_epochs(folder.last), trained_epochs(folder.best)) == (1, 1)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")
    tracked = client.get_run(record_of(folder.path).run_id)
    assert tracked.info.status == FAILED
    assert "epoch 2, batch 2" in tracked.data.tags[Tag.ERROR]
    run(root, folder.path, *overrides)  # whose loss is sound this time
    assert trained_epochs(folder.last) == 2


def test_no_checkpoint_within_an_epoch_keeps_weights_that_are_not_finite(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil("aerial", 0, 2, monkeypatch)
    folder = RunFolder(tmp_path / "run")
    every_batch = "callbacks.resume.save_minutes=1e-6"
    with pytest.raises(DivergedError, match=r"epoch 1, batch 3, step 3 .aerial"):
        run(root, folder.path, "model=unet", *FULL, *SMALL_BATCHES, every_batch)
    assert trained_epochs(folder.last) == 0
    content = torch.load(folder.last, weights_only=True)
    assert content["global_step"] == 2


@pytest.mark.parametrize(
    ("metrics", "fitting", "message"),
    [
        ({"val/loss": math.nan}, True, "val/loss is nan after epoch 3, step 7: training has div"),
        ({"val/loss": math.inf}, False, "val/loss is inf: "),
        ({"val/loss": 1.0, "test/loss": math.nan}, False, "test/loss is nan: "),
    ],
)
def test_a_loss_of_validation_or_test_that_is_not_finite_fails_a_run(
    metrics: dict[str, float], fitting: bool, message: str, tmp_path: Path
) -> None:
    state = SimpleNamespace(fn=TrainerFn.FITTING if fitting else TrainerFn.TESTING)
    trainer: Any = SimpleNamespace(
        callback_metrics=metrics, state=state, current_epoch=2, global_step=7
    )
    with pytest.raises(DivergedError, match=message):
        FiniteLoss(tmp_path / "last.ckpt").on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_in_no_checkpoint_though_every_loss_was(
    tmp_path: Path,
) -> None:
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, math.inf]), "n": torch.tensor(1)}
    trainer: Any = SimpleNamespace(current_epoch=0, global_step=7)
    with pytest.raises(DivergedError, match=r"weights are not finite after .*step 7 .1, as b"):
        FiniteLoss(tmp_path / "last.ckpt").on_save_checkpoint(
            trainer,
            None,  # type: ignore[arg-type]
            {"state_dict": weights},
        )


@pytest.mark.slow
def test_a_search_and_a_sweep_have_a_run_that_diverged_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("preset=debug", "trainer=cpu", "tracking=off", "model=unet", *SMALL_SAMPLE, *WILD)
    search = answer(
        *common, "tune=unet", "tune.n_trials=1", "tune.max_failures=1",
        "optimizer.lr=choice(1e4,9e3)", "hydra.sweeper.first=[]",
    )  # fmt: skip
    assert search.status == 1
    assert "training has diverged" in search.err
    sweep = answer("--multirun", *common, "sweep.name=s", "seed=1,2")
    assert sweep.status == 1
    assert sweep.err.count("training has diverged") == 2
    states = [json.loads(each.read_text())["status"] for each in tmp_path.rglob("run.json")]
    assert states == [FAILED] * 3
