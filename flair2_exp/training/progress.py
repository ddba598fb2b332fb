"""What is shown of a training while it runs: bars on a terminal, elsewhere lines; scores always."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from flair2_exp.progress import Pace, span

log = logging.getLogger(__name__)

_FIRST: Final = 3
"""Batches after which an epoch's length can be told; the very first one, which also warms up, does
not count."""
_OF_VALIDATION: Final = 1 / 3
"""What a validation batch costs, by a training batch, until one has been measured: the forward pass
without the backward one, which costs twice as much."""
_WORTH_SAYING: Final = 60.0
"""Seconds of a training that is worth a line about its length."""
_SLOW: Final = 1800.0
"""Seconds of a training on a processor after which a small network is proposed."""


class ShownProgress(Callback):
    """Shows how far a training is, and one line per epoch with its scores.

    On a terminal there is a bar for each epoch; elsewhere a line comes every half minute. Once the
    first batches tell it, a line says how long the training will take. The lines go to the log, and
    so into the run's file.

    Args:
        bars: Whether to show bars.
        small: What to propose where a training on the processor takes long; empty: nothing.
    """

    def __init__(self, *, bars: bool, small: str = "") -> None:
        self._bars = bars
        self._small = small
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._clear()

    def _clear(self) -> None:
        self._what, self._batches, self._done, self._skipped = "", 0, 0, 0
        self._started = self._first = time.monotonic()
        self._pace = Pace()
        self._per_batch: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._clear()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the bar of an epoch."""
        self._started = time.monotonic()
        batches = int(trainer.num_training_batches) + _total(trainer.num_val_batches)
        what = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        self._begin(trainer, what, batches)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Say how far the epoch is; after the first batches, how long all of it takes."""
        if not self._done:  # a training that resumes within an epoch has its first batches
            self._done = self._skipped = batch_idx
            self._pace.begin(batch_idx)
        self._advance(trainer)
        made = self._done - self._skipped
        if made == 1:
            self._first = time.monotonic()
        if self._per_batch is None and made >= min(_FIRST, int(trainer.num_training_batches)):
            since, counted = (self._first, made - 1) if made > 1 else (self._started, made)
            self._per_batch = (time.monotonic() - since) / counted
            self._tell_length(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how far the epoch is, or the validation of a trained network."""
        self._advance(trainer)

    on_test_batch_end = on_validation_batch_end

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar of a validation that is not part of an epoch."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._begin(trainer, "validation", _total(trainer.num_val_batches))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar of a test."""
        self._begin(trainer, "test", _total(trainer.num_test_batches))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's line; its validation has run by now."""
        seconds = time.monotonic() - self._started
        if not trainer.is_global_zero:
            return
        shown = " ".join(
            f"{name}={float(trainer.callback_metrics[name]):.4f}"
            for name in ("train/loss", "val/loss", "val/miou")
            if name in trainer.callback_metrics
        )
        epoch, epochs = trainer.current_epoch + 1, int(trainer.max_epochs or 0)
        left = seconds * (epochs - epoch)
        rest = f", {span(left)} left" if left >= _WORTH_SAYING else ""
        log.info("epoch %d/%d %s (%.1f s%s)", epoch, epochs, shown, seconds, rest)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._stack.close()

    on_test_end = on_fit_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar where no epoch is running."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._stack.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away: the terminal is for what happened."""
        self._stack.close()

    def _begin(self, trainer: Trainer, what: str, batches: int) -> None:
        self._what, self._batches, self._done, self._skipped = what, batches, 0, 0
        self._pace = Pace()
        self._stack.close()
        self._bar = None
        if self._bars and trainer.is_global_zero:
            self._bar = self._stack.enter_context(_bar())
            self._bar.add_task(what, total=batches, left="")

    def _advance(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        self._done += 1
        due = self._pace.due(self._done, self._batches)
        left = self._pace.left(self._done, self._batches)
        if self._bar is not None:
            words = "" if left is None or left < _WORTH_SAYING else f"{span(left)} left of it"
            self._bar.update(self._bar.task_ids[0], completed=self._done, left=words)
        elif due:
            rest = "" if left is None else f", {span(left)} left"
            log.info("%s: batch %d of %d%s", self._what, self._done, self._batches, rest)

    def _tell_length(self, trainer: Trainer) -> None:
        """Say how long an epoch and the whole training take, by the first batches."""
        if not trainer.is_global_zero or self._per_batch is None:
            return
        batches = int(trainer.num_training_batches)
        batches_of_validation = _OF_VALIDATION * _total(trainer.num_val_batches)
        epoch = self._per_batch * (batches + batches_of_validation)
        epochs = int(trainer.max_epochs or 0) - trainer.current_epoch
        whole = epoch * epochs
        if whole < _WORTH_SAYING:
            return
        log.info(
            "by the first batches (%.2f s each), an epoch takes %s, and %d epochs %s",
            self._per_batch, span(epoch), epochs, span(whole),
        )  # fmt: skip
        if self._small and whole > _SLOW and trainer.strategy.root_device.type == "cpu":
            log.info("%s", self._small)


def _total(batches: list[int | float] | list[int] | int) -> int:
    """Return the batches of all loaders together."""
    return int(sum(batches)) if isinstance(batches, list) else int(batches)


@contextmanager
def _bar() -> Iterator[Progress]:
    """Show a bar on standard output; what is logged meanwhile appears above it.

    A handler keeps the stream that it was made with, and would write into the bar.
    """
    stream = sys.stdout
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("batches  {task.fields[left]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        handlers = [
            each
            for each in logging.getLogger().handlers
            if isinstance(each, logging.StreamHandler) and each.stream is stream
        ]
        for each in handlers:
            each.setStream(sys.stdout)  # by now the bar's, which writes above itself
        try:
            yield bar
        finally:
            for each in handlers:
                each.setStream(stream)
