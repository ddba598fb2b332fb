"""The sweeper of `--multirun` and of `sweep=...`: an ablation that survives what machines do.

It is Hydra's basic sweeper with a memory. Before the first job all are composed and checked; jobs
whose folder holds a finished run on the same data are skipped, interrupted ones resume, failed ones
are tried again; a failing job does not end the sweep; the end is a report with error bars. All
state lies in the jobs' folders (`run.json`), so the same command, given again, completes the sweep.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from flair2_exp.compat import is_basic_launcher
from flair2_exp.config.fields import build, plain
from flair2_exp.config.sweep import SweepConfig
from flair2_exp.engines.engine import ACTIVE, LIVE
from flair2_exp.engines.gpus import visible_gpus
from flair2_exp.engines.launcher import EngineLauncher
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.files import write_text
from flair2_exp.lifecycle.assembly import require_store
from flair2_exp.lifecycle.folder import SWEEP_CONFIG, Footprint, require_own_sweep, require_place
from flair2_exp.locking import is_held, locked
from flair2_exp.optuna_sweeper.config import store_once
from flair2_exp.optuna_sweeper.plugin import register_plugin
from flair2_exp.signals import Terminated
from flair2_exp.sweeps.delivery import deliver_runs
from flair2_exp.sweeps.failures import (
    Failure,
    Traced,
    absent_runs,
    failed_jobs,
    failure_table,
)
from flair2_exp.sweeps.launching import Batches, OnEngine, look_for_live
from flair2_exp.sweeps.overview import write_jobs
from flair2_exp.sweeps.parent import REPORT, SUMMARY, description, open_parent
from flair2_exp.sweeps.plan import (
    DONE,
    UNCHECKED,
    Job,
    Planner,
    choose_baseline,
    choose_factors,
    distributes,
    estimates,
    is_typed,
    require_feasible,
    require_files,
    require_launcher,
    split,
)
from flair2_exp.tracking.scrub import scrub_tree

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction

    from flair2_exp.report.results import ReportOptions
    from flair2_exp.report.runs import AbsentRun, ScoredRun
    from flair2_exp.tracking.run import Run

log = logging.getLogger(__name__)

JOBS_FILE: Final = "sweep/jobs.txt"


class SweepFailedError(FlairError):
    """Jobs of a sweep failed; the others ran."""


class AblationSweeper(Sweeper):
    """Plans, launches, survives and reports.

    Args:
        params: Overrides by key, as `hydra.sweeper.params`; the command line wins.
        max_batch_size: Jobs handed to the launcher at once; null: one for the basic launcher, all
            for others.
    """

    def __init__(
        self, params: Mapping[str, str] | None = None, max_batch_size: int | None = None
    ) -> None:
        self.params = dict(params or {})
        self.max_batch_size = max_batch_size
        self.config: DictConfig | None = None
        self.config_loader: ConfigLoader | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what the sweep needs and make its launcher (called by Hydra)."""
        self.config = config
        self.config_loader = hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Traced(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> list[list[JobReturn]]:
        """Run the sweep.

        Returns:
            Hydra's job returns, one list per launch; empty after a dry run.

        Raises:
            FlairError: A job that cannot run (before any has), or failed jobs (after all have).
        """
        config, launcher, loader = self.config, self.launcher, self.config_loader
        if config is None or launcher is None or loader is None:
            raise RuntimeError("setup() comes before sweep()")
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise ConfigError(
                f"hydra.sweeper.max_batch_size={self.max_batch_size}: expected 1 or more, or null."
            )
        sweep = Sweep(config, launcher, self.max_batch_size)
        jobs = sweep.plan(split(arguments, self.params, loader), loader, arguments)
        return [] if sweep.options.dry_run else sweep.run(jobs)


class Sweep:
    """One command's sweep, from its plan to its report.

    Args:
        config: The sweep's own config, with Hydra's node.
        launcher: Runs the jobs.
        max_batch_size: Jobs handed to the launcher at once; None: as the launcher suits.

    Attributes:
        options: The group `sweep`, with the baseline and the factors that hold here.
        folder: The sweep's, absolute.
    """

    def __init__(self, config: DictConfig, launcher: Launcher, max_batch_size: int | None) -> None:
        values: Any = OmegaConf.to_container(config.sweep, resolve=True)
        self.options = build(SweepConfig, values, "sweep.")
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self._config = config
        self._launcher = launcher
        self._max_batch_size = max_batch_size
        self._remote = distributes(config.hydra.launcher)
        self._failures: dict[int, Failure] = {}
        self._engine: OnEngine | None = None
        if isinstance(launcher, EngineLauncher):
            self._engine = OnEngine(launcher, config, self.options, self._failures)
        self._table = ""
        self._results: dict[int, tuple[int, ScoredRun]] = {}
        self._page: Path | None = None

    def plan(
        self, overrides: list[tuple[str, ...]], loader: ConfigLoader, arguments: Sequence[str]
    ) -> list[Job]:
        """Compose, check and show the jobs.

        Raises:
            FlairError: A job that cannot run.
        """
        plan = Planner(self._config, loader).plan(overrides)
        jobs = plan.jobs
        paths = (Path(each) for each in plain(jobs[0].config.paths).values())
        require_place(self.folder)
        require_own_sweep(self.folder, paths)
        require_launcher(self._config.hydra.launcher)
        if not self._remote:
            require_files(jobs)
        typed = is_typed("sweep.baseline", arguments)
        self.baseline, on_baseline = choose_baseline(jobs, self.options.baseline, typed=typed)
        typed = is_typed("sweep.factors", arguments)
        self.factors, on_factors = choose_factors(jobs, self.options.factors, typed=typed)
        notes = [*plan.notes, on_baseline, on_factors, self._on_seeds(jobs), self._on_gpus(jobs)]
        notes += [UNCHECKED] if self.options.dry_run else []
        look_for_live(jobs)
        self._table = "\n".join((job_table(jobs), *filter(None, notes)))
        print(self._table, flush=True)
        return jobs

    def _on_gpus(self, jobs: Sequence[Job]) -> str:
        """Return that there are GPUs which would idle; empty where there are none."""
        if not is_basic_launcher(self._launcher) or len(jobs) < 2:
            return ""
        if any(job.config.trainer.accelerator in ("cpu", "mps") for job in jobs):
            return ""
        devices = [job.config.trainer.devices for job in jobs]
        if -1 in devices:  # each takes all
            return ""
        at_once = len(visible_gpus()) // max(devices)
        if at_once < 2:
            return ""
        return (
            f"Jobs run one after the other, and this machine's GPUs would hold {at_once}: "
            "hydra/launcher=slots runs as many at a time."
        )

    def _on_seeds(self, jobs: Sequence[Job]) -> str:
        """Return what more seeds would show, as the finished jobs tell it; empty where none do."""
        wanted = self.options.difference
        tested = [job for job in jobs if job.state == DONE and job.config.test]
        if tested:  # else nothing heavy is imported
            from flair2_exp.report.leaderboard import outlook
            from flair2_exp.report.runs import RunSet
            from flair2_exp.report.sentences import outlook_sentence

            try:
                runs = RunSet.of(map(self._result, tested))
                found, unit = outlook(runs, replace(self._report_options(), baseline=None))
            except FlairError as error:  # the report will say so again
                return f"How many seeds? {error}"
            if found is not None:
                return outlook_sentence(found, unit, wanted)
        if wanted is None:
            return ""
        return (
            f"sweep.difference={wanted:g}: how many seeds it needs is said as soon as two seeds of "
            "a row, and another row, are done."
        )

    def _result(self, job: Job) -> ScoredRun | AbsentRun:
        """Read what a job's run counted: once, unless the run has written its record since."""
        from flair2_exp.report.folders import read_folder
        from flair2_exp.report.runs import AbsentRun

        if job.number in self._results and self._results[job.number][0] == job.stamp:
            return self._results[job.number][1]
        result = read_folder(job.folder)
        if not isinstance(result, AbsentRun):  # which may be put right meanwhile
            self._results[job.number] = job.stamp, result
        return result

    def run(self, jobs: Sequence[Job]) -> list[list[JobReturn]]:
        """Launch what is not done, and report.

        Raises:
            FlairError: A job that cannot run (before any has), or failed jobs (after all have).
        """
        if self._engine is not None:
            self._engine.require(jobs)
        elif not self.options.wait:
            raise ConfigError(
                "sweep.wait=false: only jobs of hydra/launcher=slurm continue without the command."
            )
        self._refuse_live(jobs)
        # Asking CUDA what it can do would take room on the first GPU until the sweep ends.
        elsewhere = self._remote or (self._engine is not None and bool(visible_gpus()))
        require_feasible(jobs, remote=elsewhere)
        require_store(jobs[0].config)
        from flair2_exp.tracking.provenance import collect

        with self._begun(jobs) as parent, parent:
            parent.log_text(self._table + "\n", JOBS_FILE)
            overrides = list(self._config.hydra.overrides.task)
            parent.log_files(collect(overrides).files())  # the code at submission
            deliver_runs([job.folder for job in jobs if job.state == DONE], parent.store)
            with self._counted(jobs):
                launched, left = self._launch([job for job in jobs if job.state != DONE])
            if left:
                self._leave(jobs, parent, left)
            else:
                self._finish(jobs, parent)
        if self._page is not None:
            print(f"report: {self._page}", flush=True)
        return launched

    @contextmanager
    def _counted(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Let what interrupts the sweep say how far it is, and what resumes it."""
        try:
            yield
        except (KeyboardInterrupt, Terminated) as error:
            for job in jobs:
                job.refresh()
            done = sum(job.state == DONE for job in jobs)
            words = self._config.hydra.overrides.task
            named = any(str(each).startswith(("sweep=", "sweep.name=")) for each in words)
            same = "the same command" if named else f"the same command with {self._name}"
            error.add_note(f"{done} of {len(jobs)} jobs done; {same} resumes the sweep")
            raise

    @property
    def _name(self) -> str:
        """The override that names this sweep: without one, its name is the time."""
        return f"sweep.name={shlex.quote(self.options.name)}"

    def _refuse_live(self, jobs: Sequence[Job]) -> None:
        """Refuse to start jobs that another engine has queued or running.

        Raises:
            ConfigError: There are some.
        """
        own = self._engine.name if self._engine is not None else ""
        live = [job for job in jobs if job.live in LIVE and job.engine != own]
        if live:
            raise ConfigError(
                f"{live[0]} is {live[0].live} on {live[0].engine}, one of {len(live)} such jobs: "
                f"give the command with hydra/launcher={live[0].engine}, or end them with "
                f"`flair2-exp cancel {shlex.quote(str(self.folder))}`."
            )

    @contextmanager
    def _begun(self, jobs: Sequence[Job]) -> Iterator[Run]:
        """Hold the sweep's folder, and yield its MLflow run; leave nothing where that fails."""
        before = Footprint.of(self.folder)
        with locked(self.folder, "start another sweep with sweep.name=NAME") as exclusive:
            try:
                for job in jobs:  # another start may have worked on them since they were planned
                    job.refresh()
                    job.require_same()
                clean = scrub_tree(OmegaConf.to_container(self._config))
                OmegaConf.save(OmegaConf.create(clean), self.folder / SWEEP_CONFIG)
                write_jobs(self.folder, [(job.row, job.seed, job.folder) for job in jobs])
                config = jobs[0].config
                parent = open_parent(self.options.name, self.folder, config, take_over=exclusive)
            except FlairError:
                before.restore()
                raise
            yield parent

    def _launch(self, waiting: Sequence[Job]) -> tuple[list[list[JobReturn]], int]:
        """Run jobs; return Hydra's job returns, and how many are left to an engine."""
        if self._engine is not None:
            return [], self._engine.run(waiting)
        batches = Batches(
            self._launcher,
            self._config,
            self._max_batch_size,
            fail_fast=self.options.fail_fast,
            failures=self._failures,
        )
        return batches.run(waiting), 0

    def _leave(self, jobs: Sequence[Job], parent: Run, left: int) -> None:
        """Say what is in the queue and how to come back to it."""
        look_for_live(jobs)
        table = job_table(jobs)
        parent.log_text(table + "\n", JOBS_FILE)
        parent.release()  # to whoever gives the command again
        name = shlex.quote(str(self.folder))
        print(
            f"{table}\n{left} jobs are queued or running. The same command submits what is "
            "missing then, and reports when all is done.\n"
            f"How far they are: flair2-exp status {name}\n"
            f"To end them:      flair2-exp cancel {name}",
            flush=True,
        )
        if self._failures:
            raise SweepFailedError(failure_table(failed_jobs(jobs, self._failures)))

    def _finish(self, jobs: Sequence[Job], parent: Run) -> None:
        """Write the report and name what failed.

        Raises:
            SweepFailedError: Jobs are not done.
        """
        for job in jobs:
            job.refresh()
        deliver_runs([job.folder for job in jobs if job.state == DONE], parent.store)
        parent.log_text(job_table(jobs, identities=True) + "\n", JOBS_FILE)
        failed = failed_jobs(jobs, self._failures)
        parent.log_metrics({"jobs/all": len(jobs), "jobs/not_done": len(failed)})
        try:
            self._report(jobs, failed, parent)
        except Exception as error:  # the runs are what they are, shown or not
            if not isinstance(error, FlairError | OSError | UnicodeError):
                log.exception("the report has a bug")
            log.warning(
                "no report: %s\nThe finished runs are kept. When that is corrected: %s",
                error,
                self._report_command(),
            )
        parent.describe(description(self.folder, parent.experiment_id))
        if failed:
            report = f"\nreport: {self._page}" if self._page else ""
            raise SweepFailedError(failure_table(failed) + report)

    def _report_command(self) -> str:
        """Return what to type to make the report of what is in the sweep's folder."""
        from flair2_exp.report.write import FORMATS

        words = ["flair2-exp", "report", str(self.folder)]
        words += ["--format", ",".join(FORMATS), "--out", str(self.folder / REPORT)]
        words += ["--baseline", self.baseline] if self.baseline else []
        words += ["--factors", ",".join(self.factors)] if self.factors else []
        wanted = self.options.difference
        words += [] if wanted is None else ["--difference", f"{wanted:g}"]
        return shlex.join([*words, "--title", self.options.name])

    def _report_options(self) -> ReportOptions:
        from flair2_exp.report.results import ReportOptions
        from flair2_exp.tracking.provenance import command_line

        return ReportOptions(
            title=self.options.name,
            baseline=self.baseline,
            factors=None if self.factors is None else tuple(self.factors),
            difference=self.options.difference,
            command=command_line(sys.orig_argv),
        )

    def _report(
        self,
        jobs: Sequence[Job],
        failed: Sequence[tuple[Job, Failure | None]],
        parent: Run,
    ) -> None:
        """Turn the finished runs into an answer: files in the sweep's folder and on the parent."""
        if not (self.options.report and any(j.state == DONE and j.config.test for j in jobs)):
            return
        from flair2_exp.report.page import headline, summary
        from flair2_exp.report.runs import RunSet
        from flair2_exp.report.write import PAGE, report_runs

        begun = [self._result(job) for job in jobs if job.folder.config.is_file()]
        report = report_runs(
            RunSet.of([*begun, *absent_runs(failed)]),  # the sweep has the last word on failures
            self.folder / REPORT,
            options=self._report_options(),
            expected=[(job.row, job.seed) for job in jobs],
        )
        for path in report.paths:
            parent.log_artifact(path, REPORT)
        self._page = self.folder / REPORT / PAGE
        parent.log_metrics(headline(report))
        write_text(self.folder / REPORT / SUMMARY, summary(report))


def job_table(jobs: Sequence[Job], *, identities: bool = False) -> str:
    """Return the jobs with their state, for the terminal and the parent run.

    Args:
        jobs: Of the sweep.
        identities: Show the runs' identities, as their MLflow runs have them, rather than the
            hashes that are known before the runs.
    """
    from flair2_exp.report.words import duration

    head = ("job", "row", "seed", "identity" if identities else "experiment", "state", "estimate")
    rows = [head]
    estimated = estimates(jobs)
    for job, seconds in zip(jobs, estimated, strict=True):
        expected = "?" if seconds is None else "–" if job.state == DONE else duration(seconds)
        hash_ = job.identity if identities else job.experiment
        state = job.live or (
            ACTIVE if job.state != DONE and is_held(job.folder.path) else job.state
        )
        rows.append((str(job.number), job.row, str(job.seed), hash_, state, expected))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    times = [seconds for seconds in estimated if seconds is not None]
    whole = duration(sum(times)) if len(times) == len(jobs) else "unknown"
    lines.append(f"{len(jobs)} jobs, {sum(j.state == DONE for j in jobs)} done; to go: {whole}")
    return "\n".join(line.rstrip() for line in lines)


def register() -> None:
    """Make the sweeper known to Hydra; that may be repeated."""
    target = register_plugin(AblationSweeper, "flair2_exp")
    node = {"_target_": target, "params": None, "max_batch_size": None}
    store_once("hydra/sweeper", "ablation", node, provider="flair2_exp")
