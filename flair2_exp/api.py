"""Runs from Python: opened, listed as a table, and started, as in a notebook.

    import flair2_exp

    run = flair2_exp.run(["preset=tiny", "model=unet", "data=aerial_only"])
    run.scores["test/miou"], run.history, run.confusion
    flair2_exp.runs(where="model=unet", sort="test/miou")
    flair2_exp.open_run("outputs/unet/TIME").predictor().predict(image)

What a command would refuse raises a `FlairError` here, with the same message.
"""

from __future__ import annotations

import html
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from flair2_exp.errors import ConfigError, FlairError, UsageError
from flair2_exp.results.run import RecordedRun

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from flair2_exp.config.experiment import Config
    from flair2_exp.inference.predictor import Predictor
    from flair2_exp.report.counts import Counts

__all__ = ["Run", "open_run", "run", "runs"]


class Run:
    """A run: its config, what it measured, and its network.

    What costs reading is read when it is asked for, and once: open the run again to see how far
    one is that is at work.

    Args:
        recorded: The run as its folder records it; `open_run` finds it.
    """

    def __init__(self, recorded: RecordedRun) -> None:
        self._recorded = recorded

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._recorded.folder.path

    @property
    def config(self) -> Config:
        """The checked config that it ran with, as `run.config.model.name`.

        Raises:
            FlairError: `config.yaml` is damaged, or not one of this version.
        """
        return self._recorded.config

    @property
    def status(self) -> str:
        """`done`, `running` (a process holds its folder), `failed`, or `stopped` (it resumes)."""
        return self._recorded.state

    @property
    def scores(self) -> Mapping[str, float]:
        """All numbers that it measured, as `test/miou`, by name; those of its training until then.

        IoU is a share of 1; times are in seconds.
        """
        return dict(self._recorded.record.scores or self._recorded.record.training)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch: `epoch`, counted from 1, and the metrics measured in it.

        Raises:
            DataError: `history.csv` is damaged.
        """
        import pandas as pd

        rows = self._recorded.history
        frame = pd.DataFrame(
            rows, columns=list(dict.fromkeys(["epoch", *(n for r in rows for n in r)]))
        )
        return frame.astype({"epoch": int})

    @cached_property
    def counts(self) -> Counts:
        """What it counted on the test set: a confusion matrix (C, C) of pixels for each area.

        Raises:
            DataError: It has not been tested, or the file is damaged.
        """
        from flair2_exp.report.counts import read_counts

        return read_counts(self._recorded.folder.confusion)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C) pixels of the whole test set: rows truth, columns prediction.

        Raises:
            DataError: As `counts`.
        """
        total: NDArray[np.int64] = self.counts.confusion.sum(axis=0)
        return total

    @property
    def mlflow_id(self) -> str:
        """The id of its MLflow run; empty where it has none."""
        return self._recorded.record.run_id

    def predictor(self, *, tta: str = "none", device: str = "auto") -> Predictor:
        """Load its network, to predict images.

        Args:
            tta: `none`, `flips` or `d4`: in which symmetries each patch is predicted.
            device: `auto`, `cpu`, `cuda` or `cuda:1`.

        Raises:
            FlairError: It has no trained network, or the network cannot be loaded.
        """
        from flair2_exp.inference.predictor import Predictor

        return Predictor.from_run(self.folder, tta=tta, device=device)

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {self._said()}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return f"<code>{html.escape(str(self.folder))}</code><br>{html.escape(self._said())}"

    def _said(self) -> str:
        shown = {"test mIoU": "test/miou", "val mIoU": "best/val/miou"}
        scores = [f"{n} {self.scores[m]:.4f}" for n, m in shown.items() if m in self.scores]
        return ", ".join([self.status, *scores])


def open_run(run: str | os.PathLike[str], tracking_uri: str = "") -> Run:
    """Return a run.

    Args:
        run: Its folder, a checkpoint in it, or the id of its MLflow run.
        tracking_uri: Of the MLflow store that knows the id; empty is the local one, `mlruns`.

    Raises:
        FlairError: There is no such run, or another version wrote it.
    """
    return Run(RecordedRun.find(run, tracking_uri))


def runs(
    root: str | os.PathLike[str] | None = None,
    *,
    sweep: str | None = None,
    where: str | Sequence[str] | None = None,
    sort: str = "test/miou",
    tracking_uri: str = "",
) -> pd.DataFrame:
    """Return a table of runs, one row each.

    Args:
        root: The folder below which they are; None: `outputs` and `multirun` of where you stand
            (of `FLAIR2_EXP_ROOT`, where that is set).
        sweep: The name or the folder of a sweep, whose runs alone are wanted.
        where: Conditions that all hold, as `model=utt`, `seed=1,2`, `name=utt*`, `test/miou>=0.5`:
            on columns, scores, options and groups.
        sort: A column, a score or an option. Scores are sorted from the highest, losses and all
            else from the lowest; `-` in front turns that around.
        tracking_uri: Of an MLflow store, whose runs are taken instead of those below folders.

    Returns:
        Columns `folder`, `name`, `row`, `seed`, `status` (`done`, `running`, `failed`, `stopped`,
        `damaged`, `elsewhere`), `model`, `dataset`, `test/miou`, `best/val/miou`, `epoch` (complete
        ones), `seconds` (of training), `started` (local time), `mlflow_id`; then, by dotted name,
        each option that decides results and in which these runs differ.

    Raises:
        FlairError: There is no such folder or sweep, a condition is misspelt, or the store does not
            answer.
    """
    import pandas as pd

    from flair2_exp.results import table

    conditions = [where] if isinstance(where, str) else list(where or ())
    roots = None if root is None else [Path(root)]
    every = table.entries(roots, sweep=sweep, tracking_uri=tracking_uri)
    every = table.ordered(table.selected(every, conditions), sort)
    columns = {name: [each.value(name) for each in every] for name in table.COLUMNS}
    frame = pd.DataFrame(columns | table.differing(every))
    kinds = {name: float for name in ("test/miou", "best/val/miou", "seconds")}
    whole = {name: "Int64" for name in ("seed", "epoch")}
    return frame.astype({**kinds, **whole, "started": "datetime64[ns]"})


def run(overrides: Sequence[str] = ()) -> Run:
    """Train and test one experiment in this process, as the command with these overrides does.

    May be called several times. A run that is finished is not run again; in the folder of an
    interrupted one (`hydra.run.dir=FOLDER`) it resumes. Interrupting it (Ctrl-C, a notebook's stop
    button) raises `KeyboardInterrupt` once a checkpoint is written.

    Args:
        overrides: As behind `flair2-exp`: `["preset=tiny", "model=unet"]`.

    Returns:
        The run, finished.

    Raises:
        FlairError: What the command would refuse, with its message.
    """
    from flair2_exp.cli.main import execute
    from flair2_exp.cli.words import parse, runs_nothing
    from flair2_exp.config.explain import explain
    from flair2_exp.signals import signals_as_exceptions

    words = [overrides] if isinstance(overrides, str) else [str(each) for each in overrides]
    with _as_it_was():
        try:
            flags = parse(words)
            if flags.multirun or runs_nothing(flags):
                raise UsageError(
                    f"run({words}): expected the overrides of one run. Sweeps, searches and "
                    "flags that show something are for the command line: flair2-exp --help."
                )
            with signals_as_exceptions(lasting=True):
                folder = execute(words)
        except FlairError:
            raise
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            raise ConfigError(message) from None  # Hydra's frames are three screens of a notebook
    assert isinstance(folder, Path), "a single run returns its folder"
    return open_run(folder)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Put back at the end what a run sets for its whole process: a notebook's process lives on."""
    from hydra.core.hydra_config import HydraConfig

    root, hydra = logging.getLogger(), HydraConfig.instance()
    handlers, level, config, path = root.handlers[:], root.level, hydra.cfg, sys.path[:]
    folder = os.getcwd()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        hydra.cfg = config
        sys.path[:] = path
        os.chdir(folder)
