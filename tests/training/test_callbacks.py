"""What callbacks remember and draw that whole runs (tests/lifecycle) would not show."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from flair2_exp.config.training import BestConfig, CallbacksConfig
from flair2_exp.errors import CheckpointError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.signals import Interruption
from flair2_exp.training.callbacks import (
    CheckpointPaths,
    Patience,
    ResumePoint,
    Scores,
    best_checkpoint,
    standard_callbacks,
)
from flair2_exp.training.panel import PanelCollector
from flair2_exp.training.progress import ShownProgress
from flair2_exp.training.schedules import build_schedule, rates_of
from tests.configs import compose_config, run

ALL_OF_TEST = "trainer.limit_test_batches=null"


def test_a_checkpoint_scores_the_same_in_every_process_where_validation_and_test_drop_too(
    tmp_path: Path,
) -> None:
    quirk = (
        "model=utt", "s2_preproc=raw", "fusion.dropout=always_batch", "fusion.dropout_rate=0.5",
    )  # fmt: skip
    # With seed 6 the second of the two test batches is dropped, with seed 1 none.
    trained = run(tmp_path, tmp_path / "trained", ALL_OF_TEST, *quirk, "seed=6")
    best = f"checkpoint={RunFolder(tmp_path / 'trained').best}"
    tested = run(tmp_path, tmp_path / "tested", ALL_OF_TEST, *quirk, "seed=6", best, "train=false")
    for name in ("best/val/loss", "test/loss", "test/miou"):
        assert tested[name] == trained[name]
    other = run(tmp_path, tmp_path / "other", ALL_OF_TEST, *quirk, "seed=1", best, "train=false")
    assert other["test/loss"] != trained["test/loss"]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 1)])
def test_the_best_epoch_is_that_of_the_best_checkpoint_though_the_first_score_be_nan(
    mode: Any, best: int, tmp_path: Path
) -> None:
    monitored: Any = "val/loss" if mode == "min" else "val/miou"
    scores, options = Scores(monitored, mode), BestConfig(monitor=monitored, mode=mode)
    kept = best_checkpoint(options, tmp_path / "best.ckpt")
    for epoch, value in enumerate((math.nan, 3.0, 2.0, math.nan, 2.5)):
        metrics = {monitored: torch.tensor(value)}
        trainer: Any = SimpleNamespace(
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            callback_metrics=metrics,
            current_epoch=epoch,
        )
        scores.on_validation_end(trainer, None)  # type: ignore[arg-type]
        _keep(kept, trainer, metrics, epoch)
    assert scores.best["epoch"] == best + 1
    assert scores.best[monitored] == float(kept.best_model_score)  # type: ignore[arg-type]


def _keep(kept: ModelCheckpoint, trainer: Any, metrics: dict[str, Any], epoch: int) -> None:
    """What Lightning's callback does after an epoch, but for the file."""
    kept._save_checkpoint = lambda *_: None  # type: ignore[method-assign]
    kept._remove_checkpoint = lambda *_: None  # type: ignore[method-assign]
    trainer.strategy = SimpleNamespace(broadcast=lambda path: path, reduce_boolean_decision=bool)
    trainer.strategy.reduce_boolean_decision = lambda decision, **_: bool(decision)
    candidates = {**metrics, "epoch": torch.tensor(epoch), "step": torch.tensor(epoch)}
    kept._save_topk_checkpoint(trainer, candidates)


def test_a_run_from_another_runs_checkpoint_has_the_scores_of_its_own_best_one(
    tmp_path: Path,
) -> None:
    first = best_checkpoint(BestConfig(), tmp_path / "first" / "best.ckpt")
    first.best_k_models = {"best.ckpt": torch.tensor(1.0)}
    state = {"best": {"val/loss": 1.0, "epoch": 1.0}, "last": {}}
    for folder, best in (("first", {"val/loss": 1.0, "epoch": 1.0}), ("second", {})):
        kept = best_checkpoint(BestConfig(), tmp_path / folder / "best.ckpt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's, that the folder is another
            kept.load_state_dict(first.state_dict())
        scores = Scores("val/loss", "min")
        scores.load_state_dict(state)
        scores.on_fit_start(SimpleNamespace(checkpoint_callback=kept, logger=None), None)  # type: ignore[arg-type]
        assert scores.best == best


def test_the_configured_patience_is_not_replaced_by_a_checkpoints() -> None:
    first, second = (Patience("val/loss", patience=patience) for patience in (30, 5))
    first.wait_count = 3
    second.load_state_dict(first.state_dict())
    assert (second.patience, second.wait_count) == (5, 3)


def test_what_a_run_cannot_train_on_from_is_refused_before_it_begins(tmp_path: Path) -> None:
    model = ("model=unet", "data=aerial_only")
    run(tmp_path, tmp_path / "first", ALL_OF_TEST, *model)
    best = f"checkpoint={RunFolder(tmp_path / 'first').best}"
    for change, message in (
        ("trainer.max_epochs=1", "has trained 1 epochs"),
        (
            "optimizer._target_=torch.optim.SGD",
            "optimizer._target_: torch.optim.AdamW -> torch.optim.SGD",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            run(tmp_path, tmp_path / "second", ALL_OF_TEST, *model, best, change)
        assert not (tmp_path / "second").exists()
    metrics = run(tmp_path, tmp_path / "second", ALL_OF_TEST, *model, best, "trainer.max_epochs=2")
    assert metrics["best/epoch"] == 2.0


@pytest.mark.parametrize("epochs", [3, 4])
def test_what_trains_on_from_the_end_of_a_cosine_follows_the_longer_one_and_says_so(
    epochs: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ("model=unet", "data=aerial_only", "scheduler=cosine")
    run(tmp_path, tmp_path / "first", *model, "trainer.max_epochs=2")
    assert "learning rate had come to" not in caplog.text
    last = f"checkpoint={RunFolder(tmp_path / 'first').last}"
    longer = f"trainer.max_epochs={epochs}"
    run(tmp_path, tmp_path / "longer", *model, last, longer)
    rows = RunFolder(tmp_path / "longer").history.read_text().splitlines()
    column = rows[0].split(",").index("train/lr")
    options = compose_config("preset=debug", *model)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=options.optimizer.lr)
    schedule = build_schedule(optimizer, options.scheduler, epochs)
    rates = {int(row.split(",")[0]): float(row.split(",")[column]) for row in rows[1:]}
    for epoch in range(2, epochs):
        assert rates[epoch + 1] == pytest.approx(rates_of(schedule, epoch)[0])
    assert "its learning rate had reached 3e-05; by the schedule of" in caplog.text
    assert f"model.weights={last.removeprefix('checkpoint=')}" in caplog.text


def test_a_panel_without_aerial_image_shows_the_footprint_in_true_colour() -> None:
    panel = PanelCollector(count=1, total=1)
    panel.on_test_epoch_start(None, None)  # type: ignore[arg-type]
    series = torch.zeros(1, 3, 10, 40, 40)
    series[0, :2, 2, 15:25, 15:20] = 0.5  # B4: the western half of the footprint is red
    batch = {
        "patch_id": ["IMG_000001"],
        "series": series,
        "padding": torch.tensor([[False, False, True]]),
        "label": torch.zeros(1, 64, 64, dtype=torch.int64),
    }
    panel.on_test_batch_end(None, None, batch["label"], batch, 0)  # type: ignore[arg-type]
    image = panel.rows[0].image
    assert image.shape == (64, 64, 3)
    assert not image[..., 1:].any()
    assert np.array_equal(image[..., 0] > 0, np.arange(64)[None].repeat(64, 0) < 32)


def test_a_trainer_gets_what_its_options_say_with_the_resume_point_last(tmp_path: Path) -> None:
    names = ("best", "last", "previous")
    paths = CheckpointPaths(**{name: tmp_path / "kept" / f"{name}.pt" for name in names})
    *others, last = standard_callbacks(CallbacksConfig(), paths, Interruption(), bars=False)
    assert [type(each) for each in others] == [Patience, ShownProgress, ModelCheckpoint]
    assert isinstance(last, ResumePoint)  # it stores the state of all before it
    assert (last.last, last.previous) == (paths.last, paths.previous)
    assert (others[-1].dirpath, others[-1].filename) == (str(tmp_path / "kept"), "best")
    without = standard_callbacks(
        CallbacksConfig(early_stopping=None), paths, Interruption(), bars=False
    )
    assert not any(isinstance(each, Patience) for each in without)
