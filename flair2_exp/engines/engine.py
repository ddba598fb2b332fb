"""What every engine does, and what a job came to."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Final

from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED, KILLED, PREEMPTED, RunRecord

QUEUED, ACTIVE, ENDED, CANCELLED = "queued", "running", "ended", "cancelled"
LIVE: Final = (QUEUED, ACTIVE)
"""What an engine knows of a job. One that has ended may be done or not: its folder says it."""


class Engine(ABC):
    """Starts commands somewhere, and knows what became of them.

    Attributes:
        name: As in `hydra/launcher=NAME`, and in `Submission.engine`.
        interval: Seconds between two questions after the states of jobs.
        outlives: Whether jobs go on where the process that started them ends.
        silent: Whether the cluster did not answer when it was last asked for states.
    """

    name: ClassVar[str]
    interval: float = 0.2
    outlives: bool = False
    silent: bool = False

    @abstractmethod
    def start(self, commands: Sequence[JobCommand], attempts: Sequence[int]) -> int:
        """Start as many of the commands as there is room for, from the first one on.

        Each one's `Submission` is in its folder afterwards; standard output and error go to
        `RunFolder.output`, behind what is there.

        Args:
            commands: None of them is queued or running.
            attempts: Which start of each it is, from 1.

        Returns:
            How many were started or queued.

        Raises:
            FlairError: The engine refuses them: nothing was started.
        """

    @abstractmethod
    def states(self, jobs: Mapping[str, Submission]) -> dict[str, str]:
        """Return where jobs are, all with one question to the cluster.

        Args:
            jobs: By any key; also those that other processes have started.

        Returns:
            QUEUED, ACTIVE, ENDED or CANCELLED by the same keys.
        """

    @abstractmethod
    def stop(self, jobs: Mapping[str, Submission]) -> None:
        """Ask jobs to end with a checkpoint (SIGTERM), and take queued ones back; do not wait."""

    def adopt(self, command: JobCommand, job: Submission) -> None:  # noqa: B027 (nothing to count)
        """Take over a job that another process has started: it counts among those at a time."""

    def capacity(self, command: JobCommand) -> int | None:
        """Return how many jobs like this one run at the same time; None: no limit is known here."""
        return None

    def close(self) -> None:  # noqa: B027 (nothing to let go of)
        """Let go of what the engine holds; jobs are left as they are."""

    def require(self, commands: Sequence[JobCommand]) -> None:  # noqa: B027 (all can)
        """Refuse commands that could never be started.

        Raises:
            FlairError: The first one that could not, and why.
        """


DONE: Final = "done"
FAILURE: Final = "failed"
DIED: Final = "killed"
MEMORY: Final = "memory"
STOPPED: Final = "stopped"
WITHDRAWN: Final = "cancelled"


@dataclass(frozen=True)
class Ending:
    """What a job came to.

    Attributes:
        cause: DONE; FAILURE (its own: it would fail again); DIED (killed by the machine); MEMORY (a
            GPU was full); STOPPED (by a signal); WITHDRAWN (somebody took it back).
        reason: In one line; empty where it is done.
    """

    cause: str
    reason: str = ""


_MEMORY: Final = re.compile(r"out of memory|OutOfMemory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_REFUSED: Final = re.compile(r"^flair2-exp: (.*)", re.MULTILINE)
_READ: Final = 64 * 1024  # bytes of the end of a job's output in which its last words stand


def ending_of(folder: RunFolder, state: str, *, test: bool) -> Ending:
    """Return what a job came to that is neither queued nor running.

    Args:
        folder: The run's.
        state: ENDED or CANCELLED, as the engine knows it.
        test: Whether the run is tested, too.
    """
    record = None
    with suppress(ConfigError):
        record = RunRecord.read(folder)
    if record is not None and record.is_done(test=test):
        return Ending(DONE)
    submission = Submission.read(folder)
    if state == CANCELLED or (submission is not None and submission.cancelled):
        return Ending(WITHDRAWN, "cancelled")
    words = last_words(folder)
    if record is None:
        # Refused before it began, or killed before that.
        return Ending(FAILURE, words) if words else Ending(DIED, "its process ended without a word")
    if record.status == FAILED:
        memory = _MEMORY.search(record.error)
        return Ending(MEMORY if memory else FAILURE, record.error.splitlines()[0])
    if record.status in (KILLED, PREEMPTED):  # the latter where SLURM did not queue it again
        return Ending(STOPPED, "stopped by a signal")
    # It resumed and was refused, or it was killed.
    return Ending(FAILURE, words) if words else Ending(DIED, "its process ended without a word")


def last_words(folder: RunFolder) -> str:
    """Return the refusal with which the last start of a run has ended, in one line; else ""."""
    try:
        with folder.output.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _READ))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    # Behind the last start's own line: an earlier one may have been refused.
    found = _REFUSED.findall(text.rpartition(START)[2])
    return str(found[-1]) if found else ""


START: Final = "=== start "
"""Begins the line that an engine writes into a job's output before each start."""
