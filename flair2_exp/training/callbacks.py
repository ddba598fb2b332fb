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
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch import Tensor

from flair2_exp.config.training import BestConfig, CallbacksConfig
from flair2_exp.errors import ConfigError, DivergedError
from flair2_exp.registry import construct
from flair2_exp.signals import Interruption, exception_of, number_of
from flair2_exp.training.averaging import AveragedWeights
from flair2_exp.training.progress import ShownProgress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointPaths:
    """Where a run's checkpoints go; one folder."""

    best: Path
    """That of the epoch with the best `callbacks.best.monitor`."""
    last: Path
    """The newest, from which the run resumes."""
    previous: Path
    """The one before."""


def standard_callbacks(
    options: CallbacksConfig,
    paths: CheckpointPaths,
    interruption: Interruption,
    *,
    bars: bool,
    small: str = "",
) -> list[Callback]:
    """Return what stops, averages, shows and keeps a training: a trainer's last callbacks.

    Their order counts: the best checkpoint is Lightning's first checkpoint callback, and the
    resume point, the last one, stores the state of all, those of the user's own among them.

    Args:
        options: Of the callbacks.
        paths: Where checkpoints go.
        interruption: Whether the process has been asked to end.
        bars: Whether progress is shown by bars, or by lines.
        small: What to propose where a training on the processor takes long; empty: nothing.
    """
    best, stopping = options.best, options.early_stopping
    patience = stopping.patience if stopping is not None else 0
    minutes = options.resume.save_minutes
    return [
        *([Patience(best.monitor, patience=patience, mode=best.mode)] if patience else []),
        *([AveragedWeights(options.average)] if options.average.kind != "none" else []),
        ShownProgress(bars=bars, small=small),
        best_checkpoint(best, paths.best),
        *build_callbacks(options),
        ResumePoint(paths, minutes=minutes, interruption=interruption),
    ]


def build_callbacks(options: CallbacksConfig) -> list[Callback]:
    """Build the further callbacks that a config names.

    Raises:
        ConfigError: There is no such class, or it does not take its options.
    """
    callbacks: list[Callback] = []
    for name, part in options.parts.items():
        own = {key: value for key, value in part.items() if key != "_target_"}
        try:
            built = construct(
                Callback, part["_target_"], f"callbacks.{name}", given={}, options=own
            )
        except (MisconfigurationException, ModuleNotFoundError) as error:
            raise ConfigError(f"callbacks.{name}: {str(error).rstrip('.')}.") from error
        callbacks.append(built)
    return callbacks


def best_checkpoint(options: BestConfig, file: Path) -> ModelCheckpoint:
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


class Agreement:
    """What all processes of a training do after the same batch: write a checkpoint, or end.

    On several devices they ask each other, on the processors: the devices, which may be some
    batches behind, are not waited for. Lightning asks the first one alone, on the devices.

    Args:
        interruption: Whether this process has been asked to end.

    Attributes:
        end: What ends all of them; None until then.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.end: BaseException | None = None
        self._interruption = interruption
        self._processes: Any = None

    def begin(self, world: int) -> None:
        """Make what the processes ask each other by; all must call this."""
        self.end = None
        self._processes = torch.distributed.new_group(backend="gloo") if world > 1 else None

    def reached(self, *, due: bool) -> bool:
        """Return whether it is due in any process, or any is to end; all must call this."""
        own = self._interruption.exception
        if self._processes is None:
            self.end = own
            return due or own is not None
        flags = torch.tensor([due, own is not None], dtype=torch.int32)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=self._processes)
        if flags[1] and self.end is None:
            numbers: list[Any] = [None] * torch.distributed.get_world_size()
            mine = None if own is None else number_of(own)
            torch.distributed.all_gather_object(numbers, mine, group=self._processes)
            self.end = own or exception_of(next(each for each in numbers if each is not None))
        return bool(flags.any())


class ResumePoint(Checkpoint):
    """Keeps the checkpoint from which the run resumes, and the one before.

    They are written at each epoch's end, within an epoch every `minutes`, and after the batch in
    which a signal asks the run to end. A signal during validation waits for its end: what the epoch
    learned would be lost. Several devices write and end together, whichever of them gets the signal
    (`Agreement`).

    Each file appears whole under its name (`WholeCheckpoints`); should a disk tear the last one,
    there is the one before. Lightning calls checkpoint callbacks after all others and in
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
        self._agreement = Agreement(interruption)
        self._postponing = ExitStack()
        self._written = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait for a checkpoint from here on."""
        self._written = time.monotonic()
        self._agreement.begin(trainer.world_size)
        self._postponing.enter_context(self._interruption.postponed())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait no longer."""
        self._postponing.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let signals wait no longer, unless all end for one: this process's own may come yet."""
        if self._agreement.end is None:
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
        # After the last batch the epoch's own is near; between two optimizer steps gradients of
        # batches already counted wait to be summed, and are in no checkpoint.
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if self._agreement.reached(due=time.monotonic() - self._written > self._seconds):
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
        self._agreement.reached(due=False)
        if self._agreement.end is not None:
            if trainer.is_global_zero:
                epoch = trainer.current_epoch + 1
                log.info("interrupted in epoch %d: what it has learned is in %s", epoch, self.last)
            raise self._agreement.end


class StepSeeds(Callback):
    """Seeds torch anew at every batch, from the run's seed, the epoch and the batch alone.

    So dropout in a batch does not depend on what ran before it in this process, and a run that
    resumes from a checkpoint, of an epoch's end or not, computes what an uninterrupted one would.
    In validation and test, where one quirk drops as well (`fusion.dropout=always_batch`), the epoch
    does not count: a checkpoint has its scores in whatever process it is tested.
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


class FiniteLoss(Callback):
    """Fails a run whose loss or weights are no longer finite, before a checkpoint keeps them.

    The losses of the batches are looked at where they are, on the device, and waited for at the end
    of an epoch and before each checkpoint alone.

    Args:
        last: The checkpoint from which the run resumes, for the message.
    """

    def __init__(self, last: Path) -> None:
        self._last = last
        self._names: tuple[str, ...] = ()
        self._first: Tensor | None = None
        """The first batch of the epoch whose loss is not finite, by name; -1: none."""
        self._steps_before = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the losses of a batch, without waiting for them."""
        finite = torch.stack([each.detach() for each in outputs.values()]).isfinite()
        if self._first is None:
            self._names = tuple(outputs)
            self._first = torch.full_like(finite, -1, dtype=torch.int64)
            done = (batch_idx + 1) // trainer.accumulate_grad_batches
            self._steps_before = trainer.global_step - done
        self._first = self._first.where(finite | (self._first >= 0), batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the losses of the epoch that has been trained."""
        self._require_finite_losses(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to write a checkpoint from which nothing sound can come; nothing is written yet.

        Raises:
            DivergedError: A loss since the last check, or a weight, is not finite.
        """
        self._require_finite_losses(trainer, pl_module)
        weights = {
            n: each for n, each in checkpoint["state_dict"].items() if each.is_floating_point()
        }
        finite = torch.stack([each.isfinite().all() for each in weights.values()]).tolist()
        if not all(finite):
            name = list(weights)[finite.index(False)]
            raise self._diverged(
                f"weights are not finite after epoch {trainer.current_epoch + 1}"
                f", step {trainer.global_step} ({finite.count(False)}, as {name})"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the loss of a validation or a test.

        Raises:
            DivergedError: It is not finite.
        """
        for name in ("val/loss", "test/loss"):
            loss = float(trainer.callback_metrics.get(name, 0.0))
            if not math.isfinite(loss):
                where = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}"
                after = f" after {where}" if trainer.state.fn == TrainerFn.FITTING else ""
                raise self._diverged(f"{name} is {loss}{after}")

    on_test_end = on_validation_end

    def _require_finite_losses(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise, in every process alike, where a batch since the last call was not sound."""
        first, self._first = self._first, None
        if first is None:
            return
        bad = torch.as_tensor(pl_module.all_gather(first)).reshape(-1, len(first)).cpu()
        if (bad < 0).all():
            return
        batch = int(bad[bad >= 0].min())
        names = [
            name for name, each in zip(self._names, (bad == batch).any(0), strict=True) if each
        ]
        heads = [name for name in names if name != "loss"] or ["weighted sum"]
        step = self._steps_before + batch // trainer.accumulate_grad_batches + 1
        raise self._diverged(
            f"the loss is not finite in epoch {trainer.current_epoch + 1}, batch {batch + 1}, step "
            f"{step} ({', '.join(heads)})"
        )

    def _diverged(self, what: str) -> DivergedError:
        advice = (
            "Try a lower optimizer.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true"
        )
        if self._last.exists():
            advice += f"; model.weights={self._last} starts from before that"
        return DivergedError(f"{what}: training has diverged.\n{advice}.")


class Scores(Callback):
    """Remembers the validation metrics of the best epoch and the training metrics of the last.

    The former are the scores of `best.ckpt`.

    Attributes:
        best: The `val/...` metrics of that epoch, and its number (from 1) as `epoch`.
        last: All metrics of the last epoch, and its number (from 0, as Lightning logs it) as
            `epoch`.
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
            self.best = {**metrics, "epoch": float(trainer.current_epoch + 1)}

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
    """Stops after `patience` epochs without a better `monitor`.

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
