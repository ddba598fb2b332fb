"""Many jobs on one engine: started as there is room, taken over, tried again, stopped."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from flair2_exp.engines.engine import (
    CANCELLED,
    DIED,
    ENDED,
    LIVE,
    MEMORY,
    STOPPED,
    Ending,
    Engine,
    ending_of,
)
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.lifecycle.folder import RunFolder

log = logging.getLogger(__name__)

_ADVICE: Final = (
    "If it comes again: a smaller data.batch_size with trainer.accumulate_grad_batches, "
    "trainer.precision=bf16-mixed, or fewer jobs per GPU (hydra.launcher.gpus_per_job=1)."
)


@dataclass
class _Active:
    command: JobCommand
    progress: object
    attempt: int


class Pool:
    """The jobs of one command on one engine; a caller adds jobs and asks what has ended.

    Args:
        engine: Runs them.
        retries: How often a job that was killed, or found no room on its GPU, is tried again.
    """

    def __init__(self, engine: Engine, retries: int) -> None:
        self.engine = engine
        self._retries = retries
        self._waiting: deque[_Active] = deque()
        self._active: dict[str, _Active] = {}

    def __len__(self) -> int:
        """Return how many jobs wait or run."""
        return len(self._waiting) + len(self._active)

    def running(self) -> int:
        """Return how many jobs were given to the engine and have not ended."""
        return len(self._active)

    @property
    def interval(self) -> float:
        """Seconds between two calls of `poll`."""
        return self.engine.interval

    @property
    def outlives(self) -> bool:
        """Whether jobs go on where the process that started them ends."""
        return self.engine.outlives

    def capacity(self, command: JobCommand) -> int | None:
        """Return how many jobs like this one run at the same time; None: no limit is known here.

        Raises:
            FlairError: It could never be started.
        """
        self.engine.require([command])
        return self.engine.capacity(command)

    def lives(self, command: JobCommand) -> bool:
        """Return whether the engine has the job queued or running, whoever has started it."""
        before = self._before(command)
        return before is not None and before[1] in LIVE

    def _before(self, command: JobCommand) -> tuple[Submission, str] | None:
        """Return how this engine has started a job before, and where it is."""
        key, before = str(command.folder), Submission.read(command.folder)
        if before is None or before.engine != self.engine.name:
            return None
        return before, self.engine.states({key: before})[key]

    def add(self, command: JobCommand, *, lost: bool = False) -> bool:
        """Take on a job; return whether it was queued or running already and is taken over.

        Args:
            command: The job.
            lost: Another process has started it perhaps, and died. What it has come to meanwhile,
                `poll` tells; else a job that has ended is started again.
        """
        before = self._before(command)
        if before is not None and (lost or before[1] in LIVE):
            submission, state = before
            if state in LIVE:
                self.engine.adopt(command, submission)
            progress = progress_of(command.folder)
            active = _Active(command, progress, submission.attempt)
            self._active[str(command.folder)] = active
            return state in LIVE
        self._waiting.append(_Active(command, None, 1))
        return False

    def start(self) -> None:
        """Start what there is room for."""
        if not self._waiting:
            return
        commands = [each.command for each in self._waiting]
        attempts = [each.attempt for each in self._waiting]
        for _ in range(self.engine.start(commands, attempts)):
            active = self._waiting.popleft()
            active.progress = progress_of(active.command.folder)
            self._active[str(active.command.folder)] = active

    def poll(self) -> list[tuple[JobCommand, Ending]]:
        """Start what there is room for, and return the jobs that have ended since the last call.

        Those that are tried again are not among them.
        """
        ended: list[tuple[JobCommand, Ending]] = []
        submissions = {
            key: submission
            for key, active in self._active.items()
            if (submission := Submission.read(active.command.folder)) is not None
        }
        states = self.engine.states(submissions) if submissions else {}
        for key, active in list(self._active.items()):
            state = states.get(key, ENDED)
            if state in LIVE:
                continue
            del self._active[key]
            ending = ending_of(active.command.folder, state, test=active.command.test)
            if not self._tried_again(active, ending):
                ended.append((active.command, ending))
        self.start()
        return ended

    def _tried_again(self, active: _Active, ending: Ending) -> bool:
        """Put a job back that is worth another try; return whether it is."""
        # STOPPED: by a signal that was not this pool's, for `stop` asks no more what has ended.
        if ending.cause not in (DIED, MEMORY, STOPPED):
            return False
        advanced = progress_of(active.command.folder) != active.progress
        tries = active.attempt + (not advanced)
        if tries > self._retries + 1:
            return False
        advice = f" {_ADVICE}" if ending.cause == MEMORY else ""
        log.warning("%s: %s; it is started again.%s", active.command.title, ending.reason, advice)
        self._waiting.append(_Active(active.command, None, tries))
        return True

    def drop(self) -> None:
        """Forget the jobs that were not given to the engine yet."""
        self._waiting.clear()

    @contextmanager
    def until_ended(
        self,
        told: Callable[[str], None] = log.info,
        commands: Sequence[JobCommand] = (),
    ) -> Iterator[None]:
        """Within this context what ends it stops the jobs with a checkpoint first: signals, errors.

        Jobs that outlive the command are left as they are.

        Args:
            told: Gets one line on what becomes of the jobs.
            commands: Jobs that will be added: those of a killed command, which run already, are
                stopped also where this one ends before it has taken them over.
        """
        try:
            yield
        except BaseException:
            self.drop()
            if not self.engine.outlives:
                for command in commands:
                    if str(command.folder) not in self._active and self.lives(command):
                        self.add(command)
            if self._active and not self.engine.outlives:
                told(f"Stopping {len(self._active)} jobs, each with a checkpoint …")
                self.stop()
            raise
        finally:
            self.engine.close()

    def stop(self) -> None:
        """Stop all jobs, each with a checkpoint, and wait until they have ended."""
        self.drop()
        jobs = {
            key: job
            for key, active in self._active.items()
            if (job := Submission.read(active.command.folder)) is not None
        }
        self.engine.stop(jobs)
        while jobs:
            states = self.engine.states(jobs)
            jobs = {key: job for key, job in jobs.items() if states[key] not in (ENDED, CANCELLED)}
            if jobs:
                time.sleep(self.engine.interval)
        self._active.clear()


def progress_of(folder: RunFolder) -> tuple[int, ...]:
    """Return what changes whenever a run gets on: its checkpoints, its record's state."""
    stamps = []
    for path in (folder.last, folder.previous, folder.best, folder.metrics):
        try:
            stamps.append(path.stat().st_mtime_ns)
        except OSError:
            stamps.append(0)
    return tuple(stamps)
