"""The search itself: claim trials, launch their jobs, tell the study how they ended.

A launcher of Hydra's gets its trials in batches. On one that starts jobs one by one (`launching`)
the next trial is drawn as soon as one has ended, and a trial whose worker died is taken over with
its number: its job may still run, with a ticket of that number, or have ended meanwhile.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import logging
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import FrozenTrial, TrialState

from . import ledger, results, storage
from .compat import returned
from .components import SamplerFactory, build_pruner, import_function
from .config import OptunaStudyConf
from .errors import SweepError
from .launching import Job, Pool, PoolLauncher
from .ledger import Ledger
from .outcome import ending, is_pruned, one_line, read_outcome
from .points import queue_and_total
from .results import SearchResult
from .space import read_space
from .study import UNKNOWN_OBJECTIVE, Opening, Plan, StudyHandle
from .trial import PRUNED_AT, VARIABLE, Ticket, UnknownObjective
from .worker import Heart, Watch

log = logging.getLogger(__name__)
_TICKET_KEY: Final = f"hydra.job.env_set.{VARIABLE}"
_HOOKS: Final = ("custom_search_space", "on_start", "on_create", "on_finish")
_INTERPOLATION: Final = re.compile(r"\$\{([\w.]+)\}")


class Search:
    """One command's part in a search: `config` has Hydra's part, `arguments` are its overrides.

    Raises:
        SweepError: The search cannot be run as configured.
    """

    def __init__(
        self,
        *,
        options: OptunaStudyConf,
        config: DictConfig,
        launcher: Launcher,
        config_loader: ConfigLoader,
        arguments: Sequence[str],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # this module says what happens
        self.options = options
        self.config = config
        self.launcher = launcher
        self._loader = config_loader
        self.space = read_space(options.params, arguments, config_loader)
        self._samplers = SamplerFactory(options.sampler, options.allowed_targets)
        self._pruner = build_pruner(options.pruner, options.allowed_targets)
        self._hooks = {key: import_function(key, getattr(options, key)) for key in _HOOKS}
        if isinstance(options.may_change, str):
            self._hooks["may_change"] = import_function("may_change", options.may_change)
        self.queue, self._total = queue_and_total(options, self.space, self._samplers)
        self._folder = Path(str(config.hydra.sweep.dir))
        self._name = options.study_name or str(config.hydra.job.name)
        self._storage_name = storage.resolve(options.storage, self._folder)
        self._returns: list[Sequence[JobReturn]] = []
        self._awaited: list[str] = []
        self._running: dict[int, tuple[optuna.Trial, Job]] = {}

    def run(self) -> list[Sequence[JobReturn]]:
        """Run trials until the study has its total; return what the jobs did, a list per launch.

        Raises:
            SweepError: Too many trials failed, or the search cannot be run.
        """
        self._validate_config()
        pool = self.launcher.pool() if isinstance(self.launcher, PoolLauncher) else None
        storage.require_usable(self._storage_name, self.options.storage_timeout)
        plan = self._plan()
        self._open(plan)
        was_complete = ledger.finished(self._handle.trials()) >= self._total
        self._heart = Heart(self._handle.storage, self.options.heartbeat_grace)
        try:
            with storage.errors_in_one_line(self._storage_name), self._heart:
                if pool is None:
                    self._loop()
                else:
                    self._loop_on(pool)
        except BaseException as error:
            if not isinstance(error, Exception):  # by a signal
                self._note_progress(error)
            raise
        finally:
            result = self._result()
            try:
                results.write_results(result)
            except OSError as error:  # the trials are in the storage, listed here or not
                log.warning("%s: no list of the trials: %s", self._results, error.strerror)
        self._summarise(result)
        self._finish(result, leads=was_complete or self._ledger.ended_last(result.trials))
        return self._returns

    def _note_progress(self, error: BaseException) -> None:
        """Let what interrupts the search say how far it is, and what resumes it."""
        with contextlib.suppress(Exception):  # the storage may be what it was interrupted for
            done = ledger.finished(self._handle.trials())
            error.add_note(
                f"{done} of {self._total} trials finished; the same command resumes the search"
            )

    # --- opening --------------------------------------------------------------------------------

    def _validate_config(self) -> None:
        """Compose one trial's config, so that a misspelt key is refused before anything runs."""
        values = {name: each.example for name, each in self.space.dimensions.items()}
        self._loader.load_sweep_config(self.config, self.space.overrides(values))

    def _plan(self) -> Plan:
        fixed = {
            key: text if text.startswith("~") else text.partition("=")[2]
            for key, text in self.space.fixed.items()
            if not self._may_change(key)
        }
        return Plan(
            directions=self.options.directions,
            objective=self.options.objectives,
            overrides={n: d.describe() for n, d in self.space.dimensions.items()} | fixed,
            custom=self.options.custom_search_space,
            facts=self._hooks["on_start"](self.config) or {},
        )

    def _may_change(self, key: str) -> bool:
        """Return whether an override may differ between two commands on one study."""
        if "may_change" in self._hooks:
            return bool(self._hooks["may_change"](key))
        return any(fnmatch.fnmatch(key, pattern) for pattern in self.options.may_change)

    def _open(self, plan: Plan) -> None:
        options = self.options
        name, change = self._spelled("study_name"), self._spelled("on_change")
        opening = Opening(
            plan=plan,
            queue=self.queue,
            new_study=options.on_change == "new_study",
            hint=f"Give another {name}, or {change}=new_study to open the next free one.",
            on_create=lambda: self._hooks["on_create"](self.config) or {},
            grace=options.heartbeat_grace,
        )
        backend = storage.open_storage(self._storage_name, options.storage_timeout)
        with storage.errors_in_one_line(self._storage_name):
            self._handle: StudyHandle = opening.open(backend, self._name)
        watch = Watch(options.heartbeat_grace)
        self._ledger = Ledger(
            self._handle, self._total, watch, may_create=not self._samplers.is_grid
        )
        self._results.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self._results / "multirun.yaml")
        self._prepare_ticket_key()
        finished = ledger.finished(self._handle.trials())
        where = storage.redact(self._storage_name)
        message = "Study %s in %s: %d of %d trials finished"
        log.info(message, self._handle.name, where, finished, self._total)

    def _spelled(self, key: str) -> str:
        """Return what to type for an option: the application's own, where one stands for it."""
        written = OmegaConf.to_container(self.config.hydra, resolve=False)
        options = written.get("sweeper") if isinstance(written, dict) else None
        reference = _INTERPOLATION.fullmatch(str((options or {}).get(key)))
        return reference[1] if reference else f"hydra.sweeper.{key}"

    def _prepare_ticket_key(self) -> None:
        """Add the ticket's key once to all jobs' configs.

        A job then sets it with an override that starts with `hydra.`, which launchers leave out
        when they print a job's overrides; one that adds it would start with `++`.
        """
        with flag_override(self.config.hydra, ["struct", "readonly"], [False, False]):
            self.config.hydra.overrides.hydra.append(f"++{_TICKET_KEY}=''")

    @cached_property
    def _beside(self) -> str:
        """The folder of a study that was opened beside the one asked for, which has the sweep's."""
        return "" if self._handle.name == self._name else f"{self._handle.name}/"

    @property
    def _results(self) -> Path:
        return self._folder / self._beside

    # --- running --------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            trials = self._handle.trials()
            if ledger.finished(trials) >= self._total:
                return
            if error := self._too_many_failures(trials):
                raise error
            self._close_dead()
            batch: list[optuna.Trial] = []
            try:
                self._claim(batch)
                if batch:
                    self._run_batch(batch)
                    continue
            except BaseException as error:
                for trial in batch:
                    self._ledger.give_up(
                        trial.number, one_line(error), interrupted=bool(ending(error))
                    )
                raise
            trials = self._handle.trials()
            if self._ledger.is_exhausted(trials):
                return
            self._announce_wait(trials)
            time.sleep(self.options.poll)

    def _close_dead(self) -> None:
        for number in self._ledger.close_dead():
            again = ledger.LOST in self._handle.trial(number).user_attrs
            never = f"not tried again: {ledger.MOST_TRIES} tries ended so"
            then = "tried again" if again else never
            log.warning("Trial %d: its process died; it is closed and %s", number, then)

    def _announce_wait(self, trials: Sequence[FrozenTrial]) -> None:
        """Log what the search waits for, whenever that changes."""
        running = [str(t.number) for t in trials if t.state == TrialState.RUNNING]
        if running and running != self._awaited:
            log.info("Waiting for trial %s, which other processes run", ", ".join(running))
            self._awaited = running

    def _claim(self, batch: list[optuna.Trial]) -> None:
        """Take as many trials as the launcher runs at once, and draw their values."""
        while len(batch) < (self.options.n_jobs or 1):
            number = self._ledger.claim()
            if number is None:
                return
            batch.append(self._draw(number))
            # What killed a process before may do so again: of its batch it is the last, so that no
            # other trial shares both its tries.
            if batch[-1].user_attrs.get(ledger.TRIES, 1) > 1:
                return

    def _draw(self, number: int) -> optuna.Trial:
        """Draw the values of a claimed trial."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study = optuna.load_study(
                    study_name=self._handle.name,
                    storage=self._handle.storage,
                    sampler=self._samplers(number),
                    pruner=self._pruner,
                )
                trial = optuna.Trial(study, self._handle.trial_id(number))
                for dimension in self.space.dimensions.values():
                    dimension.suggest(trial)
                self._hooks["custom_search_space"](self.config, trial)  # suggests further values
        except BaseException as error:
            if isinstance(error, ImportError):
                self._ledger.give_up(number, f"sampler: {error}")
                raise SweepError(f"sampler: another package is needed: {error}.") from None
            reason = f"sampler: {one_line(error)}"
            self._ledger.give_up(number, reason, interrupted=bool(ending(error)))
            raise
        return trial

    def _run_batch(self, batch: list[optuna.Trial]) -> None:
        overrides = self._launch_overrides(batch)
        self._heart.trial_ids = self._ids(trial.number for trial in batch)
        try:
            returns = self.launcher.launch(overrides, initial_job_idx=batch[0].number)
        except (Exception, SystemExit) as error:  # a launcher may raise anything
            if end := ending(error):
                raise end from None
            self._launch_failed(batch, error)
            return
        finally:
            self._heart.trial_ids = ()
        self._returns.append(returns)
        endings = [ending(returned(job_return)) for job_return in returns]
        for trial, job_return, end in zip(batch, returns, endings, strict=True):
            if end is None:
                self._tell(trial, job_return)
        for end in filter(None, endings):
            raise end

    def _launch_overrides(self, batch: list[optuna.Trial]) -> list[list[str]]:
        """Return the overrides of each job, with its ticket and, where need be, its own folder."""
        numbers = [trial.number for trial in batch]
        contiguous = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        pruner, allowed = self.options.pruner, self.options.allowed_targets
        result = []
        for trial in batch:
            ticket = Ticket(self._storage_name, self._handle.name, trial.number, pruner, allowed)
            further = [f"{_TICKET_KEY}='{ticket.encode()}'"]
            # A retried trial resumes in its first attempt's folder, which may hold a checkpoint.
            first = int(trial.user_attrs.get(ledger.FIRST, trial.number))
            if not contiguous or first != trial.number or self._beside:
                further.append(self._own_folder(first))
            result.append([*self.space.overrides(trial.params), *further])
        return result

    def _own_folder(self, number: int) -> str:
        """Return the job's folder by its trial's number, and by the study where there are several.

        A launcher counts its jobs from the first one; another worker may have taken the numbers
        between, and two jobs would write into one folder.
        """
        node = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        subdir = str(node["subdir"]) if isinstance(node, dict) else "${hydra.job.num}"
        text = self._beside + re.sub(r"\$\{hydra[.:]job\.num\}", str(number), subdir)
        return f"hydra.sweep.subdir={QuotedString(text, Quote.single).with_quotes()}"

    def _launch_failed(self, batch: list[optuna.Trial], error: BaseException) -> None:
        """Close the trials of a launcher that gave up itself.

        A job's process was killed, or a config does not compose. It returns nothing of the other
        jobs either. A config error would come again, all else is tried again.
        """
        reason = one_line(error)
        comes_again = isinstance(error, HydraException | OmegaConfBaseException | SystemExit)
        for trial in batch:
            (self._ledger.fail if comes_again else self._ledger.give_up)(trial.number, reason)
        log.error("Trial %s: %s", ", ".join(str(trial.number) for trial in batch), reason)

    # --- running, one by one --------------------------------------------------------------------

    def _loop_on(self, pool: Pool) -> None:
        """Run trials as a pool has room for them."""
        try:
            with pool.until_ended():
                self._keep_busy(pool)
        except BaseException as error:
            if not pool.outlives:  # else the next command takes them over, jobs and trials
                for number in self._running:
                    self._ledger.give_up(number, one_line(error), interrupted=True)
            raise

    def _keep_busy(self, pool: Pool) -> None:
        awaited = False
        while True:
            trials = self._handle.trials()
            complete = ledger.finished(trials) >= self._total
            error = None if complete else self._too_many_failures(trials)
            if not complete and error is None:
                self._take_over(pool)
                self._start_new(pool)
            if self._running:
                if error is not None and not awaited:
                    log.error("%s\nWaiting for the trials that run.", error)
                    awaited = True
                for command, end in pool.poll():
                    self._note_ending(command.number, end)
                time.sleep(pool.interval)
                continue
            if error is not None:
                raise error
            trials = self._handle.trials()
            if complete or self._ledger.is_exhausted(trials):
                return
            self._announce_wait(trials)
            time.sleep(self.options.poll)

    def _take_over(self, pool: Pool) -> None:
        """Take over the trials whose workers died, with their jobs where these go on."""
        for number in self._ledger.orphans():
            with results.only_one(self._results, ".taking_over") as alone:
                job = self._composed(trial := self._draw(number)) if alone else None
                # A job that lives and is not this pool's is another launcher's, and ends soon.
                if job is None or not (pool.lives(job.command) or self._ledger.is_dead(number)):
                    continue
                if not self._ledger.take_over(number):
                    continue
            lives = self._add(pool, trial, job, lost=True)
            log.info("Trial %d: taken over%s", number, ", its job still runs" if lives else "")

    def _start_new(self, pool: Pool) -> None:
        """Draw trials while there is room, and start their jobs."""
        running = [job for _, job in self._running.values()]
        limit = self._limit(pool, running[0]) if running else 1  # until there is one to ask by
        while len(self._running) < limit:
            number = self._ledger.claim()
            if number is None:
                return
            job = self._composed(trial := self._draw(number))
            if job is None:
                return  # let the loop count its failure
            try:
                limit = self._limit(pool, job)
            except BaseException as error:
                self._ledger.give_up(number, one_line(error), interrupted=True)
                raise
            self._add(pool, trial, job)

    def _composed(self, trial: optuna.Trial) -> Job | None:
        """Return a trial's job; None where its config is refused, which is its failure."""
        assert isinstance(self.launcher, PoolLauncher)
        (overrides,) = self._launch_overrides([trial])
        try:
            title = f"{self._handle.name}/{trial.number}"
            return self.launcher.command(overrides, trial.number, title)
        except Exception as error:
            self._ledger.fail(trial.number, one_line(error))
            log.error("Trial %d: %s", trial.number, one_line(error))
            return None

    def _limit(self, pool: Pool, job: Job) -> int:
        """Return how many trials run at a time."""
        limits = [self.options.n_jobs, pool.capacity(job.command)]
        known = [limit for limit in limits if limit is not None]
        if not known:
            raise SweepError(
                "how many trials may run at a time? A search draws the next one from what those "
                f"before came to: give {self._spelled('n_jobs')}=4, or the launcher a limit."
            )
        return max(1, min(known))

    def _add(self, pool: Pool, trial: optuna.Trial, job: Job, *, lost: bool = False) -> bool:
        """Hand a job to the pool; return whether it was running already."""
        self._running[trial.number] = (trial, job)
        self._heart.trial_ids = self._ids(self._running)
        return pool.add(job.command, lost=lost)

    def _note_ending(self, number: int, end: object) -> None:
        trial, job = self._running.pop(number)
        self._heart.trial_ids = self._ids(self._running)
        result = job.result(end)
        if stop := ending(returned(result)):  # its job alone was stopped, more than once
            self._ledger.give_up(number, one_line(stop))
            log.warning("Trial %d: its job was stopped; it is tried again", number)
            return
        self._returns.append([result])
        self._tell(trial, result)

    def _ids(self, numbers: Iterable[int]) -> tuple[int, ...]:
        return tuple(self._handle.trial_id(number) for number in numbers)

    # --- what jobs came to ----------------------------------------------------------------------

    def _tell(self, trial: optuna.Trial, job_return: JobReturn) -> None:
        marks: dict[str, object] = {}
        try:
            outcome = read_outcome(job_return, self.options)
        except UnknownObjective as error:
            outcome, marks = str(error), {UNKNOWN_OBJECTIVE: True}
        stopped = PRUNED_AT in self._handle.trial(trial.number).user_attrs
        if stopped and job_return.status == JobStatus.COMPLETED:
            outcome, marks = None, {}  # what a job returned that was to stop has no meaning
        if isinstance(outcome, str):
            self._ledger.fail(trial.number, outcome, **marks)
            log.error("Trial %d failed: %s", trial.number, outcome)
            return
        state = TrialState.PRUNED if outcome is None else TrialState.COMPLETE
        with contextlib.suppress(storage.ALREADY_FINISHED):
            self._ledger.ending(trial.number)
        closed = trial.study.tell(trial, outcome, state=state, skip_if_finished=True)
        if closed.state == TrialState.FAIL:
            message = "Trial %d was closed by another worker; its result is dropped"
            log.warning(message, trial.number)
        else:
            text = "pruned" if outcome is None else _shown(outcome)
            log.info("Trial %d: %s", trial.number, text)

    def _too_many_failures(self, trials: Sequence[FrozenTrial]) -> SweepError | None:
        """Return with what the search ends for what failed since its start; None: it continues."""
        failures, limit = self._ledger.new_failures(trials), self.options.max_failures
        misnamed = [f for f in failures if UNKNOWN_OBJECTIVE in f.user_attrs]
        if misnamed and not any(t.values for t in trials):
            return SweepError(str(misnamed[0].user_attrs[ledger.FAILURE]))
        if limit is None or len(failures) < limit:
            return None
        lines = [f"  trial {t.number}: {t.user_attrs.get(ledger.FAILURE, '')}" for t in failures]
        done = ledger.finished(trials)
        return SweepError(
            f"{len(failures)} trials failed (max_failures={limit}); the search stops at {done} of "
            f"{self._total} finished. The same command resumes it.\n" + "\n".join(lines)
        )

    # --- the end --------------------------------------------------------------------------------

    def _result(self) -> SearchResult:
        with storage.errors_in_one_line(self._storage_name):
            return SearchResult(
                study=self._handle.study,
                trials=self._handle.trials(),
                best=results.best_trials(self._handle.study),
                objective=self.options.objectives,
                folder=self._results,
                space=self.space,
                leader=False,
            )

    def _summarise(self, result: SearchResult) -> None:
        if not result.best:
            self._raise_first_error()
            log.warning("No trial of study %s has a result", self._handle.name)
        for trial in result.best:
            params = " ".join(f"{name}={value}" for name, value in trial.params.items())
            log.info("Best: trial %d with %s: %s", trial.number, params, _shown(trial.values))

    def _raise_first_error(self) -> None:
        """Fail as the first job did where every job failed, like the basic sweeper."""
        for job_return in itertools.chain.from_iterable(self._returns):
            if job_return.status == JobStatus.FAILED and not is_pruned(job_return):
                _ = job_return.return_value

    def _finish(self, result: SearchResult, *, leads: bool) -> None:
        """Call `on_finish`; of several workers that would lead one does."""
        with results.only_one(self._results) if leads else contextlib.nullcontext(False) as leader:
            self._hooks["on_finish"](replace(result, leader=leader), self.config)


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
