"""What Lightning logs, to the MLflow run and to a table on the disk.

This module imports Lightning (and with it torch): import it where a trainer is made.
"""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from flair2_exp.files import write_text
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


class History:
    """A CSV table with one row per epoch: `epoch`, then train/…, then val/…, then the rest.

    Values of an epoch are gathered until a `train/` metric comes, which Lightning sends last;
    a validation or test outside training therefore makes no row. The file is replaced as a whole,
    so it is never torn. A training that resumes from an earlier epoch replaces the rows from there
    on.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows = self._read()
        self._waiting: dict[int, dict[str, float]] = {}
        self._first = True

    def _read(self) -> dict[int, dict[str, float]]:
        rows: dict[int, dict[str, float]] = {}
        if not self.path.is_file():
            return rows
        with self.path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    epoch = int(row.pop("epoch"))
                    rows[epoch] = {name: float(text) for name, text in row.items() if text}
                except (KeyError, TypeError, ValueError):  # a line edited by hand
                    continue
        return rows

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of an epoch; write its row once training metrics are among them."""
        own = {n: float(v) for n, v in metrics.items() if not n.startswith("test/")}
        self._waiting.setdefault(epoch, {}).update(own)
        if not any(name.startswith("train/") for name in own):
            return
        if self._first:  # what a longer training left behind, before it was set back to here
            self._rows = {number: row for number, row in self._rows.items() if number < epoch}
            self._first = False
        self._rows.setdefault(epoch, {}).update(self._waiting.pop(epoch))
        self._write()

    def _write(self) -> None:
        order = {"train": 0, "val": 1}
        names = sorted(
            {name for row in self._rows.values() for name in row},
            key=lambda name: (order.get(name.partition("/")[0], 2), name),
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, ["epoch", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"epoch": epoch, **self._rows[epoch]} for epoch in sorted(self._rows))
        write_text(self.path, text.getvalue())
