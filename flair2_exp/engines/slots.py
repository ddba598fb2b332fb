"""Several jobs at a time on this machine: each on GPUs and cores of its own, as they fall free.

Each job is a process in a session of its own, so that a Ctrl-C in the terminal reaches the sweep
alone, which passes it on. A job outlives a sweep that is killed outright: the same command then
finds its process in the job's folder, and waits for it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar, Final

from flair2_exp.config.engines import SlotsConfig
from flair2_exp.engines.engine import ACTIVE, CANCELLED, ENDED, START, Engine
from flair2_exp.engines.gpus import visible_gpus
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.errors import ConfigError
from flair2_exp.machine import core_numbers
from flair2_exp.optuna_sweeper.process import Process
from flair2_exp.ranks import OF_A_TASK
from flair2_exp.slurm import JOB as OF_A_JOB

log = logging.getLogger(__name__)

_WHOLE: Final = 1e-6  # what is left of a GPU that three thirds have taken

_HELD: Final = ("/bin/sh", "-c", 'read -r _ && exec "$0" "$@" </dev/null')
"""Becomes a command at a line on standard input, in the same process; ends without one."""


@dataclass(frozen=True)
class Share:
    """What one job gets of the machine.

    Attributes:
        gpus: Their UUIDs.
        part: Of each of them.
        cores: Numbers of processor cores.
    """

    gpus: tuple[str, ...] = ()
    part: float = 1.0
    cores: tuple[int, ...] = ()


class Resources:
    """GPUs and cores, and who has them.

    Args:
        gpus: UUIDs.
        cores: Numbers of cores.
        slots: Jobs at a time; None: as the GPUs allow, without any one for every two cores.
        per_job: Cores of each job; None: all, divided by the jobs at a time.
    """

    def __init__(
        self,
        gpus: Sequence[str],
        cores: Sequence[int],
        slots: int | None = None,
        per_job: int | None = None,
    ) -> None:
        self.gpus = tuple(gpus)
        self._cores = tuple(cores)
        self._slots = slots
        self._per_job = per_job
        self._taken: list[Share] = []

    def at_once(self, gpus: float) -> int:
        """Return how many jobs of that many GPUs each run at the same time."""
        if gpus <= 0 or not self.gpus:
            return self._slots or max(1, len(self._cores) // 2)
        most = int(len(self.gpus) // gpus) if gpus >= 1 else len(self.gpus) * int(1 / gpus + _WHOLE)
        return min(most, self._slots or most)

    def take(self, gpus: float) -> Share | None:
        """Return a share for a job, the least used GPUs and cores first; None: there is no room."""
        if len(self._taken) >= self.at_once(gpus):
            return None
        chosen: tuple[str, ...] = ()
        part = min(gpus, 1.0) if gpus > 0 else 1.0
        if gpus > 0 and self.gpus:
            used = dict.fromkeys(self.gpus, 0.0)
            for share in self._taken:
                for gpu in share.gpus:
                    used[gpu] = used.get(gpu, 0.0) + share.part
            free = [gpu for gpu in self.gpus if used[gpu] + part <= 1 + _WHOLE]
            wanted = max(1, int(gpus))
            if len(free) < wanted:
                return None
            # Full ones first would leave whole GPUs to jobs that need them; but neighbours on one
            # GPU slow each other down while another one idles.
            chosen = tuple(sorted(free, key=lambda gpu: (used[gpu], self.gpus.index(gpu)))[:wanted])
        share = Share(chosen, part, self._free_cores(gpus))
        self._taken.append(share)
        return share

    def _free_cores(self, gpus: float) -> tuple[int, ...]:
        users = Counter(core for share in self._taken for core in share.cores)
        number = self._per_job or max(1, len(self._cores) // max(1, self.at_once(gpus)))
        return tuple(sorted(sorted(self._cores, key=lambda core: (users[core], core))[:number]))

    def occupy(self, share: Share) -> None:
        """Count a share that a job has which another process has started."""
        self._taken.append(share)

    def give_back(self, share: Share) -> None:
        """Take a share back."""
        with suppress(ValueError):
            self._taken.remove(share)


class Slots(Engine):
    """Jobs on the GPUs and cores of this machine."""

    name: ClassVar[str] = "slots"

    def __init__(self, options: SlotsConfig) -> None:
        self._options = options
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._shares: dict[str, Share] = {}
        self._last_start = 0.0

    @cached_property
    def resources(self) -> Resources:
        """The GPUs and cores of this machine; looked for when the first job is to be started."""
        options = self._options
        return Resources(visible_gpus(), core_numbers(), options.slots, options.cores_per_job)

    def _gpus(self, command: JobCommand) -> float:
        wanted = self._options.gpus_per_job
        if command.gpus <= 0 or not self.resources.gpus:
            return 0.0
        if command.gpus < 0 or command.processes == -1:
            return float(len(self.resources.gpus))
        return command.gpus if wanted is None else wanted

    def require(self, commands: Sequence[JobCommand]) -> None:
        """Refuse jobs that want more GPUs than there are."""
        there = len(self.resources.gpus)
        for command in commands:
            if command.nodes > 1:
                raise ConfigError(
                    f"trainer.num_nodes={command.nodes}: hydra/launcher=slots is for one machine; "
                    "use hydra/launcher=slurm."
                )
            if there and self._gpus(command) > there:
                raise ConfigError(
                    f"{command.title} wants {self._gpus(command):g} GPUs, and this command sees "
                    f"{there}: use trainer.devices={there} or fewer."
                )

    def capacity(self, command: JobCommand) -> int:
        """Return how many jobs like this one the machine has room for."""
        return self.resources.at_once(self._gpus(command))

    def start(self, commands: Sequence[JobCommand], attempts: Sequence[int]) -> int:
        """Start jobs while there is room, not more often than one each `stagger` seconds."""
        started = 0
        for command, attempt in zip(commands, attempts, strict=True):
            if time.monotonic() - self._last_start < self._options.stagger and self._shares:
                break
            share = self.resources.take(self._gpus(command))
            if share is None:
                break
            try:
                self._start(command, attempt, share)
            except BaseException:
                self.resources.give_back(share)
                raise
            started, self._last_start = started + 1, time.monotonic()
        return started

    def _start(self, command: JobCommand, attempt: int, share: Share) -> None:
        folder = command.folder
        folder.path.mkdir(parents=True, exist_ok=True)
        # The sweep may be a task of srun; its jobs are not, and start their own processes.
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in OF_A_TASK and name != OF_A_JOB
        }
        if share.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
        where = f"GPU {', '.join(share.gpus)}" if share.gpus else f"cores {_ranges(share.cores)}"
        # The process waits until it is noted down, and ends with this one until then: a sweep that
        # is killed here does not leave a job behind of which the next one knows nothing.
        with folder.output.open("ab") as output:
            process = subprocess.Popen(
                [*_HELD, *command.argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=command.cwd,
                env=environment,
                start_new_session=True,
            )
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as line:  # killed, as `states` will tell
                if share.cores and hasattr(os, "sched_setaffinity"):
                    with suppress(OSError):  # cores that were taken away meanwhile
                        os.sched_setaffinity(process.pid, share.cores)
                self._note(process, command, attempt, share)
                stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S')}, {socket.gethostname()}, {where}"
                output.write(f"{START}{attempt}, {stamp}\n".encode())
                output.flush()
                line.write(b"\n")
        key = str(process.pid)
        self._children[key], self._shares[key] = process, share
        log.info("%s: started on %s", command.title, where)

    def _note(
        self, process: subprocess.Popen[bytes], command: JobCommand, attempt: int, share: Share
    ) -> None:
        """Write down in a job's folder which process is its own."""
        identity = Process.of(process.pid)
        Submission(
            self.name,
            str(process.pid),
            command.title,
            list(command.words),
            identity.host,
            {"process": identity.plain(), "share": asdict(share)},
            attempt=attempt,
        ).write(command.folder)

    def adopt(self, command: JobCommand, job: Submission) -> None:
        """Count a job of an earlier sweep's among those at a time."""
        values = job.details.get("share", {})
        share = Share(
            tuple(values.get("gpus", ())), values.get("part", 1.0), tuple(values.get("cores", ()))
        )
        self.resources.occupy(share)
        self._shares[job.id] = share

    def states(self, jobs: Mapping[str, Submission]) -> dict[str, str]:
        """Return which processes live; take back what the others had."""
        return {key: self._state(job) for key, job in jobs.items()}

    def _state(self, job: Submission) -> str:
        child = self._children.get(job.id)
        process = Process.of_plain(job.details.get("process"))
        if child is not None:
            lives = child.poll() is None
        else:
            # Of another machine or container: its folder's lock would say that it is at work.
            lives = process is not None and bool(process.lives())
        if lives:
            return ACTIVE
        if self._children.pop(job.id, None) is not None:
            # A process that was killed leaves its data workers and ranks behind for some seconds.
            with suppress(OSError):
                os.killpg(int(job.id), signal.SIGKILL)
        if (share := self._shares.pop(job.id, None)) is not None:
            self.resources.give_back(share)
        return CANCELLED if job.cancelled else ENDED

    def stop(self, jobs: Mapping[str, Submission]) -> None:
        """Send SIGTERM to the jobs' own processes; they end their workers and ranks themselves."""
        for job in jobs.values():
            process = Process.of_plain(job.details.get("process"))
            if process is not None and process.lives():
                with suppress(OSError):
                    os.kill(process.pid, signal.SIGTERM)


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as `0-3, 6`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
