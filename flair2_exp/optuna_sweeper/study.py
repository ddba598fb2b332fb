"""The study that workers share: created or joined once, and refused where it is another search.

The name of a study is taken once, by whoever creates it; that worker makes it ready. The others
wait while its process lives; a study left half made is removed and created anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .errors import SweepError
from .process import Process

MAKER: Final = "maker"
"""Study attribute: the process that makes the study ready. Written before anything else."""
SWEEP: Final = "sweep"
"""Study attribute: what the study searches. Written when the study is ready for workers."""
UNKNOWN_OBJECTIVE: Final = "unknown_objective"
"""Trial attribute: it failed since the job does not measure the objective."""
RETRY_OF: Final = "retry_of"
"""Trial attribute: the number of the trial whose parameters are tried again."""
QUEUED: Final = "queued"
"""Trial attribute: the place of its parameters in the queue that the study began with."""
_FORMAT: Final = 2  # of the attribute SWEEP
_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Plan:
    """What a study must be for workers to share it, and for later commands to resume it."""

    directions: tuple[str, ...]
    objective: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    """By key: the sweep in canonical form, or the value that all trials have."""
    custom: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What `on_start` returned."""

    def plain(self) -> dict[str, Any]:
        """Return the plan as the study keeps it."""
        aim = {"direction": ", ".join(self.directions), "objective": ", ".join(self.objective)}
        search = {**self.overrides, "custom_search_space": self.custom}
        return {"format": _FORMAT, "aim": aim, "search": search, "facts": dict(self.facts)}

    def differences(self, then: Mapping[str, Any], *, aim: bool = True) -> list[str]:
        """Return what differs from a study's own plan, a phrase each; `aim=False` for the rest."""
        if then.get("format") != _FORMAT:
            return ["it was made by another program, or another version of this sweeper"]
        now = self.plain()
        changes = _changes(then["aim"], now["aim"], "none") if aim else []
        changes += _changes(then["search"], now["search"], "not given")
        return changes + fact_changes(then["facts"], now["facts"])


def fact_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two mappings of facts, a phrase for each that both have."""
    common = {name: value for name, value in then.items() if name in now}
    return _changes(common, {name: now[name] for name in common}, "none")


def _changes(then: Mapping[str, Any], now: Mapping[str, Any], absent: str) -> list[str]:
    def shown(value: object) -> object:
        return absent if value in (None, "") else value

    return [
        f"{name} was {shown(then.get(name))}, now {shown(now.get(name))}"
        for name in dict.fromkeys((*then, *now))
        if then.get(name) != now.get(name)
    ]


@dataclass(frozen=True)
class StudyHandle:
    """A study of a storage; its trials by their numbers, which count up from 0 without gaps."""

    storage: BaseStorage
    study_id: int
    name: str

    @cached_property
    def study(self) -> optuna.Study:
        """The study as Optuna has it, to add trials to; nothing is drawn with it."""
        sampler = optuna.samplers.RandomSampler()
        return optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, by number; not to be changed."""
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    def trial_id(self, number: int) -> int:
        """Return a trial's id in the storage."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial as it is now."""
        return self.storage.get_trial(self.trial_id(number))

    def mark(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial; raises `ALREADY_FINISHED` where it has been closed."""
        trial_id = self.trial_id(number)
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)

    def set_state(self, number: int, state: TrialState) -> bool:
        """Change a trial's state as `mark` its attributes; False where another one started it."""
        return self.storage.set_trial_state_values(self.trial_id(number), state)

    def queue(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        """Add a waiting trial of these parameters."""
        self.study.enqueue_trial(dict(params), user_attrs=dict(attributes))


class _GoneError(Exception):
    """A half-made study was removed: by whoever failed to make it, or since its maker is dead."""


@dataclass(frozen=True)
class Opening:
    """How a study is opened.

    Attributes:
        plan: What it must be.
        queue: Parameters of the trials to run first, in order.
        new_study: Whether to take the next free name where the study is of another plan.
        hint: What to type there otherwise.
        on_create: Called by the one worker that makes the study; gives further study attributes.
        grace: Seconds for which a worker on another machine may be making the study.
    """

    plan: Plan
    queue: Sequence[Mapping[str, Any]] = ()
    new_study: bool = False
    hint: str = ""
    on_create: Callable[[], Mapping[str, Any]] = dict
    grace: float = 120.0

    def open(self, storage: BaseStorage, name: str) -> StudyHandle:
        """Create the study, or join it if it is the same search.

        Raises:
            SweepError: The study is of another search.
        """
        attempt, candidate, on_create = 1, name, self.on_create
        while True:
            try:
                handle, then = self._make_or_join(storage, candidate, on_create)
            except _GoneError:
                continue
            differences = self.plan.differences(then)
            if not differences:
                fill(handle, self.queue)
                return handle
            if self._is_slip(handle, then):
                kept = storage.get_study_user_attrs(handle.study_id)
                storage.delete_study(handle.study_id)
                on_create = partial(dict, kept)  # what was made for the first one serves this one
                continue
            if not self.new_study:
                brief = _brief(differences)
                raise SweepError(f"study {candidate} is another search: {brief}.\n{self.hint}")
            attempt += 1
            candidate = f"{name}-{attempt}"

    def _is_slip(self, handle: StudyHandle, then: Mapping[str, Any]) -> bool:
        """Return whether the study only sought an objective that does not exist."""
        if self.plan.differences(then, aim=False):
            return False
        trials = handle.trials()
        idle = all(trial.state in (TrialState.FAIL, TrialState.WAITING) for trial in trials)
        return idle and any(UNKNOWN_OBJECTIVE in trial.user_attrs for trial in trials)

    def _make_or_join(
        self, storage: BaseStorage, name: str, on_create: Callable[[], Mapping[str, Any]]
    ) -> tuple[StudyHandle, Mapping[str, Any]]:
        """Return the study of that name and its plan."""
        try:
            handle, created = create_or_load(storage, name, self.plan.directions)
            if not created:
                return handle, _wait_for_plan(handle, self.grace)
        except KeyError:  # no such study any more
            raise _GoneError from None
        maker, plan = Process.this().plain(), self.plan.plain()
        try:
            storage.set_study_user_attr(handle.study_id, MAKER, maker)
            attributes = on_create()
            fill(handle, self.queue)
            for key, value in {**attributes, MAKER: maker, SWEEP: plan}.items():
                storage.set_study_user_attr(handle.study_id, key, value)
        except BaseException:
            # Nobody uses it before it is ready. Left behind it would keep others waiting.
            storage.delete_study(handle.study_id)
            raise
        return handle, plan


def _brief(differences: Sequence[str], limit: int = 4) -> str:
    more = len(differences) - limit
    return "; ".join(differences[:limit]) + (f"; and {more} more" if more > 0 else "")


def create_or_load(
    storage: BaseStorage, name: str, directions: Sequence[str]
) -> tuple[StudyHandle, bool]:
    """Return the study of that name, and whether it is new."""
    named = [StudyDirection[direction.upper()] for direction in directions]
    try:
        return StudyHandle(storage, storage.create_new_study(named, name), name), True
    except DuplicatedStudyError:
        return StudyHandle(storage, storage.get_study_id_from_name(name), name), False


def _wait_for_plan(handle: StudyHandle, grace: float) -> dict[str, Any]:
    """Return the study's plan, once it is ready; an empty one where another program made it."""
    storage, deadline = handle.storage, time.monotonic() + grace
    while True:
        attributes = storage.get_study_user_attrs(handle.study_id)
        plan, maker = attributes.get(SWEEP), Process.of_plain(attributes.get(MAKER))
        if isinstance(plan, dict):
            return plan
        if MAKER not in attributes and not _is_empty(handle):
            return {}
        alive = maker.lives() if maker else None
        if alive is False or (alive is None and time.monotonic() > deadline):
            # SQLite gives a deleted study's id out again: what goes must be what was looked at.
            if storage.get_study_user_attrs(handle.study_id) == attributes:
                storage.delete_study(handle.study_id)
            raise _GoneError
        time.sleep(_LOOK_SECONDS)


def _is_empty(handle: StudyHandle) -> bool:
    """Return whether nothing was ever written into a study, as just after its making."""
    storage, study_id = handle.storage, handle.study_id
    attributes = storage.get_study_user_attrs(study_id) | storage.get_study_system_attrs(study_id)
    return not attributes and not handle.trials()


def fill(handle: StudyHandle, queue: Sequence[Mapping[str, Any]]) -> None:
    """Queue those of the parameters that no trial has yet, or only failed ones."""
    index_of: dict[int, Any] = {}  # by trial number; a retry stands for the trial it retries
    covered = set()
    for trial in handle.trials():
        retried = index_of.get(trial.user_attrs.get(RETRY_OF, -1))
        index = index_of[trial.number] = trial.user_attrs.get(QUEUED, retried)
        if trial.state != TrialState.FAIL:
            covered.add(index)
    for index, params in enumerate(queue):
        if index not in covered:
            handle.queue(params, {QUEUED: index})
