"""A run as its folder records it."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from flair2_exp.config.experiment import Config
from flair2_exp.errors import ConfigError, DataError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED as RUN_FAILED
from flair2_exp.lifecycle.record import (
    FINISHED,
    KILLED,
    RUNNING,
    TRAINED,
    RunRecord,
    read_config,
    read_settings,
)
from flair2_exp.locking import holder_of
from flair2_exp.results.finding import locate, record_in
from flair2_exp.values import flatten

DONE, AT_WORK, FAILED, STOPPED, DAMAGED = "done", "running", "failed", "stopped", "damaged"
"""What a run is: finished; held by a process; ended by an error; ended by a signal or without a
word, and resumes; without a readable record."""
ENDED_SILENTLY: Final = "its process ended without a word"


@dataclass(frozen=True)
class RecordedRun:
    """A run and what its folder says of it; each file is read when it is asked for.

    Attributes:
        folder: The run's.
        record: The run's.
    """

    folder: RunFolder
    record: RunRecord

    @classmethod
    def find(cls, run: str | os.PathLike[str], tracking_uri: str = "") -> RecordedRun:
        """Find a run by its folder, a checkpoint in it, or the id of its MLflow run.

        Args:
            run: As of `finding.locate`.
            tracking_uri: Likewise.

        Raises:
            FlairError: There is no such run, or its record is of another version.
        """
        folder = locate(run, tracking_uri).folder
        if folder is None:
            raise ConfigError(
                f"{os.fspath(run)} lies by itself, outside of a run's folder.\n"
                "Name the folder of the run, or the id of its MLflow run."
            )
        return cls(folder, record_in(folder))

    @cached_property
    def config(self) -> Config:
        """The checked config that it ran with.

        Raises:
            FlairError: `config.yaml` is missing, damaged, or not one of this version.
        """
        return read_config(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The whole config by dotted name.

        Raises:
            DataError: `config.yaml` is missing or damaged.
        """
        return flatten(read_settings(self.folder))

    @cached_property
    def state_and_note(self) -> tuple[str, str]:
        """What it is (`DONE`, ...) and who is at work in it, or why it ended."""
        return state_of(self.folder, self.record)

    @property
    def state(self) -> str:
        """What it is: `done`, `running`, `failed` or `stopped`."""
        return self.state_and_note[0]

    @cached_property
    def history(self) -> Sequence[dict[str, float]]:
        """One entry per epoch, with `epoch` from 1 and the metrics that were measured in it.

        Raises:
            DataError: `history.csv` is damaged.
        """
        return read_history(self.folder)

    @property
    def epochs(self) -> int:
        """Epochs that are complete."""
        done = (self.record.scores or self.record.training).get("train/epochs")
        return int(done) if done is not None else len(self.history)

    @property
    def started(self) -> datetime | None:
        """When it began, in local time; None where not recorded."""
        return datetime.fromtimestamp(self.record.start / 1000) if self.record.start else None


def state_of(folder: RunFolder, record: RunRecord | None) -> tuple[str, str]:
    """Return what a run is, and who is at work in it or why it ended, by its folder alone.

    Args:
        folder: The run's.
        record: What it holds; None where there is none, or a torn one.
    """
    if record is not None and record.status == FINISHED:
        return DONE, ""
    holder = holder_of(folder.path)
    if holder:
        return AT_WORK, holder
    if record is None:
        return DAMAGED, f"no readable {folder.record.name}"
    if record.status == RUN_FAILED:
        return FAILED, (record.error.splitlines() or [""])[0]
    if record.status in (RUNNING, TRAINED):
        return STOPPED, ENDED_SILENTLY
    return STOPPED, "by a signal" if record.status == KILLED else record.status.lower()


def read_history(folder: RunFolder, names: Collection[str] | None = None) -> list[dict[str, float]]:
    """Return the rows of a run's history, epochs counted from 1; none where it has none.

    Args:
        folder: The run's.
        names: The metrics that are wanted; None: all.

    Raises:
        DataError: It is damaged.
    """
    try:
        with folder.history.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        wanted = None if names is None else {*names}
        return [
            {"epoch": float(line["epoch"])}
            | {
                name: float(text)
                for name, text in line.items()
                if name and text and (wanted is None or name in wanted)
            }
            for line in lines
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{folder.history} cannot be read ({error}).") from None
