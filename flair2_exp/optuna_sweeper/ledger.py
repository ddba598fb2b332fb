"""Who runs which trial: claimed so that the total of the study is exact, whoever dies.

Optuna numbers the trials of a study without gaps, one writer after the other, on every storage.
All that workers must agree on is settled by that order:

- A trial is *active* when it is complete, pruned, running or waiting. A worker that made a trial
  runs it only if fewer than `total` trials with smaller numbers are active; else it withdraws it.
  A trial enters the active ones when it is made and can only leave them, so of the trials that were
  ever allowed to run at most `total` finish: the last of them saw all the others.
- A trial that waits (to be retried, or queued at the start) is taken by the storage's own change
  from waiting to running, which succeeds for one worker only.
- A dead worker's trial is queued again before it is closed as failed. Two workers may both queue
  it; the copy with the smaller number counts, the other is withdrawn when it is taken. So is one
  whose first attempt came to its end after all.
- Who closed the last trial is seen from how many were closed before it, not from a clock.

A withdrawn trial is a failed one with the attribute `withdrawn`; it was never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from optuna.trial import FrozenTrial, TrialState, create_trial

from .compat import queued_params
from .process import Process
from .storage import ALREADY_FINISHED
from .study import QUEUED, RETRY_OF, StudyHandle
from .worker import WORKER, Watch

ENDED: Final = "ended"
"""Trial attribute: who closed it, and how many trials were closed then."""
FAILURE: Final = "failure"
"""Trial attribute: why it failed, in one line."""
LOST: Final = "lost"
"""Trial attribute: its process died and its parameters are tried again."""
WITHDRAWN: Final = "withdrawn"
"""Trial attribute: it was never run."""
FIRST: Final = "first_attempt"
"""Trial attribute: the first trial that had these parameters, in whose folder they resume."""
TRIES: Final = "tries"
"""Trial attribute: how often its parameters were tried with it.

Neither interruptions count nor tries that reported a step: those have advanced.
"""
MOST_TRIES: Final = 3
"""What kills a process once or twice may be chance; three times, it is the parameters."""


def finished(trials: Iterable[FrozenTrial]) -> int:
    """Return how many trials are complete or pruned."""
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def _failed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that ran and failed for good."""
    failed = (trial for trial in trials if trial.state == TrialState.FAIL)
    return [t for t in failed if not {LOST, WITHDRAWN} & t.user_attrs.keys()]


def _is_copy(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether a trial before this one was queued for the same purpose by another worker."""
    retried, queued = (trial.user_attrs.get(key) for key in (RETRY_OF, QUEUED))
    for other in trials[: trial.number]:
        if retried is not None and other.user_attrs.get(RETRY_OF) == retried:
            return True
        same = queued is not None and other.user_attrs.get(QUEUED) == queued
        if same and other.state != TrialState.FAIL:
            return True
    return False


class Ledger:
    """This worker's dealings with the others on the way to `total` complete and pruned trials.

    Trials go by their numbers. New ones are made once the queue is empty, where that may be: a grid
    has no others.
    """

    def __init__(
        self, handle: StudyHandle, total: int, watch: Watch, *, may_create: bool = True
    ) -> None:
        self.handle = handle
        self._total = total
        self._watch = watch
        self._may_create = may_create
        self._identity = Process.this().plain()
        self._old_failures = {trial.number for trial in _failed(handle.trials())}

    def new_failures(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials of any worker that failed since this one started."""
        return [trial for trial in _failed(trials) if trial.number not in self._old_failures]

    def ended_last(self, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether this worker closed the trial that was closed last.

        By how many had been closed then: machines' clocks differ. Of two that were closed at once
        the larger number counts, so that all workers choose the same one.
        """
        ended = [t for t in trials if ENDED in t.user_attrs and WITHDRAWN not in t.user_attrs]
        last = max(ended, key=lambda t: (t.user_attrs[ENDED]["after"], t.number), default=None)
        return last is not None and last.user_attrs[ENDED]["worker"] == self._identity

    def is_exhausted(self, trials: Iterable[FrozenTrial]) -> bool:
        """Return whether nothing runs, waits or could be made."""
        return not self._may_create and all(trial.state.is_finished() for trial in trials)

    def close_dead(self) -> list[int]:
        """Close the running trials whose process died, and return their numbers."""
        closed = []
        for trial in self.handle.trials():
            dead = trial.state == TrialState.RUNNING and self._watch.is_dead(trial)
            if dead and self.give_up(trial.number, "its process died"):
                closed.append(trial.number)
        return closed

    def orphans(self) -> list[int]:
        """Return the running trials whose worker is gone, by number."""
        trials = (t for t in self.handle.trials() if t.state == TrialState.RUNNING)
        return [trial.number for trial in trials if self._watch.is_orphan(trial)]

    def is_dead(self, number: int) -> bool:
        """Return whether no process that is known of runs a trial."""
        return self._watch.is_dead(self.handle.trial(number))

    def take_over(self, number: int) -> bool:
        """Become the worker of an orphan; return whether it was one still.

        Two workers must not do this at the same time.
        """
        trial = self.handle.trial(number)
        if trial.state != TrialState.RUNNING or not self._watch.is_orphan(trial):
            return False
        try:
            self.handle.mark(number, {WORKER: self._identity})
        except ALREADY_FINISHED:
            return False
        return True

    def give_up(self, number: int, reason: str, *, interrupted: bool = False) -> bool:
        """Close a trial that came to no result, and queue its parameters to be tried again.

        That is done twice. A trial that the user interrupted, or that advanced before its process
        died, is no fault of its parameters: they are tried again however often that happens. Return
        False if it had been closed already.
        """
        trial = self.handle.trial(number)
        if trial.state.is_finished():
            return False
        params = trial.params or queued_params(trial)
        advanced = interrupted or bool(trial.intermediate_values)
        tries = int(trial.user_attrs.get(TRIES, 1)) + (not advanced)
        if not params and interrupted:
            return self.fail(number, reason, **{WITHDRAWN: True})
        if not params or tries > MOST_TRIES:
            return self.fail(number, reason)
        if all(other.user_attrs.get(RETRY_OF) != number for other in self.handle.trials()):
            first = trial.user_attrs.get(FIRST, number)
            self.handle.queue(params, {RETRY_OF: number, FIRST: first, TRIES: tries})
        return self.fail(number, reason, **{LOST: True})

    def fail(self, number: int, reason: str, **attributes: object) -> bool:
        """Close a trial as failed; False if it had been closed already."""
        try:
            self.ending(number)
            self.handle.mark(number, {FAILURE: reason, **attributes})
            return self.handle.set_state(number, TrialState.FAIL)
        except ALREADY_FINISHED:
            return False

    def ending(self, number: int) -> None:
        """Note that this worker is about to close a trial.

        Raises:
            ALREADY_FINISHED: It has been closed.
        """
        closed = sum(trial.state.is_finished() for trial in self.handle.trials())
        self.handle.mark(number, {ENDED: {"worker": self._identity, "after": closed}})

    def claim(self) -> int | None:
        """Take the next trial to run, and return its number; None if there is none for now."""
        trials = self.handle.trials()
        active = [trial for trial in trials if trial.state != TrialState.FAIL]
        for trial in active[: self._total]:
            if trial.state == TrialState.WAITING and self._take(trial, trials):
                return trial.number
        if len(active) >= self._total or not self._may_create:
            return None
        return self._create()

    def _take(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """Try to be the one that runs a waiting trial."""
        number = trial.number
        try:
            if not self.handle.set_state(number, TrialState.RUNNING):
                return False
        except ALREADY_FINISHED:
            return False
        self.handle.mark(number, {WORKER: self._identity})
        if _is_copy(trial, trials):
            reason = "queued twice"
        elif self._was_finished(trial.user_attrs.get(RETRY_OF)):
            reason = "its first attempt was finished after all"
        else:
            return True
        self.fail(number, reason, **{WITHDRAWN: True})
        return False

    def _was_finished(self, number: int | None) -> bool:
        """Return whether a trial that is to be tried again came to its end after all.

        A trial is queued again before it is closed. Where that has not happened yet it does now, so
        that from here on it has one ending.
        """
        if number is None:
            return False
        self.fail(number, "its process died", **{LOST: True})
        return self.handle.trial(number).state != TrialState.FAIL

    def _create(self) -> int | None:
        storage, study_id = self.handle.storage, self.handle.study_id
        running = create_trial(state=TrialState.RUNNING, user_attrs={WORKER: self._identity})
        number = storage.get_trial_number_from_id(storage.create_new_trial(study_id, running))
        before = sum(t.state != TrialState.FAIL for t in self.handle.trials()[:number])
        if before < self._total:
            return number
        self.fail(number, "another worker was first", **{WITHDRAWN: True})
        return None
