"""An engine whose jobs are Python functions, and a search on it: no processes, no clocks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import FrozenTrial

from flair2_exp.engines.engine import ACTIVE, CANCELLED, ENDED, QUEUED, START, Engine
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.engines.launcher import EngineJob
from flair2_exp.engines.pool import Pool
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED, FINISHED, KILLED, RUNNING, RunRecord
from flair2_exp.optuna_sweeper.trial import VARIABLE, Ticket
from tests.optuna_sweeper.toy import make_search, trials_of

OBJECTIVE = "val/miou"

Job = Callable[[JobCommand], None]
"""What a job does in its folder, when its time has come."""


class LostError(BaseException):
    """Ends a search as a kill would, which nothing in it can answer."""


def ends(folder: RunFolder, status: str = FINISHED, error: str = "", value: float = 0.5) -> None:
    """Leave what a run leaves that has ended so."""
    record = RunRecord.read(folder) or RunRecord({})
    record.finish(status, error)
    record.write(folder)
    if status == FINISHED:
        folder.metrics.write_text(json.dumps({OBJECTIVE: value}))


def dies(folder: RunFolder) -> None:
    """Leave what a run leaves whose process was killed."""
    RunRecord({}, status=RUNNING).write(folder)


def stopped(folder: RunFolder) -> None:
    """Leave what a run leaves that a signal has ended."""
    ends(folder, KILLED)


def fails(folder: RunFolder, error: str = "ValueError: a bug") -> None:
    """Leave what a run leaves of which the code is wrong."""
    ends(folder, FAILED, error)


@dataclass
class Cluster:
    """What outlives a command: jobs at work, and what was ever started.

    Attributes:
        job: What each does.
        room: Jobs at a time; None: no limit is known.
        looks: How often a job is looked at before it ends, by its command.
        starts: The commands that were started, in order.
        most: So many were at work at the same time.
        at_work: The others, by the id of their submission, with the looks that are left.
        seen: So many were at work whenever one was started.
    """

    job: Job
    room: int | None = 2
    looks: Callable[[JobCommand], int] = lambda command: 1
    starts: list[JobCommand] = field(default_factory=list)
    at_work: dict[str, tuple[JobCommand, int]] = field(default_factory=dict)
    stopped: list[int] = field(default_factory=list)
    most: int = 0

    def advance(self, key: str) -> None:
        """Let a job work for a moment."""
        command, left = self.at_work[key]
        if left > 0:
            self.at_work[key] = (command, left - 1)
            return
        del self.at_work[key]
        self.job(command)


class Made(Engine):
    """Jobs on a made cluster."""

    name: ClassVar[str] = "made"
    interval = 0.0

    def __init__(self, cluster: Cluster, *, outlives: bool = False) -> None:
        self.cluster, self.outlives = cluster, outlives

    def capacity(self, command: JobCommand) -> int | None:
        return self.cluster.room

    def start(self, commands: Sequence[JobCommand], attempts: Sequence[int]) -> int:
        cluster, started = self.cluster, 0
        for command, attempt in zip(commands, attempts, strict=True):
            if cluster.room is not None and len(cluster.at_work) >= cluster.room:
                break
            key = str(len(cluster.starts))
            command.folder.path.mkdir(parents=True, exist_ok=True)
            with command.folder.output.open("a") as output:
                output.write(f"{START}{attempt}\n")
            words = list(command.words)
            Submission(self.name, key, command.title, words, attempt=attempt).write(command.folder)
            cluster.starts.append(command)
            cluster.at_work[key] = (command, cluster.looks(command))
            cluster.most = max(cluster.most, len(cluster.at_work))
            started += 1
        return started

    def states(self, jobs: Mapping[str, Submission]) -> dict[str, str]:
        states = {}
        for key, job in jobs.items():
            if job.id in self.cluster.at_work:
                self.cluster.advance(job.id)
            lives = job.id in self.cluster.at_work
            over = CANCELLED if job.cancelled else ENDED
            states[key] = (QUEUED if job.attempt > 1 else ACTIVE) if lives else over
        return states

    def stop(self, jobs: Mapping[str, Submission]) -> None:
        for job in jobs.values():
            with suppress(KeyError):
                command, _ = self.cluster.at_work.pop(job.id)
                self.cluster.stopped.append(command.number)
                stopped(command.folder)


class MadeLauncher:
    """A launcher on a made cluster; its jobs' configs are not composed."""

    def __init__(
        self, folder: Path, cluster: Cluster, *, retries: int = 2, outlives: bool = False
    ) -> None:
        self.folder, self.cluster = folder, cluster
        self._retries, self._outlives = retries, outlives

    def pool(self) -> Pool:
        return Pool(Made(self.cluster, outlives=self._outlives), self._retries)

    def command(self, overrides: Sequence[str], number: int, title: str = "") -> EngineJob:
        subdir = values_of(overrides).get("hydra.sweep.subdir", f"run_{number}")
        folder = RunFolder(self.folder / str(subdir))
        command = JobCommand(number, title, folder, tuple(overrides), self.folder, test=False)
        config: Any = SimpleNamespace(objective=OBJECTIVE, objectives=(OBJECTIVE,))
        return EngineJob(command, config)


def values_of(words: Sequence[str]) -> dict[str, Any]:
    """The values of overrides, by key."""
    overrides = OverridesParser.create().parse_overrides(list(words))
    return {each.get_key_element(): each.value() for each in overrides}


def ticket_of(command: JobCommand) -> Ticket:
    """The ticket by which a job finds its trial."""
    return Ticket.decode(str(values_of(command.words)[f"hydra.job.env_set.{VARIABLE}"]))


def enter(command: JobCommand) -> None:
    """Make this process the job's, as `current_trial` sees it."""
    os.environ[VARIABLE] = ticket_of(command).encode()


def search_on(
    folder: Path, cluster: Cluster, *arguments: str, launcher: dict[str, Any] | None = None,
    **options: Any,
) -> list[FrozenTrial]:  # fmt: skip
    """Run a search on a made cluster to its end, and return the study's trials."""
    made: Any = MadeLauncher(folder, cluster, **(launcher or {}))
    options = {"direction": "maximize", **options}
    task: Any = None
    make_search(folder, task, *arguments, launcher=made, **options).run()
    return trials_of(str(folder / "optuna.journal"), "toy")
