"""How the jobs of a sweep are run: by Hydra's launchers in batches, or on an engine one by one."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from flair2_exp.compat import is_basic_launcher, outcome
from flair2_exp.config.sweep import SweepConfig
from flair2_exp.engines import watching
from flair2_exp.engines.commands import command_of, quoted
from flair2_exp.engines.engine import CANCELLED, LIVE, Ending
from flair2_exp.engines.engine import DONE as ENDED_WELL
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.engines.launcher import EngineLauncher
from flair2_exp.engines.pool import Pool
from flair2_exp.errors import ConfigError
from flair2_exp.locking import wait_until_free
from flair2_exp.sweeps.failures import Failure, clear_error, mark_failed
from flair2_exp.sweeps.plan import DONE, FAILED, Job

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher

log = logging.getLogger(__name__)


def look_for_live(jobs: Sequence[Job]) -> None:
    """Note of each job whether an engine has it queued or running, or whether it was cancelled."""
    started = {
        str(job.number): submission
        for job in jobs
        if job.state != DONE and (submission := Submission.read(job.folder)) is not None
    }
    states = watching.states_of(started) if started else {}
    for job in jobs:
        state = states.get(str(job.number), "")
        job.live = state if state in (*LIVE, CANCELLED) else ""
        job.engine = started[str(job.number)].engine if job.live else ""


class Batches:
    """Jobs handed to one of Hydra's launchers, a batch at a time.

    Args:
        launcher: Runs them.
        config: The sweep's own, with Hydra's node.
        max_batch_size: Jobs handed over at once; None: as the launcher suits.
        fail_fast: Whether nothing is started after a failure.
        failures: Takes what fails, by job number.
    """

    def __init__(
        self,
        launcher: Launcher,
        config: DictConfig,
        max_batch_size: int | None,
        *,
        fail_fast: bool,
        failures: dict[int, Failure],
    ) -> None:
        self._launcher = launcher
        self._config = config
        self._max_batch_size = max_batch_size
        self._fail_fast = fail_fast
        self._failures = failures

    def run(self, waiting: Sequence[Job]) -> list[list[JobReturn]]:
        """Launch all, and return Hydra's job returns, one list per launch."""
        launched: list[list[JobReturn]] = []
        size = self._batch_size() or len(waiting)
        batches = deque(waiting[at : at + size] for at in range(0, len(waiting), max(1, size)))
        while batches and not (self._fail_fast and self._failures):
            batch = batches.popleft()
            before = {job.number: job.stamp for job in batch}
            try:
                returns = self._launch(batch)
            except Exception as error:  # a worker killed by the system takes its batch with it
                self._note_broken(batch, before, error)
                batches.extendleft(reversed(launched_again(batch, before)))
                continue
            launched.append(returns)
            for job, result in zip(batch, returns, strict=True):
                job.refresh()
                if result.status == JobStatus.FAILED:
                    began = job.stamp != before[job.number]
                    mark_failed(job, outcome(result), self._failures, began=began)
                else:
                    clear_error(job)
                    self._failures.pop(job.number, None)  # of an earlier try
        return launched

    def _note_broken(
        self, batch: Sequence[Job], before: Mapping[int, int], error: Exception
    ) -> None:
        """Note what failed of a batch whose launcher raised."""
        for job in batch:
            wait_until_free(job.folder.path)  # submitit raises while the others are at work
            job.refresh()
            began = job.stamp != before[job.number]
            if len(batch) == 1:
                mark_failed(job, error, self._failures, began=began)
            elif job.state == FAILED and began:
                mark_failed(job, job.record and job.record.error, self._failures, began=True)

    def _batch_size(self) -> int | None:
        """Return how many jobs the launcher gets at once; None: all."""
        if self._max_batch_size or is_basic_launcher(self._launcher):
            return self._max_batch_size or 1
        if not self._fail_fast:
            return None
        # A launcher answers when its whole batch has ended: with more jobs than it runs at a time,
        # some would begin after the first failure.
        names = ("n_jobs", "array_parallelism")  # of the joblib and the submitit launcher
        limits = [OmegaConf.select(self._config, f"hydra.launcher.{name}") for name in names]
        at_once = int(limits[0] or limits[1] or 1)
        return at_once if at_once > 0 else os.cpu_count()  # joblib: -1 is all processors

    def _launch(self, batch: Sequence[Job]) -> list[JobReturn]:
        """Hand a batch to Hydra's launcher."""
        first = batch[0].number
        if all(job.number == first + place for place, job in enumerate(batch)):
            return list(self._launcher.launch([list(job.overrides) for job in batch], first))
        # Launchers number the jobs that they get from the first one on, whatever a job's config
        # says. Folders may hold the number, so of a batch with gaps each job names its own.
        named = []
        for job in batch:
            own = quoted(str(job.folder.path.relative_to(job.root)))
            named.append([*job.overrides, f"hydra.sweep.subdir={own}"])
        return list(self._launcher.launch(named, first))


def launched_again(batch: Sequence[Job], before: Mapping[int, int]) -> list[list[Job]]:
    """Return what to launch again of a batch whose launcher raised; each alone raises once at most.

    Args:
        batch: The jobs, refreshed. One alone is not tried again.
        before: Their stamps before the launch.

    Returns:
        First those that had begun, each alone, for one of them has probably ended the launcher;
        then the untouched ones together. Where none had begun, they too are launched alone: so
        that every launch either gets on with a job or is of a single one, and the sweep ends.
    """
    if len(batch) == 1:
        return []
    begun = [job for job in batch if job.stamp != before[job.number]]
    untouched = [job for job in batch if job not in begun]
    alone = [[job] for job in begun if job.state not in (DONE, FAILED)]
    if not begun:
        return [[job] for job in untouched]
    return [*alone, untouched] if untouched else alone


class OnEngine:
    """Jobs on an engine, each a process of its own.

    Attributes:
        name: The engine's.
    """

    def __init__(
        self,
        launcher: EngineLauncher,
        config: DictConfig,
        options: SweepConfig,
        failures: dict[int, Failure],
    ) -> None:
        self._config = config
        self._options = options
        self._failures = failures
        self._pool: Pool = launcher.pool()
        self.name = launcher.name

    def require(self, jobs: Sequence[Job]) -> None:
        """Refuse what the engine could not do, before anything is written.

        Raises:
            FlairError: A job that it could never start, or a command that would not wait for jobs
                that end with it.
        """
        if not self._options.wait and not self._pool.engine.outlives:
            raise ConfigError(
                f"sweep.wait=false: the jobs of hydra/launcher={self.name} end with this command. "
                "Use hydra/launcher=slurm, or start the command in tmux or with nohup."
            )
        self._pool.engine.require([self._command(job) for job in jobs if job.state != DONE])

    def _command(self, job: Job) -> JobCommand:
        return command_of(self._config, job.config, job.overrides, job.folder, job.number)

    def run(self, waiting: Sequence[Job]) -> int:
        """Start or take over all, and wait for them where `sweep.wait` says so.

        Returns:
            How many are left to the engine.
        """
        pool, jobs = self._pool, {job.number: job for job in waiting}
        commands = {job.number: self._command(job) for job in waiting}
        with pool.until_ended(log.info, list(commands.values())):
            for job in waiting:
                if job.live == CANCELLED and self._options.cancelled == "keep":
                    again = "cancelled; sweep.cancelled=resume starts it again"
                    self._failures[job.number] = Failure(again, job.folder.path)
                elif pool.add(commands[job.number]):
                    log.info("%s seed=%s: %s already, taken over", job.row, job.seed, job.live)
            if not self._options.wait:
                for command, ending in pool.poll():
                    self._note(jobs[command.number], ending, len(pool))
                return len(pool)
            while len(pool):
                for command, ending in pool.poll():
                    self._note(jobs[command.number], ending, len(pool))
                if self._options.fail_fast and self._failures:
                    pool.drop()
                if len(pool):
                    time.sleep(pool.engine.interval)
        return 0

    def _note(self, job: Job, ending: Ending, left: int) -> None:
        """Say what a job came to, and keep why it failed."""
        job.refresh()
        name, rest = f"{job.row} seed={job.seed}", f"{left} to go"
        if ending.cause == ENDED_WELL:
            try:
                job.require_same()  # its command was composed anew, somewhere else
            except ConfigError as error:
                self._failures[job.number] = Failure(str(error).splitlines()[0], job.folder.output)
                return
            clear_error(job)
            scores = job.record.scores if job.record else {}
            shown = f", test mIoU {scores['test/miou']:.4f}" if "test/miou" in scores else ""
            log.info("%s: done%s; %s", name, shown, rest)
        else:
            self._failures[job.number] = Failure(ending.reason, job.folder.output)
            log.warning("%s: %s (%s); %s", name, ending.reason, job.folder.output, rest)
