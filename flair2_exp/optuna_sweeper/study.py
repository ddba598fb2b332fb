"""The study that workers share: opened once, its trials claimed so that the total is exact.

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
- Who creates a study makes it ready: the name is taken once. The others wait while that process
  lives; one left half made is removed and created anew.
- Who closed the last trial is seen from how many were closed before it, not from a clock.

A withdrawn trial is a failed one with the attribute `withdrawn`; it was never run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .errors import SweepError
from .storage import already_finished, explain, redact
from .worker import WORKER, Watch, identity, lives

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

MAKER: Final = "maker"
"""Study attribute: the process that makes the study ready. Written before anything else."""
SWEEP: Final = "sweep"
"""Study attribute: what the study searches. Written when the study is ready for workers."""
ENDED: Final = "ended"
"""Trial attribute: who closed it, and how many trials were closed then."""
FAILURE: Final = "failure"
"""Trial attribute: why it failed, in one line."""
UNKNOWN_OBJECTIVE: Final = "unknown_objective"
"""Trial attribute: it failed since the job does not measure the objective."""
PRUNED_AT: Final = "pruned_at"
"""Trial attribute: the step at which the job was told to stop."""
LOST: Final = "lost"
"""Trial attribute: its process died and its parameters are tried once more."""
WITHDRAWN: Final = "withdrawn"
RETRY_OF: Final = "retry_of"
"""Trial attribute: the number of the trial whose parameters are tried again."""
FIRST: Final = "first_attempt"
"""Trial attribute: the first trial that had these parameters, whose folder they go on in."""
TRIES: Final = "tries"
"""Trial attribute: how often its parameters were tried with it; interruptions do not count."""
QUEUED: Final = "queued"
_FIXED_PARAMS: Final = "fixed_params"  # Optuna's own attribute, as Study.enqueue_trial sets it
_MOST_TRIES: Final = 2  # what kills a process once may be chance, twice it is the parameters
_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Plan:
    """What a study must be, for workers to share it and later commands to go on with it."""

    directions: tuple[str, ...]
    objective: tuple[str, ...] = ()
    space: Mapping[str, str] = field(default_factory=dict)
    """Key to sweep, in canonical form."""
    fixed: tuple[str, ...] = ()
    """Overrides that all trials have, without those that may change."""
    custom: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The plan as the study keeps it."""
        return {
            "directions": list(self.directions),
            "objective": list(self.objective),
            "space": dict(self.space),
            "fixed": list(self.fixed),
            "custom": self.custom,
        }

    def differences(self, known: Mapping[str, Any]) -> list[str]:
        """What differs from a study's own plan, a phrase each."""
        found = []
        for key, label in (("directions", "direction"), ("objective", "objective")):
            then, now = known.get(key), self.to_json()[key]
            if then != now:
                found.append(f"{label} was {_names(then)}, now {_names(now)}")
        space = known.get("space", {})
        for name in dict.fromkeys([*space, *self.space]):
            then, now = space.get(name), self.space.get(name)
            if then != now:
                found.append(f"{name} was {then or 'not swept'}, now {now or 'not swept'}")
        for label, then, now in (
            ("dropped", known.get("fixed", []), self.fixed),
            ("new", self.fixed, known.get("fixed", [])),
        ):
            found += [f"{label} override {text}" for text in then if text not in now]
        if known.get("custom") != self.custom:
            found.append(f"custom_search_space was {known.get('custom')}, now {self.custom}")
        return found


def _names(names: Sequence[str] | None) -> str:
    return ", ".join(names) if names else "none"


@dataclass(frozen=True)
class StudyHandle:
    """A study of a storage."""

    storage: BaseStorage
    study_id: int
    name: str

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self.storage.get_all_trials(self.study_id, deepcopy=False)


def open_study(
    storage: BaseStorage,
    storage_name: str,
    name: str,
    plan: Plan,
    queue: Sequence[Mapping[str, Any]] = (),
    on_change: str = "refuse",
    on_create: Callable[[], Mapping[str, Any]] | None = None,
    grace: float = 120.0,
) -> StudyHandle:
    """Create the study, or join it if it is the same search.

    Args:
        storage: Where it is kept.
        storage_name: The storage's name, for messages.
        name: The study's name.
        plan: What it must be.
        queue: Parameters of the trials to run first, in order.
        on_change: `refuse` a study of another plan, or `new_study`: take the next free name.
        on_create: Called by the one worker that makes the study; gives further study attributes.
        grace: Seconds for which a worker on another machine may be making the study.

    Raises:
        SweepError: The study is of another search, or the storage refuses.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    attempt, candidate = 1, name
    try:
        while True:
            try:
                handle, known = _make_or_join(storage, candidate, plan, queue, on_create, grace)
            except _GoneError:
                continue
            differences = plan.differences(known)
            if not differences:
                fill(handle, queue)
                return handle
            if _is_slip(handle, plan, known):
                kept = storage.get_study_user_attrs(handle.study_id)
                storage.delete_study(handle.study_id)
                on_create = partial(dict, kept)  # what was made for the first one serves this one
                continue
            if on_change != "new_study":
                raise SweepError(
                    f"study {candidate} searches something else: {_brief(differences)}.\n"
                    "Give another study_name, or on_change=new_study to open the next free one."
                )
            attempt += 1
            candidate = f"{name}-{attempt}"
    except (OptunaError, SQLAlchemyError, OSError) as error:
        raise SweepError(
            f"storage {redact(storage_name)}: study {candidate}: {explain(error)}"
        ) from None


def _is_slip(handle: StudyHandle, plan: Plan, known: Mapping[str, Any]) -> bool:
    """Whether the study only looked for an objective that does not exist, and plan for another."""
    from optuna.trial import TrialState

    asked = {key: plan.to_json()[key] for key in ("objective", "directions")}
    if plan.differences({**known, **asked}):
        return False
    trials = handle.trials()
    idle = all(trial.state in (TrialState.FAIL, TrialState.WAITING) for trial in trials)
    return idle and any(UNKNOWN_OBJECTIVE in trial.user_attrs for trial in trials)


class _GoneError(Exception):
    """A half-made study was removed: by whoever failed to make it, or since its maker is dead."""


def _make_or_join(
    storage: BaseStorage,
    name: str,
    plan: Plan,
    queue: Sequence[Mapping[str, Any]],
    on_create: Callable[[], Mapping[str, Any]] | None,
    grace: float,
) -> tuple[StudyHandle, Mapping[str, Any]]:
    """The study of that name and its plan."""
    handle, created = _create_or_load(storage, name, plan)
    if not created:
        try:
            return handle, _wait_for_plan(handle, grace)
        except KeyError:  # no such study any more
            raise _GoneError from None
    try:
        storage.set_study_user_attr(handle.study_id, MAKER, identity())
        attributes = on_create() if on_create else {}
        fill(handle, queue)
        for key, value in {**attributes, MAKER: identity(), SWEEP: plan.to_json()}.items():
            storage.set_study_user_attr(handle.study_id, key, value)
    except BaseException:
        # Nobody uses it before it is ready. Left behind it would keep others waiting.
        storage.delete_study(handle.study_id)
        raise
    return handle, plan.to_json()


def _brief(differences: Sequence[str], limit: int = 4) -> str:
    more = len(differences) - limit
    return "; ".join(differences[:limit]) + (f"; and {more} more" if more > 0 else "")


def _create_or_load(storage: BaseStorage, name: str, plan: Plan) -> tuple[StudyHandle, bool]:
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    directions = [StudyDirection[direction.upper()] for direction in plan.directions]
    try:
        return StudyHandle(storage, storage.create_new_study(directions, name), name), True
    except DuplicatedStudyError:
        pass
    try:
        return StudyHandle(storage, storage.get_study_id_from_name(name), name), False
    except KeyError:
        raise _GoneError from None


def _wait_for_plan(handle: StudyHandle, grace: float) -> dict[str, Any]:
    """The study's plan, once it is ready.

    Raises:
        _GoneError: Its maker failed, or is dead and the study was removed.
    """
    storage, deadline = handle.storage, time.monotonic() + grace
    while True:
        attributes = storage.get_study_user_attrs(handle.study_id)
        plan, maker = attributes.get(SWEEP), attributes.get(MAKER)
        if isinstance(plan, dict):
            return plan
        if maker is None and not _is_empty(handle):
            return _foreign_plan(handle)
        alive = lives(maker) if isinstance(maker, dict) else None
        if alive is False or (alive is None and time.monotonic() > deadline):
            # SQLite hands a deleted study's id out again, so what goes must be what was looked at.
            if storage.get_study_user_attrs(handle.study_id) == attributes:
                storage.delete_study(handle.study_id)
            raise _GoneError
        time.sleep(_LOOK_SECONDS)


def _is_empty(handle: StudyHandle) -> bool:
    """Whether nothing was ever written into a study, as in the moment after its making."""
    storage, study_id = handle.storage, handle.study_id
    attributes = storage.get_study_user_attrs(study_id) | storage.get_study_system_attrs(study_id)
    return not attributes and not handle.trials()


def _foreign_plan(handle: StudyHandle) -> dict[str, Any]:
    """What is known of a study that another program made: its directions alone."""
    directions = [d.name.lower() for d in handle.storage.get_study_directions(handle.study_id)]
    return {"directions": directions, "objective": ["unknown: made by another program"]}


def fill(handle: StudyHandle, queue: Sequence[Mapping[str, Any]]) -> None:
    """Queue those of the parameters that no trial has yet, or only failed ones."""
    from optuna.trial import TrialState

    index_of: dict[int, Any] = {}  # by trial number; a retry stands for the trial it retries
    covered = set()
    for trial in handle.trials():
        retried = index_of.get(trial.user_attrs.get(RETRY_OF, -1))
        index = index_of[trial.number] = trial.user_attrs.get(QUEUED, retried)
        if trial.state != TrialState.FAIL:
            covered.add(index)
    for index, params in enumerate(queue):
        if index not in covered:
            _enqueue(handle, params, {QUEUED: index})


def _enqueue(handle: StudyHandle, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    from optuna.trial import TrialState, create_trial

    waiting = create_trial(
        state=TrialState.WAITING,
        system_attrs={_FIXED_PARAMS: dict(params)},
        user_attrs=dict(attributes),
    )
    handle.storage.create_new_trial(handle.study_id, waiting)


def _is_copy(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a trial before this one was queued for the same purpose, by another worker."""
    from optuna.trial import TrialState

    retried, queued = (trial.user_attrs.get(key) for key in (RETRY_OF, QUEUED))
    for other in trials[: trial.number]:
        if retried is not None and other.user_attrs.get(RETRY_OF) == retried:
            return True
        same = queued is not None and other.user_attrs.get(QUEUED) == queued
        if same and other.state != TrialState.FAIL:
            return True
    return False


class Ledger:
    """This worker's dealings with the others.

    Args:
        handle: The study.
        total: Complete and pruned trials to reach.
        watch: Tells dead workers.
        may_create: Whether new trials may be made once the queue is empty (not for a grid).
    """

    def __init__(
        self, handle: StudyHandle, total: int, watch: Watch, *, may_create: bool = True
    ) -> None:
        self.handle = handle
        self._total = total
        self._watch = watch
        self._may_create = may_create
        self._identity = identity()
        self._mine: set[int] = set()
        self._old_failures = {trial.number for trial in self._failed(handle.trials())}

    @staticmethod
    def _failed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        excused = (LOST, WITHDRAWN)
        return [
            trial
            for trial in trials
            if trial.state == TrialState.FAIL and not any(a in trial.user_attrs for a in excused)
        ]

    def finished(self, trials: Iterable[FrozenTrial]) -> int:
        """How many trials are complete or pruned."""
        from optuna.trial import TrialState

        return sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)

    def new_failures(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Trials of any worker that failed since this one started."""
        return [t for t in self._failed(trials) if t.number not in self._old_failures]

    def ended_last(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether this worker closed the trial that was closed last.

        By how many had been closed then: machines' clocks differ. Of two that were closed at once
        the larger number counts, so that all workers choose the same one.
        """
        ended = [t for t in trials if ENDED in t.user_attrs and WITHDRAWN not in t.user_attrs]
        last = max(ended, key=lambda t: (t.user_attrs[ENDED]["after"], t.number), default=None)
        return last is not None and last.user_attrs[ENDED]["worker"] == self._identity

    def is_exhausted(self, trials: Iterable[FrozenTrial]) -> bool:
        """Whether nothing runs, waits or could be made."""
        from optuna.trial import TrialState

        open_states = (TrialState.RUNNING, TrialState.WAITING)
        return not self._may_create and not any(t.state in open_states for t in trials)

    def close_dead(self) -> list[int]:
        """Close the running trials whose process died; their numbers."""
        from optuna.trial import TrialState

        closed = []
        for trial in self.handle.trials():
            if trial.state != TrialState.RUNNING or trial._trial_id in self._mine:
                continue
            if self._watch.is_dead(trial) and self.give_up(trial._trial_id, "its process died"):
                closed.append(trial.number)
        return closed

    def give_up(self, trial_id: int, reason: str, *, interrupted: bool = False) -> bool:
        """Close a trial that came to no result, and queue its parameters if that is the first time.

        Args:
            trial_id: Its id in the storage.
            reason: Why, in one line.
            interrupted: It was stopped by the user, which is no fault of its parameters: they are
                tried again however often that happens.

        Returns:
            False if it had been closed already.
        """
        trial = self.handle.storage.get_trial(trial_id)
        if trial.state.is_finished():
            return False
        params = trial.params or trial.system_attrs.get(_FIXED_PARAMS, {})
        tries = int(trial.user_attrs.get(TRIES, 1)) + (not interrupted)
        if not params and interrupted:
            return self.fail(trial_id, reason, **{WITHDRAWN: True})
        if not params or tries > _MOST_TRIES:
            return self.fail(trial_id, reason)
        copies = [t for t in self.handle.trials() if t.user_attrs.get(RETRY_OF) == trial.number]
        if not copies:
            first = trial.user_attrs.get(FIRST, trial.number)
            retry = {RETRY_OF: trial.number, FIRST: first, TRIES: tries}
            _enqueue(self.handle, params, retry)
        return self.fail(trial_id, reason, **{LOST: True})

    def fail(self, trial_id: int, reason: str, **attributes: object) -> bool:
        """Close a trial as failed; False if it had been closed already."""
        from optuna.trial import TrialState

        self._mine.discard(trial_id)
        storage = self.handle.storage
        try:
            self.ending(trial_id)
            for key, value in {FAILURE: reason, **attributes}.items():
                storage.set_trial_user_attr(trial_id, key, value)
            return storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except already_finished():
            return False

    def ending(self, trial_id: int) -> None:
        """This worker is about to close a trial.

        Raises:
            Exception: `already_finished()`, where it has been closed.
        """
        closed = sum(trial.state.is_finished() for trial in self.handle.trials())
        mark = {"worker": self._identity, "after": closed}
        self.handle.storage.set_trial_user_attr(trial_id, ENDED, mark)

    def done(self, trial_id: int) -> None:
        """This worker told the trial's outcome."""
        self._mine.discard(trial_id)

    def claim(self) -> int | None:
        """Take the next trial to run.

        Returns:
            Its id in the storage; null if there is none for this worker now.
        """
        from optuna.trial import TrialState

        trials = self.handle.trials()
        active = [t.number for t in trials if t.state != TrialState.FAIL]
        for rank, number in enumerate(active):
            if rank >= self._total:
                return None
            trial = trials[number]
            if trial.state == TrialState.WAITING and self._take(trial, trials):
                return trial._trial_id
        if len(active) >= self._total or not self._may_create:
            return None
        return self._create()

    def _take(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """Try to be the one that runs a waiting trial."""
        from optuna.trial import TrialState

        storage, trial_id = self.handle.storage, trial._trial_id
        try:
            if not storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return False
        except already_finished():
            return False
        self._mine.add(trial_id)
        storage.set_trial_user_attr(trial_id, WORKER, self._identity)
        if _is_copy(trial, trials):
            self.fail(trial_id, "queued twice", **{WITHDRAWN: True})
            return False
        if self._was_finished(trial.user_attrs.get(RETRY_OF), trials):
            self.fail(trial_id, "its first attempt was finished after all", **{WITHDRAWN: True})
            return False
        return True

    def _was_finished(self, number: int | None, trials: Sequence[FrozenTrial]) -> bool:
        """Whether a trial that is to be tried again came to its end, its worker not being dead.

        A trial is queued again before it is closed. Where that has not happened yet it does now, so
        that from here on it has one ending.
        """
        from optuna.trial import TrialState

        if number is None:
            return False
        trial_id = trials[number]._trial_id
        self.fail(trial_id, "its process died", **{LOST: True})
        return self.handle.storage.get_trial(trial_id).state != TrialState.FAIL

    def _create(self) -> int | None:
        from optuna.trial import TrialState, create_trial

        running = create_trial(state=TrialState.RUNNING, user_attrs={WORKER: self._identity})
        trial_id = self.handle.storage.create_new_trial(self.handle.study_id, running)
        self._mine.add(trial_id)
        trials = self.handle.trials()
        number = next(t.number for t in reversed(trials) if t._trial_id == trial_id)
        before = sum(t.state != TrialState.FAIL for t in trials[:number])
        if before < self._total:
            return trial_id
        self.fail(trial_id, "another worker was first", **{WITHDRAWN: True})
        return None
