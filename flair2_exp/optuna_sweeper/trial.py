"""The job's side of a trial: report on the way, and learn whether to stop.

    trial = current_trial()
    for epoch in range(1, epochs + 1):
        score = train_and_validate(...)
        if trial is not None and trial.report(score, epoch):
            break  # or: raise TrialPruned

The sweeper hands each job a *ticket*: the environment variable `OPTUNA_STUDY_TRIAL`, which Hydra
itself sets around the task function (`hydra.job.env_set`). That reaches a job in the sweeper's
process, in a process of joblib and on a node of submitit alike, and child processes inherit it; it
is part of Hydra's own config, so the job's config, its list of overrides and its folder's name stay
what they are without a sweeper. The ticket holds the storage's name (which has no password), the
study's name, the trial's number and the pruner.

Nothing heavy is imported before a trial reports.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from .errors import SweepError

if TYPE_CHECKING:
    import optuna

VARIABLE: Final = "OPTUNA_STUDY_TRIAL"
PRUNED_AT: Final = "pruned_at"
"""Trial attribute: the step at which the job was to stop."""
FACTS: Final = "facts"
"""Trial attribute: the facts that its job knows, such as its data."""
log = logging.getLogger(__name__)


class TrialPruned(Exception):
    """Raised by a job to end as pruned."""


class UnknownObjective(Exception):
    """Raised by a job that does not measure the objective: the search ends, unless others did.

    Any exception with the attribute `unknown_objective = True` says the same, for code that knows
    nothing of this package.
    """

    unknown_objective = True


class TrialClosed(Exception):
    """The study does not wait for this job any more: another worker took it for dead.

    Its parameters may be tried again elsewhere, in the same folder, so this job must leave things
    as they are. It was not pruned.

    Attributes:
        disowned: Says so to code that knows nothing of this package.
    """

    disowned = True


@dataclass(frozen=True)
class Ticket:
    """What a job needs to find its trial, and to ask whether to stop."""

    storage: str
    study: str
    number: int
    pruner: Mapping[str, Any]
    allowed: Sequence[str]
    """Prefixes of dotted paths that the pruner may come from."""

    def encode(self) -> str:
        """Return one line of letters, digits and `%-._~`: no shell or YAML needs an escape."""
        return quote(json.dumps(asdict(self)), safe="")

    @classmethod
    def decode(cls, text: str) -> Ticket:
        """Return the ticket of that text.

        Raises:
            SweepError: It is not a ticket.
        """
        try:
            return cls(**json.loads(unquote(text)))
        except (TypeError, ValueError):
            raise SweepError(
                f"{VARIABLE}={text!r} is not a trial of a search; unset it to run outside of one."
            ) from None


class RunningTrial:
    """The trial that this job evaluates."""

    def __init__(self, ticket: Ticket, trial: optuna.Trial) -> None:
        self.number = ticket.number
        self.study_name = ticket.study
        self._trial = trial
        self._multiple = len(trial.study.directions) > 1
        self._stopped = False

    @property
    def params(self) -> dict[str, Any]:
        """Parameter values by override key; options that are not numbers as an override's text."""
        return dict(self._trial.params)

    @property
    def study_attributes(self) -> dict[str, Any]:
        """The study's attributes, among them those that `on_create` made."""
        return dict(self._trial.study.user_attrs)

    def report(self, value: float, step: int) -> bool:
        """Report the objective at a step (an epoch or the like, from 1), and learn whether to stop.

        A study of several objectives knows no pruning: its reports are dropped. A storage that does
        not answer costs the report, not the training.

        Raises:
            TrialClosed: Another worker took this one for dead and closed the trial.
        """
        from .storage import STORAGE_ERRORS

        if self._multiple or self._stopped:
            return self._stopped
        try:
            with self._open():
                self._trial.report(float(value), int(step))
                if self._trial.should_prune():
                    self._stop(step)
        except STORAGE_ERRORS as error:
            log.warning("Trial %d could not report step %d: %s", self.number, step, error)
        return self._stopped

    def fact_changes(self, facts: Mapping[str, Any]) -> list[str]:
        """Keep facts of this trial, such as which data it reads, and compare them with the study's.

        The study's are those that `on_start` returned, where it knew them, and those of the trials
        that have not failed. Of two jobs that start at once with other facts one sees it at least.

        Args:
            facts: Plain values by name; only those that the others have as well are compared.

        Returns:
            What differs, a phrase each, such as `data was 3f…, now 77…`.

        Raises:
            TrialClosed: Another worker took this one for dead and closed the trial.
        """
        from optuna.trial import TrialState

        from .study import SWEEP, fact_changes

        with self._open():
            self._trial.set_user_attr(FACTS, dict(facts))
        open_states = [state for state in TrialState if state != TrialState.FAIL]
        trials = self._trial.study.get_trials(deepcopy=False, states=open_states)
        others = [self.study_attributes[SWEEP]["facts"]]
        others += [trial.user_attrs[FACTS] for trial in trials if FACTS in trial.user_attrs]
        return next(filter(None, (fact_changes(other, facts) for other in others)), [])

    def should_prune(self) -> bool:
        """Return whether a report has been answered with stop."""
        return self._stopped

    def prune(self, step: int) -> None:
        """End as pruned at that step, whatever the job returns: it was to stop when it died.

        Raises:
            TrialClosed: Another worker took this one for dead and closed the trial.
        """
        with self._open():
            self._stop(step)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Raise `TrialClosed` where the trial turns out to be closed."""
        from .storage import ALREADY_FINISHED

        try:
            yield
        except ALREADY_FINISHED:
            raise TrialClosed(
                f"trial {self.number} was closed by another worker, which took this one for dead"
            ) from None

    def _stop(self, step: int) -> None:
        self._trial.set_user_attr(PRUNED_AT, int(step))
        self._stopped = True


def current_trial() -> RunningTrial | None:
    """Return the trial that this process runs; None outside of a search.

    The same object for every call in one job. A process that shares the job's environment (another
    rank of distributed training) gets the trial too: let one of them report, and inform the others.

    Raises:
        SweepError: The storage does not answer, or does not know the trial.
    """
    text = os.environ.get(VARIABLE)
    return _trial(text, os.getpid()) if text else None


@functools.lru_cache(maxsize=1)
def _trial(text: str, _: int) -> RunningTrial:
    import optuna

    from .components import build_pruner
    from .process import Process
    from .storage import ALREADY_FINISHED, open_storage, redact
    from .worker import JOB, WORKER

    ticket, this = Ticket.decode(text), Process.this().plain()
    storage = open_storage(ticket.storage)
    try:
        study = optuna.load_study(
            study_name=ticket.study,
            storage=storage,
            sampler=optuna.samplers.RandomSampler(),  # never asked: the values are drawn already
            pruner=build_pruner(ticket.pruner, ticket.allowed),
        )
        study_id = storage.get_study_id_from_name(ticket.study)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, ticket.number)
    except KeyError:
        raise SweepError(
            f"storage {redact(ticket.storage)} has no trial {ticket.study}/{ticket.number}."
        ) from None
    if storage.get_trial_user_attrs(trial_id).get(WORKER) != this:
        with contextlib.suppress(ALREADY_FINISHED):  # reporting tells
            storage.set_trial_user_attr(trial_id, JOB, this)
    return RunningTrial(ticket, optuna.Trial(study, trial_id))
