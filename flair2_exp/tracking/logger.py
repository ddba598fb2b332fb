"""What Lightning logs, to the MLflow run and to a table on the disk.

This module imports Lightning (and with it torch): import it where a trainer is made.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from flair2_exp.config.tracking import LoggersConfig
from flair2_exp.errors import ConfigError
from flair2_exp.registry import arguments_of, construct, locate
from flair2_exp.tracking.history import History
from flair2_exp.tracking.run import Run
from flair2_exp.tracking.scrub import scrub_tree


def build_loggers(options: LoggersConfig, folder: Path, config: Mapping[str, Any]) -> list[Logger]:
    """Build the further loggers that a config names, and give them the config.

    A constructor is given `save_dir` by name, a folder below `folder`, unless the logger's node
    sets it.

    Args:
        options: Of the loggers.
        folder: Where they may write.
        config: The run's, in plain values; they get it without credentials.

    Raises:
        ConfigError: There is no such class, it does not take its options, or it needs a package
            that is not installed.
    """
    loggers: list[Logger] = []
    for name, part in options.parts.items():
        where, own = f"tracking.loggers.{name}", _options(part)
        given = {} if "save_dir" in own else {"save_dir": str(folder / name)}
        try:
            logger = construct(
                Logger,  # type: ignore[type-abstract]
                part["_target_"],
                where,
                given=given,
                options=own,
            )
            logger.log_hyperparams(scrub_tree(config))
        except (ModuleNotFoundError, MisconfigurationException) as error:
            raise ConfigError(f"{where}: {str(error).rstrip('.')}.") from error
        loggers.append(logger)
    return loggers


def require_loggers(options: LoggersConfig) -> None:
    """Refuse loggers that do not exist, do not take their options or would be given credentials.

    Raises:
        ConfigError: The first of them.
    """
    for name, part in options.parts.items():
        where, own = f"tracking.loggers.{name}", _options(part)
        if scrub_tree(own) != own:
            raise ConfigError(
                f"{where} holds credentials, which would be kept with every run: put them into the "
                "environment variables that the logger reads, as WANDB_API_KEY."
            )
        located = locate(part["_target_"], Logger, f"{where}._target_")  # type: ignore[type-abstract]
        given = {} if "save_dir" in own else {"save_dir": ""}
        arguments_of(located, where, given=given, options=own)


def _options(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "_target_"}


class RunLogger(Logger):
    """Lightning's metrics, to a run and to a table with one row per epoch.

    Metrics of an epoch are stored at the epoch's number, counted from 1; those whose name ends in
    `_step` (Lightning adds that where a metric is logged both ways), and those that come without
    an epoch (the learning rate of Lightning's monitor), at the optimizer's step. `_epoch` behind a
    name is left out. Those of a test are single numbers: the experiment stores them with its
    results.

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
            curves = {n: v for n, v in by_epoch.items() if not n.startswith("test/")}
            number = int(epoch) + 1  # Lightning counts from 0
            self._run.log_metrics(curves, number)
            self.history.add(number, by_epoch)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: object) -> None:
        """Ignore hyper-parameters: the run has the whole config."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what waits; the run stays open."""
        self._run.flush()
