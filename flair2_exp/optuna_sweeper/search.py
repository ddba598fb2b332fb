"""The search itself: claim trials, launch their jobs, tell the study how they ended."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import importlib
import importlib.metadata
import itertools
import logging
import math
import numbers
import random
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from . import results, storage, study
from .errors import SweepError
from .space import Space, read_space
from .trial import (
    VARIABLE,
    Ticket,
    TrialPruned,
    UnknownObjective,
    pruner_text,
)
from .worker import Heart, Watch

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
OPTUNA_RANGE: Final = (4, 6)  # first major version that works, first that is unknown
_DEFAULT_TRIALS: Final = 20
_LARGEST_GRID: Final = 10_000
_TICKET_KEY: Final = f"hydra.job.env_set.{VARIABLE}"


@dataclass(frozen=True)
class Options:
    """The fields of `OptunaStudyConf` as plain, checked values; the meanings are there."""

    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]
    allowed_targets: list[str]
    params: Mapping[str, Any]
    custom_search_space: str | None
    first: list[Mapping[str, Any]]
    n_trials: int | None
    n_jobs: int
    objective: tuple[str, ...]
    direction: tuple[str, ...]
    max_failures: int | None
    study_name: str | None
    storage: str | None
    storage_timeout: float
    heartbeat_grace: float
    poll: float
    on_change: str
    may_change: list[str]
    on_start: str | None
    on_create: str | None
    on_finish: str | None


def read_options(raw: Mapping[str, Any]) -> Options:
    """Check the sweeper's options.

    Args:
        raw: The fields of `OptunaStudyConf` as plain Python values.

    Raises:
        SweepError: A value that no search can run with.
    """
    values = dict(raw)
    for key in ("n_trials", "max_failures", "n_jobs"):
        if values[key] is not None and values[key] < 1:
            raise SweepError(f"{key}={values[key]}: expected at least 1.")
    if values["on_change"] not in ("refuse", "new_study"):
        raise SweepError(f"on_change={values['on_change']}: expected refuse or new_study.")
    for key in ("storage_timeout", "heartbeat_grace", "poll"):
        if not values[key] > 0:
            raise SweepError(f"{key}={values[key]}: expected more than 0 seconds.")
    names = _names("objective", values["objective"])
    forbidden = values.pop("forbidden_objectives")
    for name, pattern in itertools.product(names, forbidden):
        if fnmatch.fnmatch(name, pattern):
            raise SweepError(
                f"objective {name} is refused ({pattern}): a search that picks by the test score "
                "has seen the test data, and its result means nothing. Use a validation metric."
            )
    values |= {"objective": names, "direction": _directions(values["direction"], len(names))}
    for params in values["first"]:
        if not isinstance(params, Mapping):
            raise SweepError(f"first: {params!r}: expected mappings, such as [{{lr: 0.1}}].")
    return Options(**values)


def _names(key: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else value
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise SweepError(f"{key}={value!r}: expected a name or a list of names.")
    return tuple(names)


def _directions(value: object, objectives: int) -> tuple[str, ...]:
    directions = _names("direction", value)
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            raise SweepError(f"direction={direction}: expected minimize or maximize.")
    if len(directions) == 1 and isinstance(value, str):
        return directions * max(1, objectives)
    if objectives and len(directions) != objectives:
        raise SweepError(f"{len(directions)} directions for {objectives} objectives.")
    return directions


def check_optuna() -> None:
    """Refuse a version of Optuna that the sweeper was not made for.

    Raises:
        SweepError: It is missing or outside of the range.
    """
    low, high = OPTUNA_RANGE
    needed = f"the sweeper needs optuna>={low},<{high} (pip install 'optuna>={low},<{high}')"
    try:
        version = importlib.metadata.version("optuna")
    except importlib.metadata.PackageNotFoundError:
        raise SweepError(f"Optuna is not installed; {needed}.") from None
    if not low <= int(version.partition(".")[0]) < high:
        raise SweepError(f"Optuna {version} is installed; {needed}.")


@dataclass(frozen=True)
class SearchResult:
    """What a search came to, for `on_finish`.

    Attributes:
        study_name: The study's name.
        storage: The storage's name, as `open_storage` takes it.
        trials: All trials of the study, by number.
        objective: The objectives' names.
        direction: `minimize` or `maximize` of each objective.
        folder: Where results go: the sweep's folder, or the one of a study opened beside another.
        space: Turns a trial's parameters into its overrides, and knows the config groups.
        leader: Whether this worker should do what is to be done once: it ended the last trial, or
            found the study complete, and no other process is doing it.
    """

    study_name: str
    storage: str
    trials: Sequence[optuna.trial.FrozenTrial]
    objective: tuple[str, ...]
    direction: tuple[str, ...]
    folder: Path
    space: Space
    leader: bool

    @property
    def best(self) -> list[optuna.trial.FrozenTrial]:
        """The best trial, or the Pareto front."""
        return results.best_trials(self.trials, self.direction)


@dataclass(frozen=True)
class _Job:
    trial: optuna.Trial
    overrides: list[str]


class Search:
    """One command's part in a search.

    Args:
        options: What to search.
        config: The composed config, with Hydra's part.
        launcher: Runs the jobs.
        config_loader: Composes a job's config.
        arguments: Overrides of the command line.
    """

    def __init__(
        self,
        *,
        options: Options,
        config: DictConfig,
        launcher: Launcher,
        config_loader: ConfigLoader,
        arguments: Sequence[str],
    ) -> None:
        check_optuna()
        from .components import SamplerFactory, build_pruner

        _quiet()
        self._options = options
        self._config = config
        self._launcher = launcher
        self._loader = config_loader
        self._space = read_space(options.params, arguments, config_loader)
        self._samplers = SamplerFactory(options.sampler, options.allowed_targets)
        self._pruner = build_pruner(options.pruner, options.allowed_targets)
        self._custom = import_function("custom_search_space", options.custom_search_space)
        self._on_start = import_function("on_start", options.on_start)
        self._on_create = import_function("on_create", options.on_create)
        self._on_finish = import_function("on_finish", options.on_finish)
        self._queue = self._first_points()
        self._total = self._wanted_trials()
        self._folder = Path(str(config.hydra.sweep.dir))
        self._returns: list[Sequence[JobReturn]] = []
        self._awaited: list[str] = []
        self._distributions = {k: d.distribution() for k, d in self._space.dimensions.items()}

    def run(self) -> list[Sequence[JobReturn]]:
        """Run trials until the study has its total.

        Returns:
            The returns of the jobs that this command launched, one list for each launch.

        Raises:
            SweepError: Too many trials failed, or the search cannot be run.
        """
        self._validate_config()
        if self._on_start is not None:
            self._on_start(self._config)
        self._open()
        found_complete = self._ledger.finished(self._handle.trials()) >= self._total
        self._heart = Heart(self._handle.storage, self._options.heartbeat_grace)
        with storage.told(self._storage_name):
            try:
                with self._heart:
                    self._loop()
            finally:
                trials = self._handle.trials()
                results.write_results(
                    self._results, self._handle.name, trials, self._options.direction
                )
        self._summarise(trials)
        self._finish(trials, leader=found_complete or self._ledger.ended_last(trials))
        return self._returns

    def _finish(self, trials: Sequence[optuna.trial.FrozenTrial], *, leader: bool) -> None:
        """Call `on_finish`; of several workers that would lead one does."""
        if self._on_finish is None:
            return
        if not leader:
            self._on_finish(self._result(trials, leader=False), self._config)
            return
        with results.only_one(self._results) as alone:
            self._on_finish(self._result(trials, leader=alone), self._config)

    def _result(self, trials: Sequence[optuna.trial.FrozenTrial], *, leader: bool) -> SearchResult:
        return SearchResult(
            study_name=self._handle.name,
            storage=self._storage_name,
            trials=trials,
            objective=self._options.objective,
            direction=self._options.direction,
            folder=self._results,
            space=self._space,
            leader=leader,
        )

    @property
    def _results(self) -> Path:
        """Where results go: the sweep's folder, or one in it for a study opened beside another."""
        return self._folder / self._beside()

    def _first_points(self) -> list[Mapping[str, Any]]:
        dimensions = self._space.dimensions
        points: list[Mapping[str, Any]] = []
        for params in self._options.first:
            decided = self._space.fixed.keys() | self._space.settled
            params = {n: v for n, v in params.items() if n not in decided}
            for name in params:
                if name not in dimensions and self._custom is None:
                    raise SweepError(f"first: {name} is not swept; swept: {', '.join(dimensions)}.")
            points.append(
                {n: dimensions[n].internal(v) if n in dimensions else v for n, v in params.items()}
            )
        if self._samplers.is_grid:
            points += self._grid([dict(point) for point in points])
        return points

    def _grid(self, present: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        if self._custom is not None:
            raise SweepError("a grid has no custom_search_space; use another sampler.")
        size = math.prod(len(d.points()) for d in self._space.dimensions.values())
        if size > _LARGEST_GRID:
            raise SweepError(
                f"the grid has {size:,} points, more than {_LARGEST_GRID:,}; use another sampler."
            )
        points: list[Mapping[str, Any]] = [p for p in self._space.grid() if p not in present]
        if self._samplers.seed is not None:
            random.Random(self._samplers.seed).shuffle(points)
        return points

    def _wanted_trials(self) -> int:
        wanted, possible = self._options.n_trials, len(self._queue)
        if self._samplers.is_grid:
            return possible if wanted is None else min(wanted, possible)
        wanted = _DEFAULT_TRIALS if wanted is None else wanted
        if not self._space.dimensions and self._custom is None and wanted > 1:
            raise SweepError(
                f"the search space is empty, and {wanted} trials would all be the same. Give "
                "hydra.sweeper.params, or sweeps on the command line such as lr=interval(0,1)."
            )
        return wanted

    def _validate_config(self) -> None:
        """Compose one trial's config, so that a misspelt key is told before anything runs."""
        values = {}
        for name, dimension in self._space.dimensions.items():
            values[name] = dimension.choices[0] if dimension.choices else dimension.low
        self._loader.load_sweep_config(self._config, self._space.overrides(values))

    def _open(self) -> None:
        options = self._options
        self._storage_name = storage.resolve(options.storage, self._folder)
        backend = storage.open_storage(self._storage_name, options.storage_timeout)
        name = options.study_name or str(self._config.hydra.job.name)
        plan = study.Plan(
            directions=options.direction,
            objective=options.objective,
            space={n: d.describe() for n, d in self._space.dimensions.items()},
            fixed=tuple(
                text
                for key, text in self._space.fixed.items()
                if not any(fnmatch.fnmatch(key, pattern) for pattern in options.may_change)
            ),
            custom=options.custom_search_space,
        )
        self._handle = study.open_study(
            backend,
            self._storage_name,
            name,
            plan,
            self._queue,
            options.on_change,
            self._created if self._on_create else None,
            options.heartbeat_grace,
        )
        self._ledger = study.Ledger(
            self._handle,
            self._total,
            Watch(options.heartbeat_grace),
            may_create=not self._samplers.is_grid,
        )
        self._results.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, self._results / "multirun.yaml")
        self._prepare_ticket_key()
        log.info(
            "Study %s in %s: %d of %d trials finished",
            self._handle.name,
            storage.redact(self._storage_name),
            self._ledger.finished(self._handle.trials()),
            self._total,
        )

    def _created(self) -> Mapping[str, Any]:
        made = self._on_create(self._config) if self._on_create else {}
        return dict(made or {})

    def _prepare_ticket_key(self) -> None:
        """Add the ticket's key once to all jobs' configs.

        A job then sets it with an override that starts with `hydra.`, which launchers leave out
        when they print a job's overrides; one that adds it would start with `++`.
        """
        with flag_override(self._config.hydra, ["struct", "readonly"], [False, False]):
            self._config.hydra.overrides.hydra.append(f"++{_TICKET_KEY}=''")

    def _loop(self) -> None:
        while True:
            trials = self._handle.trials()
            if self._ledger.finished(trials) >= self._total:
                return
            self._stop_after_failures(self._ledger.new_failures(trials))
            for number in self._ledger.close_dead():
                again = study.LOST in self._handle.trials()[number].user_attrs
                then = "tried once more" if again else "not tried again: it was its second try"
                log.warning("Trial %d: its process died; it is closed and %s", number, then)
            batch: list[_Job] = []
            try:
                while len(batch) < self._options.n_jobs:
                    trial_id = self._ledger.claim()
                    if trial_id is None:
                        break
                    batch.append(self._draw(trial_id))
                    # What killed a process before may do so again: of its batch it is the last, so
                    # that no other trial shares both its tries.
                    if batch[-1].trial.user_attrs.get(study.TRIES, 1) > 1:
                        break
                if batch:
                    self._run_batch(batch)
                    continue
            except BaseException as error:
                for job in batch:
                    self._ledger.give_up(
                        job.trial._trial_id, _one_line(error), interrupted=is_end(error)
                    )
                raise
            trials = self._handle.trials()
            if self._ledger.is_exhausted(trials):
                return
            self._tell_wait(trials)
            time.sleep(self._options.poll)

    def _tell_wait(self, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
        """Say what the search waits for, whenever that changes."""
        from optuna.trial import TrialState

        running = [str(t.number) for t in trials if t.state == TrialState.RUNNING]
        if running and running != self._awaited:
            log.info("Waiting for trial %s, which other processes run", ", ".join(running))
            self._awaited = running

    def _draw(self, trial_id: int) -> _Job:
        """Draw the values of a claimed trial."""
        import optuna

        number = self._handle.storage.get_trial(trial_id).number
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                own_study = optuna.Study(
                    self._handle.name,
                    self._handle.storage,
                    sampler=self._samplers(number),
                    pruner=self._pruner,
                )
                trial = optuna.Trial(own_study, trial_id)
                values = {n: trial._suggest(n, d) for n, d in self._distributions.items()}
                values |= self._custom_values(trial, values)
        except ImportError as error:
            self._ledger.give_up(trial_id, f"sampler: {error}")
            raise SweepError(f"sampler: another package is needed: {error}.") from None
        except BaseException as error:
            reason = f"sampler: {type(error).__name__}: {error}"
            self._ledger.give_up(trial_id, reason, interrupted=is_end(error))
            raise
        return _Job(trial, self._space.overrides(values))

    def _custom_values(self, trial: optuna.Trial, values: Mapping[str, Any]) -> dict[str, Any]:
        if self._custom is None:
            return {}
        self._custom(self._config, trial)
        return {name: value for name, value in trial.params.items() if name not in values}

    def _run_batch(self, batch: list[_Job]) -> None:
        overrides = self._launch_overrides(batch)
        self._heart.trial_ids = tuple(job.trial._trial_id for job in batch)
        try:
            returns = self._launcher.launch(overrides, initial_job_idx=batch[0].trial.number)
        except (Exception, SystemExit) as error:
            if is_end(error):
                end_as(error)
            self._launch_failed(batch, error)
            return
        finally:
            self._heart.trial_ids = ()
        self._returns.append(returns)
        ended: list[BaseException] = []
        for job, job_return in zip(batch, returns, strict=True):
            value = job_return._return_value  # the property prints and raises
            if job_return.status == JobStatus.FAILED and is_end(value):
                ended.append(value)
            else:
                self._tell(job.trial, job_return)
        if ended:
            end_as(ended[0])

    def _launch_overrides(self, batch: list[_Job]) -> list[list[str]]:
        """The overrides of each job, with its ticket and, where need be, its own folder."""
        numbers_ = [job.trial.number for job in batch]
        contiguous = numbers_ == list(range(numbers_[0], numbers_[0] + len(numbers_)))
        pruner = pruner_text(self._options.pruner, self._options.allowed_targets)
        result = []
        for job in batch:
            ticket = Ticket(self._storage_name, self._handle.name, job.trial.number, pruner)
            further = [f"{_TICKET_KEY}='{ticket.encode()}'"]
            # A retried trial goes on in its first attempt's folder, which may hold a checkpoint.
            first = int(job.trial.user_attrs.get(study.FIRST, job.trial.number))
            if not contiguous or first != job.trial.number or self._beside():
                further.append(self._own_folder(first))
            result.append([*job.overrides, *further])
        return result

    def _beside(self) -> str:
        """The study's name where it was opened beside the one asked for, which has the folder."""
        asked = self._options.study_name or str(self._config.hydra.job.name)
        return "" if self._handle.name == asked else f"{self._handle.name}/"

    def _own_folder(self, number: int) -> str:
        """The job's folder by its trial's number, and by the study where there are several.

        A launcher counts its jobs on from the first one; another worker may have taken the numbers
        between, and two jobs would write into one folder.
        """
        node = OmegaConf.to_container(self._config.hydra.sweep, resolve=False)
        subdir = str(node["subdir"]) if isinstance(node, dict) else "${hydra.job.num}"
        text = self._beside() + subdir.replace("${hydra.job.num}", str(number))
        text = text.replace("${hydra:job.num}", str(number))
        return f"hydra.sweep.subdir={QuotedString(text, Quote.single).with_quotes()}"

    def _launch_failed(self, batch: list[_Job], error: BaseException) -> None:
        """The launcher itself gave up: a job's process was killed, or a config does not compose.

        It returns nothing of the other jobs either. A config error would come again, all else is
        tried once more.
        """
        reason = _one_line(error)
        config_error = isinstance(error, HydraException | OmegaConfBaseException)
        for job in batch:
            if config_error or isinstance(error, SystemExit):
                self._ledger.fail(job.trial._trial_id, reason)
            else:
                self._ledger.give_up(job.trial._trial_id, reason)
        log.error("Trial %s: %s", ", ".join(str(job.trial.number) for job in batch), reason)

    def _tell(self, trial: optuna.Trial, job_return: JobReturn) -> None:
        from optuna.trial import TrialState

        marks: dict[str, object] = {}
        try:
            outcome = self._outcome(trial, job_return)
        except UnknownObjective as error:
            outcome, marks = str(error), {study.UNKNOWN_OBJECTIVE: True}
        if isinstance(outcome, str):
            self._ledger.fail(trial._trial_id, outcome, **marks)
            log.error("Trial %d failed: %s", trial.number, outcome)
            return
        state = TrialState.PRUNED if outcome is None else TrialState.COMPLETE
        with contextlib.suppress(storage.already_finished()):
            self._ledger.ending(trial._trial_id)
        told = trial.study.tell(trial, outcome, state=state, skip_if_finished=True)
        self._ledger.done(trial._trial_id)
        if told.state == TrialState.FAIL:
            log.warning("Trial %d was closed by another worker; its result is dropped", told.number)
        else:
            text = "pruned" if outcome is None else ", ".join(f"{v:.6g}" for v in outcome)
            log.info("Trial %d: %s", trial.number, text)

    def _outcome(self, trial: optuna.Trial, job_return: JobReturn) -> list[float] | str | None:
        """The trial's values, why it failed, or null if it was pruned."""
        if job_return.status == JobStatus.FAILED:
            if _is_pruned(job_return):
                return None
            error = job_return._return_value  # the property prints and raises
            if getattr(error, "unknown_objective", False):
                raise UnknownObjective(str(error))
            return _one_line(error)
        if job_return.status != JobStatus.COMPLETED:
            return "the launcher returned no result"
        if study.PRUNED_AT in self._handle.storage.get_trial(trial._trial_id).user_attrs:
            return None
        return read_values(
            job_return.return_value, self._options.objective, len(self._options.direction)
        )

    def _stop_after_failures(self, failures: Sequence[optuna.trial.FrozenTrial]) -> None:
        limit = self._options.max_failures
        misnamed = [f for f in failures if study.UNKNOWN_OBJECTIVE in f.user_attrs]
        if misnamed and not any(t.values for t in self._handle.trials()):
            raise SweepError(str(misnamed[0].user_attrs[study.FAILURE]))
        if limit is None or len(failures) < limit:
            return
        lines = [f"  trial {t.number}: {t.user_attrs.get(study.FAILURE, '')}" for t in failures]
        done = self._ledger.finished(self._handle.trials())
        raise SweepError(
            f"{len(failures)} trials failed (max_failures={limit}); the search stops at {done} of "
            f"{self._total} finished. The same command goes on.\n" + "\n".join(lines)
        )

    def _summarise(self, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
        best = results.best_trials(trials, self._options.direction)
        if not best:
            self._raise_first_error()
            log.warning("No trial of study %s came to a result", self._handle.name)
        for trial in best:
            values = ", ".join(f"{value:.6g}" for value in trial.values)
            params = " ".join(f"{name}={value}" for name, value in trial.params.items())
            log.info("Best: trial %d with %s: %s", trial.number, values, params)

    def _raise_first_error(self) -> None:
        """When every job of this command failed, fail as the first did, like the basic sweeper."""
        for job_return in itertools.chain.from_iterable(self._returns):
            if job_return.status == JobStatus.FAILED and not _is_pruned(job_return):
                _ = job_return.return_value


def _is_pruned(job_return: JobReturn) -> bool:
    """Whether a job ended by saying that it was pruned."""
    import optuna

    return isinstance(job_return._return_value, TrialPruned | optuna.TrialPruned)


_ENDS: Final = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of a process that was asked to end, as a shell gives them."""


def is_end(error: object) -> bool:
    """Whether a job ended because the whole command shall: by Ctrl-C or SIGTERM.

    A framework may say so by another exception (Lightning turns Ctrl-C into `SystemExit`), whose
    context then still holds the interrupt.
    """
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        if isinstance(error, SystemExit) and error.code in _ENDS:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def end_as(error: BaseException) -> NoReturn:
    """End the command as it was asked to."""
    if isinstance(error, SystemExit) and error.code in _ENDS:
        raise error
    raise KeyboardInterrupt


def read_values(returned: object, names: Sequence[str], objectives: int) -> list[float] | str:
    """The objective values in what a job returned.

    Args:
        returned: A number, a list of numbers, or a mapping by name.
        names: The objectives' names.
        objectives: How many values are due.

    Returns:
        The values, or in one line why there are none.

    Raises:
        UnknownObjective: The mapping lacks one of the names.
    """
    if isinstance(returned, Mapping):
        for name in names:
            if name not in returned:
                near = difflib.get_close_matches(name, map(str, returned), n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                logged = ", ".join(map(str, returned)) or "none"
                raise UnknownObjective(
                    f"objective {name} is not among the values that the job returned{hint}: "
                    f"{logged}."
                )
        if not names:
            return "the job returned a mapping; name the objective to pick from it"
        returned = [returned[name] for name in names]
    values = list(returned) if isinstance(returned, list | tuple) else [returned]
    if len(values) != objectives:
        return f"the job returned {len(values)} values for {objectives} objectives"
    result = []
    for name, value in itertools.zip_longest(names, values, fillvalue="objective"):
        if value is None:
            return f"{name}: the job returned no value"
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            value = _scalar(value)
        if value is None:
            return f"{name}: the job returned no number"
        if not math.isfinite(value):
            return f"{name}: the job returned {float(value)}"
        result.append(float(value))
    return result


def _scalar(value: object) -> float | None:
    """The number in an array or tensor of one element; texts and truth values are none."""
    item = getattr(value, "item", None)
    if item is None:
        return None
    try:
        number = item()
    except (TypeError, ValueError, RuntimeError):
        return None
    is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
    return float(number) if is_number else None


def import_function(key: str, path: str | None) -> Callable[..., Any] | None:
    """The function of a dotted path.

    Args:
        key: The option that names it, for messages.
        path: Package, module and name; null for none.

    Raises:
        SweepError: There is no such function.
    """
    if path is None:
        return None
    module_name, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SweepError(f"{key} {path} cannot be imported: {error}.") from None
    if not callable(function):
        raise SweepError(f"{key} {path} is no function.")
    found: Callable[..., Any] = function
    return found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return storage.redact(f"{type(error).__name__}: {text}"[:500])


def _quiet() -> None:
    """Leave it to this module to say what happens."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
