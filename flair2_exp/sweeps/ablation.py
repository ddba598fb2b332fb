"""The sweeper of `--multirun` and of `sweep=...`: an ablation that survives what machines do.

It is Hydra's basic sweeper with a memory. Before the first job all are composed and checked; jobs
whose folder holds a finished run are skipped, interrupted ones go on, failed ones are tried again;
a failing job does not end the sweep; the end is a report with error bars. All state lies in the
jobs' folders (`run.json`), so the same command, given again, completes the sweep.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from flair2_exp.cli.preflight import require_writable
from flair2_exp.config import schema
from flair2_exp.errors import FlairError
from flair2_exp.files import write_text
from flair2_exp.locking import locked, wait_until_free
from flair2_exp.optuna_sweeper.plugin import register_sweeper
from flair2_exp.run.assembly import open_store
from flair2_exp.sweeps.failures import (
    Failure,
    Traced,
    absent_runs,
    clear_error,
    failed_jobs,
    failure_table,
    mark_failed,
)
from flair2_exp.sweeps.plan import (
    DONE,
    FAILED,
    Job,
    choose_baseline,
    choose_factors,
    distributes,
    estimates,
    is_typed,
    plan,
    require_files,
    same_experiments,
    split,
)

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction

    from flair2_exp.tracking.run import Run

log = logging.getLogger(__name__)

SWEEP_FILE: Final = "sweep.json"
REPORT: Final = "report"
JOBS_FILE: Final = "sweep/jobs.txt"
KEY_TAG: Final = "flair2.sweep_key"
_ONE_AT_A_TIME: Final = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


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

        Args:
            arguments: The overrides of the command line.

        Returns:
            Hydra's job returns, a list a launch; empty after a dry run.

        Raises:
            FlairError: A job that cannot run (before any has), or failed jobs (after all have).
        """
        config, launcher = self.config, self.launcher
        if config is None or launcher is None:
            raise RuntimeError("setup() comes before sweep()")
        options = schema.SweepConfig(**OmegaConf.to_container(config.sweep, resolve=True))  # type: ignore[arg-type]
        folder = Path(config.hydra.sweep.dir).absolute()
        asked = split(arguments, self.params, self.config_loader)
        jobs = plan(asked, config.hydra.sweep)
        if not distributes(config.hydra.launcher):
            require_files(jobs)
        typed = is_typed("sweep.baseline", arguments)
        options.baseline, on_baseline = choose_baseline(jobs, options.baseline, typed=typed)
        typed = is_typed("sweep.factors", arguments)
        options.factors, on_factors = choose_factors(jobs, options.factors, typed=typed)
        notes = filter(None, (same_experiments(jobs), on_baseline, on_factors))
        table = "\n".join((job_table(jobs), *notes))
        print(table, flush=True)
        if options.dry_run:
            return []
        require_writable(folder)
        with locked(folder, "start another sweep with sweep.name=NAME") as held:
            for job in jobs:  # another start may have worked on them since they were planned
                job.refresh()
            OmegaConf.save(config, folder / "multirun.yaml")
            with open_parent(options, folder, jobs[0].config, take_over=held) as parent:
                parent.log_text(table + "\n", JOBS_FILE)
                failures: dict[int, Failure] = {}
                launched = self._launch(jobs, options, launcher, failures)
                finish(jobs, failures, options, folder, parent)
        return launched

    def _launch(
        self,
        jobs: Sequence[Job],
        options: schema.SweepConfig,
        launcher: Launcher,
        failures: dict[int, Failure],
    ) -> list[list[JobReturn]]:
        """Launch all that is not done, in batches; `failures` takes what fails, by job number."""
        launched: list[list[JobReturn]] = []
        waiting = [job for job in jobs if job.state != DONE]
        size = self._batch_size(launcher, fail_fast=options.fail_fast) or len(waiting)
        batches = deque(waiting[at : at + size] for at in range(0, len(waiting), max(1, size)))
        while batches and not (options.fail_fast and failures):
            batch = batches.popleft()
            before = {job.number: job.stamp for job in batch}
            try:
                returns = self._launch_batch(batch, launcher)
            except Exception as error:  # a worker killed by the system takes its batch with it
                for job in batch:
                    wait_until_free(job.folder)  # submitit raises while the others are at work
                    job.refresh()
                    began = job.stamp != before[job.number]
                    if len(batch) == 1:
                        mark_failed(job, error, failures, began=began)
                    elif job.state == FAILED and began:
                        mark_failed(job, job.found and job.found.error, failures, began=True)
                batches.extendleft(reversed(launched_again(batch, before)))
                continue
            launched.append(returns)
            for job, result in zip(batch, returns, strict=True):
                job.refresh()
                if result.status == JobStatus.FAILED:
                    began = job.stamp != before[job.number]
                    mark_failed(job, result._return_value, failures, began=began)
                else:
                    clear_error(job)
        return launched

    def _batch_size(self, launcher: Launcher, *, fail_fast: bool) -> int | None:
        """How many jobs the launcher gets at once; None: all."""
        name = f"{type(launcher).__module__}.{type(launcher).__qualname__}"
        if self.max_batch_size or name == _ONE_AT_A_TIME:
            return self.max_batch_size or 1
        if not fail_fast or self.config is None:
            return None
        # A launcher answers when its whole batch has ended: with more jobs than it runs at a time,
        # some would begin after the first failure.
        names = ("n_jobs", "array_parallelism")  # of the joblib and the submitit launcher
        told = [OmegaConf.select(self.config, f"hydra.launcher.{name}") for name in names]
        at_once = int(told[0] or told[1] or 1)
        return at_once if at_once > 0 else os.cpu_count()  # joblib: -1 is all processors

    def _launch_batch(self, batch: Sequence[Job], launcher: Launcher) -> list[JobReturn]:
        """Hand a batch to Hydra's launcher, which numbers jobs from the first one's number on."""
        first = batch[0].number
        if all(job.number == first + place for place, job in enumerate(batch)):
            return list(launcher.launch([list(job.overrides) for job in batch], first))
        # Folders may hold the job's number, so a batch with gaps says each one's.
        numbered = [[*job.overrides, f"hydra.job.num={job.number}"] for job in batch]
        return list(launcher.launch(numbered, first))


def launched_again(batch: Sequence[Job], before: Mapping[int, int]) -> list[list[Job]]:
    """What to launch again of a batch whose launcher raised; each alone raises once at most.

    Args:
        batch: The jobs, refreshed. One alone is not tried again.
        before: Their stamps before the launch.

    Returns:
        First those that had begun, each alone, for one of them has probably ended the launcher;
        then the untouched ones together. Where none had begun, they too are launched alone: so
        that every launch either gets on with a job or is of a single one, and the sweep ends.
    """
    if len(batch) == 1:
        return []
    begun = [job for job in batch if job.stamp != before[job.number]]
    untouched = [job for job in batch if job not in begun]
    alone = [[job] for job in begun if job.state not in (DONE, FAILED)]
    if not begun:
        return [[job] for job in untouched]
    return [*alone, untouched] if untouched else alone


def finish(
    jobs: Sequence[Job],
    failures: Mapping[int, Failure],
    options: schema.SweepConfig,
    folder: Path,
    parent: Run,
) -> None:
    """Write the report and tell what failed.

    Raises:
        SweepFailedError: Jobs are not done.
    """
    for job in jobs:
        job.refresh()
    parent.log_text(job_table(jobs, identities=True) + "\n", JOBS_FILE)
    failed = failed_jobs(jobs, failures)
    parent.log_metrics({"jobs/all": len(jobs), "jobs/not_done": len(failed)})
    try:
        write_report(jobs, failed, options, folder, parent)
    except FlairError as error:  # the runs are what they are, comparable or not
        print(f"no report: {error}", flush=True)
    except Exception:  # a bug in the report must not hide what failed before it
        if not failed:
            raise
        log.exception("no report")
    if failed:
        raise SweepFailedError(failure_table(failed))


def job_table(jobs: Sequence[Job], *, identities: bool = False) -> str:
    """The jobs with their state, for the terminal and the parent run.

    Args:
        jobs: Of the sweep.
        identities: Show the runs' identities, as their MLflow runs have them. They hold the data's
            fingerprint, so that before the runs only the hash of each config alone is known.
    """
    from flair2_exp.report.words import duration

    head = ("job", "row", "seed", "identity" if identities else "config", "state", "estimate")
    rows = [head]
    estimated = estimates(jobs)
    for job, seconds in zip(jobs, estimated, strict=True):
        told = "?" if seconds is None else "–" if job.state == DONE else duration(seconds)
        hash_ = job.identity if identities else job.config_hash
        rows.append((str(job.number), job.row, str(job.config.seed), hash_, job.state, told))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    known = [seconds for seconds in estimated if seconds is not None]
    whole = duration(sum(known)) if len(known) == len(jobs) else "unknown"
    lines.append(f"{len(jobs)} jobs, {sum(j.state == DONE for j in jobs)} done; to go: {whole}")
    return "\n".join(line.rstrip() for line in lines)


def open_parent(
    options: schema.SweepConfig, folder: Path, config: schema.Config, *, take_over: bool = False
) -> Run:
    """The sweep's own MLflow run, the same one when the sweep is taken up again.

    Args:
        options: The sweep's.
        folder: The sweep's, absolute.
        config: Of one of its jobs, for the store.
        take_over: The caller holds the folder.
    """
    from flair2_exp.tracking.run import NullRun, TrackedRun

    store = open_store(config)
    if store is None:
        return NullRun()
    experiment = store.ensure_experiment(config.tracking.experiment)
    store.close_dead_runs()
    noted = _noted(folder)
    key = noted.get("key") or uuid.uuid4().hex
    tags = {
        "flair2.sweep": options.name,
        "flair2.kind": "sweep",
        "flair2.folder": str(folder),
        KEY_TAG: key,
    }
    pending = folder / "unsent"
    earlier = noted.get("parent_run_id")
    if not earlier:
        # The key is on the disk before the run is made: a process that is killed before it has
        # noted the run's id finds the run by it, and no sweep gets two parents.
        _note(folder, name=options.name, key=key)
        earlier = store.find_run(experiment, {KEY_TAG: key}) if "key" in noted else None
    if earlier:
        run = TrackedRun.resume(store, earlier, pending=pending, tags=tags, take_over=take_over)
    else:
        run = TrackedRun.start(store, experiment, name=options.name, pending=pending, tags=tags)
    _note(folder, name=options.name, key=key, parent_run_id=run.run_id)
    return run


def _noted(folder: Path) -> dict[str, str]:
    try:
        noted = json.loads((folder / SWEEP_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _note(folder: Path, **values: str) -> None:
    write_text(folder / SWEEP_FILE, json.dumps(values) + "\n")


def parent_of(folder: Path) -> str | None:
    """The MLflow run of the sweep in a folder, or None where it has none."""
    return _noted(folder).get("parent_run_id")


def write_report(
    jobs: Sequence[Job],
    failed: Sequence[tuple[Job, Failure | None]],
    options: schema.SweepConfig,
    folder: Path,
    parent: Run,
) -> None:
    """Turn the finished runs into an answer: files in the sweep's folder and on the parent run."""
    if not options.report or not any(job.state == DONE and job.config.test for job in jobs):
        return
    from flair2_exp.report.collect import read_folders
    from flair2_exp.report.render import headline, page, report_runs

    found = read_folders([each.folder for each in jobs if (each.folder / "config.yaml").is_file()])
    report = report_runs(
        found.runs,
        folder / REPORT,
        absent=[*found.absent, *absent_runs(failed)],  # the sweep knows best: it is the last word
        expected=[(job.row, job.config.seed) for job in jobs],
        baseline=options.baseline,
        factors=options.factors,
        title=options.name,
    )
    for path in report.paths:
        parent.log_artifact(path, REPORT)
    parent.log_metrics(headline(report))
    parent.describe(page(report))


def register() -> None:
    """Make the sweeper known to Hydra; harmless when repeated."""
    from hydra.core.config_store import ConfigStore

    target = register_sweeper(AblationSweeper, "flair2_exp")
    ConfigStore.instance().store(
        group="hydra/sweeper",
        name="ablation",
        node={"_target_": target, "params": None, "max_batch_size": None},
        provider="flair2_exp",
    )
