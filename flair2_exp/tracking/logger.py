"""What Lightning logs, to the MLflow run and to a table on the disk.

This module imports Lightning (and with it torch): import it where a trainer is made.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from flair2_exp.tracking.history import History
from flair2_exp.tracking.run import Run


class RunLogger(Logger):
    """Lightning's metrics, to a run and to a table with one row per epoch.

    Metrics of an epoch are stored at the epoch's number, counted from 0; those whose name ends in
    `_step` (Lightning adds that where a metric is logged both ways), and those that come without
    an epoch (the learning rate of Lightning's monitor), at the optimizer's step. `_epoch` behind a
    name is left out.

    Hyper-parameters are not stored: the run has the whole config. Nor is the run ended: only the
    experiment knows how it ended.
    """

    def __init__(self, run: Run, history: str | Path, name: str = "") -> None:
        """Log to a run and to a CSV table (`History`); `name` is for Lightning, should it ask."""
        super().__init__()
        self._run = run
        self._name = name
        self.history = History(history)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._name

    @property
    def version(self) -> str:
        """The run's id."""
        return self._run.run_id

    @property
    def save_dir(self) -> str:
        """The folder of the table."""
        return str(self.history.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Store metrics of a step or of an epoch, as Lightning sends them."""
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        by_step = {n: v for n, v in values.items() if epoch is None or n.endswith("_step")}
        by_epoch = {n.removesuffix("_epoch"): v for n, v in values.items() if n not in by_step}
        if by_step:
            self._run.log_metrics(by_step, step or 0)
        if by_epoch and epoch is not None:
            self._run.log_metrics(by_epoch, int(epoch))
            self.history.add(int(epoch), by_epoch)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: object) -> None:
        """Ignore hyper-parameters: the run has the whole config."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what waits; the run stays open."""
        self._run.flush()
