"""What a run keeps and says while it trains and tests: checkpoints, scores, progress, times."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    Timer,
)
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from flair2_exp.config.training import CallbacksConfig
from flair2_exp.signals import Interruption

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointPaths:
    """Where a run's checkpoints go; one folder."""

    best: Path
    """That of the epoch with the best `callbacks.monitor`."""
    last: Path
    """The newest, from which the run resumes."""
    previous: Path
    """The one before."""


def standard_callbacks(
    options: CallbacksConfig, paths: CheckpointPaths, interruption: Interruption, *, bars: bool
) -> list[Callback]:
    """Return what stops, shows and keeps a training: a trainer's last callbacks, in this order.

    Args:
        options: Of the callbacks.
        paths: Where checkpoints go.
        interruption: Whether the process has been asked to end.
        bars: Whether progress bars are shown, or one line per epoch for a log file.
    """
    patience = Patience(options.monitor, patience=options.patience, mode=options.mode)
    return [
        *([patience] if options.patience else []),
        RichProgressBar(leave=False) if bars else EpochLines(),
        best_checkpoint(options, paths.best),
        ResumePoint(paths, minutes=options.save_minutes, interruption=interruption),
    ]


def best_checkpoint(options: CallbacksConfig, file: Path) -> ModelCheckpoint:
    """Return what keeps the checkpoint of the epoch with the best `monitor` in a file."""
    return ModelCheckpoint(
        dirpath=file.parent,
        filename=file.stem,
        monitor=options.monitor,
        mode=options.mode,
        save_top_k=1,
        # A resumed run replaces its own file rather than adding best-v1.ckpt.
        enable_version_counter=False,
    )


class ResumePoint(Checkpoint):
    """Keeps the checkpoint from which the run resumes, and the one before.

    They are written at each epoch's end, within an epoch every `minutes`, and after the batch in
    which a signal asks the run to end. A signal during validation waits for its end: what the epoch
    learned would be lost. Several devices write at epochs' ends alone, since they would have to
    agree on the batch at each of them; there a signal ends the run at once.

    Each file appears whole under its name or not at all; should a disk tear the last one none the
    less, the one before is there. Lightning calls checkpoint callbacks after all others and in
    their order, so that this one, listed last, stores the state of all.

    Args:
        paths: Where they go; `best` is not this callback's.
        minutes: Between two of them within an epoch; 0: none there.
        interruption: Whether the process has been asked to end.
    """

    def __init__(
        self, paths: CheckpointPaths, *, minutes: float, interruption: Interruption
    ) -> None:
        self.last, self.previous = paths.last, paths.previous
        self._seconds = 60 * minutes or math.inf
        self._interruption = interruption
        self._postponing = ExitStack()
        self._written = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait for a checkpoint from here on."""
        self._written = time.monotonic()
        if trainer.world_size == 1:
            self._postponing.enter_context(self._interruption.postponed())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait no longer."""
        self._postponing.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let signals wait no longer."""
        self._postponing.close()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write where it is time to, or to end."""
        due = time.monotonic() - self._written > self._seconds
        if trainer.world_size > 1 or not (due or self._interruption.exception):
            return
        # After the last batch the epoch's own is near; between two optimizer steps gradients of
        # batches already counted wait to be summed, and are in no checkpoint.
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """Write the new file beside, then move the names along; end where that is requested."""
        fresh = self.last.with_suffix(".writing")
        trainer.save_checkpoint(fresh)  # every process takes part; the first one writes
        if trainer.is_global_zero:
            if self.last.exists():
                self.last.replace(self.previous)
            fresh.replace(self.last)
        self._written = time.monotonic()
        if self._interruption.exception is not None:
            log.info("interrupted: epoch %d is kept in %s", trainer.current_epoch + 1, self.last)
            raise self._interruption.exception


class StepSeeds(Callback):
    """Seeds torch anew at every batch, from the run's seed, the epoch and the batch alone.

    So dropout in a batch does not depend on what ran before it in this process, and a run that
    resumes from a checkpoint, of an epoch's end or not, computes what an uninterrupted one would.
    In validation and test, where one quirk drops as well (`fusion.dropout=always_batch`), the epoch
    does not count: a checkpoint has its scores in whatever process it is tested.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed this batch."""
        self._seed_batch(trainer, trainer.current_epoch, batch_idx)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Seed this batch."""
        self._seed_batch(trainer, 0, batch_idx)

    on_test_batch_start = on_validation_batch_start

    def _seed_batch(self, trainer: Trainer, epoch: int, batch: int) -> None:
        """Seed torch; processes of a distributed run differ."""
        key = [self._seed, epoch, batch, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class Scores(Callback):
    """Remembers the validation metrics of the best epoch and the training metrics of the last.

    The former are the scores of `best.ckpt`.

    Args:
        monitor: The metric that decides.
        mode: `min` or `max`.

    Attributes:
        best: The `val/...` metrics of that epoch, and its number (from 0) as `val/best_epoch`.
        last: All metrics of the last epoch, and its number as `epoch`.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        self._monitor, self._sign = monitor, 1.0 if mode == "max" else -1.0
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this epoch's metrics."""
        metrics = {**metrics_under(trainer, "train/"), **metrics_under(trainer, "val/")}
        self.last = {**metrics, "epoch": float(trainer.current_epoch)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what a run that resumes from a checkpoint had measured in that epoch.

        Lightning logs an epoch only after its checkpoint is written, so a process that dies in
        between would leave a gap. In another folder than the checkpoint's, `best.ckpt` begins
        anew, and so do its scores.
        """
        kept = trainer.checkpoint_callback
        if isinstance(kept, ModelCheckpoint) and not kept.best_k_models:
            self.best = {}
        if self.last and trainer.logger is not None:
            trainer.logger.log_metrics(self.last, step=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare this epoch with the best so far, as strictly as Lightning's checkpoint does."""
        if trainer.state.fn != TrainerFn.FITTING or self._monitor not in trainer.callback_metrics:
            return
        metrics = metrics_under(trainer, "val/")
        if not self.best or self._rank(metrics) > self._rank(self.best):
            self.best = {**metrics, "val/best_epoch": float(trainer.current_epoch)}

    def _rank(self, metrics: Mapping[str, float]) -> float:
        """Return the score, more being better; NaN is the least."""
        value = metrics[self._monitor]
        return -math.inf if math.isnan(value) else self._sign * value

    def state_dict(self) -> dict[str, Any]:
        """Return the scores, for a checkpoint."""
        return {"best": dict(self.best), "last": dict(self.last)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from a checkpoint."""
        self.best = {str(key): float(value) for key, value in state_dict["best"].items()}
        self.last = {str(key): float(value) for key, value in state_dict["last"].items()}


def metrics_under(trainer: Trainer, prefix: str) -> dict[str, float]:
    """Return what Lightning last measured under a prefix."""
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if name.startswith(prefix)}


class Patience(EarlyStopping):
    """Stops after `patience` epochs without a better `monitor`, or when it is no longer finite.

    A run that had stopped when its process died does not train on when it is taken up again.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End training that had ended."""
        super().on_train_start(trainer, pl_module)
        if self.stopped_epoch > 0:
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint, with the configured patience and not the checkpoint's."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class EpochLines(Callback):
    """One line per epoch: losses, validation score, seconds."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line; validation of the epoch has run by now."""
        if not trainer.is_global_zero:
            return
        shown = " ".join(
            f"{name}={float(trainer.callback_metrics[name]):.4f}"
            for name in ("train/loss", "val/loss", "val/miou")
            if name in trainer.callback_metrics
        )
        epochs = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        log.info("epoch %s %s (%.1f s)", epochs, shown, time.monotonic() - self._started)


class Stopwatch(Timer):
    """Seconds spent training, continued by a resumed run, and testing or validating.

    The latter two are of the whole loop, reading included, as the challenge measured it.
    """

    def __init__(self) -> None:
        super().__init__(verbose=False)
        self._patches = 0

    @property
    def seconds(self) -> dict[str, float]:
        """`train/seconds`, and `inference/seconds` of a test; of what took place."""
        stages = {
            "train/seconds": RunningStage.TRAINING,
            "inference/seconds": RunningStage.TESTING,
        }
        return {
            name: self.time_elapsed(stage)
            for name, stage in stages.items()
            if self.start_time(stage) is not None
        }

    def of_validation(self) -> dict[str, float]:
        """Return `inference/seconds` of the last validation, and those of a patch."""
        seconds = self.time_elapsed(RunningStage.VALIDATING)
        return {
            "inference/seconds": seconds,
            "inference/seconds_per_patch": seconds / max(1, self._patches),
        }

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of a validation."""
        super().on_validation_start(trainer, pl_module)
        self._patches = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the patches of a validation."""
        self._patches += len(batch["patch_id"]) * trainer.world_size
