"""Who runs a trial, and whether that process still lives.

On one machine the kernel knows: the process id together with the process's start time is unique.
Of a process on another machine only its heart beats are seen, a counter in the trial that its
worker raises while the trial runs. A counter that stands still for long enough, by the clock of
the one who watches, belongs to a dead worker; so no two clocks are ever compared.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

WORKER: Final = "worker"
"""Trial attribute: the process that handed the trial to its launcher."""
JOB: Final = "job"
"""Trial attribute: the process that runs the trial, where the launcher has its own."""
BEAT: Final = "beat"
_BEATS_PER_GRACE: Final = 4  # so many beats in a row must be missed


def identity() -> dict[str, Any]:
    """This process: machine, process id and start time."""
    pid = os.getpid()
    return {"machine": machine(), "pid": pid, "start": _start_time(pid)}


def machine() -> str:
    """Name, boot and process namespace: what process ids are unique in."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _start_time(pid: int) -> str | None:
    """Clock ticks from boot to the process's start; null if it is dead, or without /proc."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    # After the command's name come state (3rd field of proc(5)) ... start time (22nd).
    return None if fields[0] in "ZX" else fields[19]


def _is_running(pid: int, start: str | None) -> bool:
    if start is not None:
        return _start_time(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def lives(worker: Mapping[str, Any]) -> bool | None:
    """Whether the process of that identity lives; null where this machine cannot know."""
    if worker.get("machine") != machine():
        return None
    return _is_running(int(worker["pid"]), worker.get("start"))


class Watch:
    """Tells trials whose worker died.

    Args:
        grace: Seconds without a beat after which a worker on another machine counts as dead.
        clock: Seconds that only ever grow.
    """

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._clock = clock
        self._machine = machine()
        self._seen: dict[int, tuple[Any, float]] = {}

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether the process that runs `trial` is gone.

        A launcher's process may outlive its killed worker and still write into the trial's folder.
        """
        job, worker = (trial.user_attrs.get(key) for key in (JOB, WORKER))
        if isinstance(job, Mapping) and lives(job):
            return False
        if isinstance(worker, Mapping) and worker.get("machine") == self._machine:
            return not _is_running(int(worker["pid"]), worker.get("start"))
        beat, now = trial.user_attrs.get(BEAT), self._clock()
        last, since = self._seen.get(trial.number, (object(), now))
        if beat != last:
            self._seen[trial.number] = (beat, now)
            return False
        return now - since > self._grace


class Heart:
    """Raises the counter of this worker's running trials; a context for the whole search.

    Attributes:
        trial_ids: The trials that run now.
    """

    def __init__(self, storage: BaseStorage, grace: float) -> None:
        self.trial_ids: tuple[int, ...] = ()
        self._storage = storage
        self._interval = grace / _BEATS_PER_GRACE
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heart")

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        beat = 0
        while not self._stop.wait(self._interval):
            beat += 1
            for trial_id in self.trial_ids:
                # A beat that the storage refuses (it is away, or the trial was closed) is a missed
                # beat; the job itself must not suffer from it.
                with contextlib.suppress(Exception):
                    self._storage.set_trial_user_attr(trial_id, BEAT, beat)
