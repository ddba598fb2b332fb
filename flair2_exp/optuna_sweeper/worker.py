"""Whether the process that runs a trial still lives.

On one machine the kernel knows (`process`). Of a process on another machine only its heart beats
are seen, a counter in the trial that its worker raises while the trial runs. A counter that stands
still for long enough, by the clock of the one who watches, belongs to a dead worker; so no two
clocks are ever compared.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from .process import Process

WORKER: Final = "worker"
"""Trial attribute: the process that handed the trial to its launcher."""
JOB: Final = "job"
"""Trial attribute: the process that runs the trial, where the launcher has its own."""
BEAT: Final = "beat"
_BEATS_PER_GRACE: Final = 4  # so many beats in a row must be missed


class Watch:
    """Tells which trials lost their worker: one elsewhere after `grace` seconds without a beat."""

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._clock = clock
        self._seen: dict[int, tuple[Any, float]] = {}

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Return whether the process that runs `trial` is gone.

        A launcher's process may outlive its killed worker and still write into the trial's folder.
        """
        job = Process.of_plain(trial.user_attrs.get(JOB))
        if job is not None and job.lives():
            return False
        return self.is_orphan(trial)

    def is_orphan(self, trial: FrozenTrial) -> bool:
        """Return whether the worker of `trial` is gone, whatever its job does."""
        worker = Process.of_plain(trial.user_attrs.get(WORKER))
        alive = None if worker is None else worker.lives()
        if alive is not None:
            return not alive
        beat, now = (worker, trial.user_attrs.get(BEAT)), self._clock()
        last, since = self._seen.get(trial.number, (object(), now))
        if beat != last:
            self._seen[trial.number] = (beat, now)
            return False
        return now - since > self._grace


class Heart:
    """Raises the counter of this worker's running trials; a context for the whole search.

    Attributes:
        trial_ids: The trials that run now, by their ids in the storage.
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
                # beat; the job itself must not suffer from it, whatever the storage raises.
                with contextlib.suppress(Exception):
                    self._storage.set_trial_user_attr(trial_id, BEAT, beat)
