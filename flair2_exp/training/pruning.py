"""Reporting a score while training, and stopping where whoever collects it says so."""

from __future__ import annotations

import logging
import math
from typing import Protocol

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from flair2_exp.errors import ConfigError

log = logging.getLogger(__name__)


class UnknownObjectiveError(ConfigError):
    """The run does not measure the objective that a search looks at.

    Attributes:
        unknown_objective: The sweeper then ends the search: every other trial would say the same.
    """

    unknown_objective = True


class Reporter(Protocol):
    """Whoever compares this training with others, as a trial of a search."""

    def report(self, value: float, step: int) -> bool:
        """Take the score of a step, an epoch counted from 1; return whether training should stop.

        What this raises ends the training as an error, in every process.
        """
        ...

    def prune(self, step: int) -> None:
        """Note that the training was stopped early, if that has not been noted."""
        ...


class Pruning(Callback):
    """Reports a metric after each epoch's validation; stops training where its reporter says so.

    The first process of a distributed training reports, and passes the answer to the others.

    Args:
        reporter: Takes the reports; None in all processes but the first.
        metric: What is reported; a score that is not finite is left out.

    Attributes:
        stopped_epoch: The epoch (from 1) in which training was stopped; None if it was not.
    """

    def __init__(self, reporter: Reporter | None, metric: str) -> None:
        self._reporter, self._metric = reporter, metric
        self.stopped_epoch: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop every process or none.

        Raises:
            UnknownObjectiveError: Validation does not measure the metric.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self._metric not in trainer.callback_metrics:
            measured = sorted(n for n in trainer.callback_metrics if n.startswith("val/"))
            raise UnknownObjectiveError(
                f"objective={self._metric} was never logged: it is not among the values that "
                f"validation gives, {', '.join(measured)}."
            )
        value, epoch = float(trainer.callback_metrics[self._metric]), trainer.current_epoch + 1
        stop, failure = trainer.strategy.broadcast(self._report(trainer, value, epoch))
        if failure is not None:
            raise failure
        if stop:
            self.stopped_epoch = epoch
            log.info("pruned in epoch %d: %s=%.4f", epoch, self._metric, value)
            trainer.should_stop = True

    def _report(self, trainer: Trainer, value: float, epoch: int) -> tuple[bool, Exception | None]:
        """Return the reporter's answer, or its exception: the other processes wait for either."""
        if not trainer.is_global_zero or self._reporter is None or not math.isfinite(value):
            return False, None
        try:
            return self._reporter.report(value, epoch), None
        except Exception as error:  # of whatever kind: raised again in every process
            return False, error
