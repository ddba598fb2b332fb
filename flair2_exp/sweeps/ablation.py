"""The sweeper of `--multirun` and of `sweep=...`: an ablation that survives what machines do.

It is Hydra's basic sweeper with a memory. Before the first job all are composed and checked; jobs
whose folder holds a finished run are skipped, interrupted ones go on, failed ones are tried again;
a failing job does not end the sweep; the end is a report with error bars. All state lies in the
jobs' folders (`run.json`), so the same command, given again, completes the sweep.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from flair2_exp import run_state, schema
from flair2_exp.assembly import open_store
from flair2_exp.errors import FlairError
from flair2_exp.explain import explain
from flair2_exp.preflight import require_writable
from flair2_exp.run_state import RunState
from flair2_exp.sweeps.optuna_sweeper.plugin import register_sweeper
from flair2_exp.sweeps.plan import DONE, FAILED, NEW, Job, estimated_seconds, plan, split

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction

    from flair2_exp.tracking.run import Run

log = logging.getLogger(__name__)

SWEEP_FILE: Final = "sweep.json"
REPORT: Final = "report"
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
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what the sweep needs and make its launcher (called by Hydra)."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
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
        folder = Path(config.hydra.sweep.dir)
        jobs = plan(split(arguments, self.params), config.hydra.sweep)
        table = job_table(jobs)
        print(table, flush=True)
        if options.dry_run:
            return []
        require_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "multirun.yaml")
        with open_parent(options, folder, jobs[0].config) as parent:
            parent.log_text(table + "\n", "sweep/jobs.txt")
            launched = self._launch(jobs, options, launcher)
            failures = failed_jobs(jobs)
            try:
                write_report(jobs, options, folder, parent)
            except FlairError as error:  # the runs are what they are, comparable or not
                print(f"no report: {error}", flush=True)
            if failures:
                raise SweepFailedError(failure_table(failures))
        return launched

    def _launch(
        self, jobs: Sequence[Job], options: schema.SweepConfig, launcher: Launcher
    ) -> list[list[JobReturn]]:
        """Launch all that is not done, in batches."""
        launched: list[list[JobReturn]] = []
        waiting = [job for job in jobs if job.state != DONE]
        name = f"{type(launcher).__module__}.{type(launcher).__qualname__}"
        size = self.max_batch_size or (1 if name == _ONE_AT_A_TIME else len(waiting))
        while waiting:
            batch, waiting = waiting[:size], waiting[size:]
            try:
                returns = self._launch_batch(batch, launcher)
            except Exception as error:
                # A worker killed by the system takes its launcher's batch with it: what had not
                # begun is launched again, what had is a failure.
                for job in batch:
                    mark_failed(job, error)
                waiting = [job for job in batch if job.state == NEW and len(batch) > 1] + waiting
            else:
                launched.append(returns)
                for job, result in zip(batch, returns, strict=True):
                    if result.status == JobStatus.FAILED:
                        mark_failed(job, result._return_value)
            if options.fail_fast and any(job.state == FAILED for job in batch):
                break
        return launched

    def _launch_batch(self, batch: Sequence[Job], launcher: Launcher) -> list[JobReturn]:
        """Hand a batch to Hydra's launcher, which numbers jobs from the first one's number on."""
        first = batch[0].number
        if all(job.number == first + place for place, job in enumerate(batch)):
            return list(launcher.launch([list(job.overrides) for job in batch], first))
        # Folders may hold the job's number, so a batch with gaps says each one's.
        numbered = [[*job.overrides, f"hydra.job.num={job.number}"] for job in batch]
        return list(launcher.launch(numbered, first))


def mark_failed(job: Job, error: object) -> None:
    """Note in the job's folder why it failed, unless the run did so itself."""
    state = RunState.read(job.folder)
    if state is not None and state.status not in (run_state.FAILED, run_state.FINISHED):
        state.status, state.error = run_state.FAILED, _first_line(error)
        state.write(job.folder)
    elif state is None:
        _refused[job.folder] = _first_line(error)


_refused: dict[Path, str] = {}
"""Why jobs were refused that left no folder behind."""


def _first_line(error: object) -> str:
    told = explain(error) if isinstance(error, BaseException) else None
    return (told or f"{type(error).__name__}: {error}").splitlines()[0]


def failed_jobs(jobs: Sequence[Job]) -> list[tuple[Job, str]]:
    """The jobs that are not done, with the reason of each."""
    failures = []
    for job in jobs:
        if job.state != DONE:
            state = RunState.read(job.folder)
            reason = state.error if state else _refused.get(job.folder, "not started")
            failures.append((job, reason or "its process ended without a word"))
    return failures


def failure_table(failures: Sequence[tuple[Job, str]]) -> str:
    """What failed, why, and where to look."""
    lines = [
        f"{len(failures)} of the sweep's jobs are not done; the same command tries them again."
    ]
    lines += [
        f"  {job.row} seed={job.config.seed}: {reason.splitlines()[0]}\n    {job.folder}"
        for job, reason in failures
    ]
    return "\n".join(lines)


def job_table(jobs: Sequence[Job]) -> str:
    """The jobs with their state, for the terminal and the parent run."""
    head = ("job", "row", "seed", "identity", "state", "estimate")
    rows = [head]
    total: float | None = 0.0
    for job in jobs:
        seconds = estimated_seconds(job, jobs)
        total = None if seconds is None or total is None else total + seconds
        told = "?" if seconds is None else _duration(seconds)
        rows.append((str(job.number), job.row, str(job.config.seed), job.identity, job.state, told))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    whole = "unknown" if total is None else _duration(total)
    lines.append(f"{len(jobs)} jobs, {sum(j.state == DONE for j in jobs)} done; to go: {whole}")
    return "\n".join(line.rstrip() for line in lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def open_parent(options: schema.SweepConfig, folder: Path, config: schema.Config) -> Run:
    """The sweep's own MLflow run, the same one when the sweep is taken up again."""
    from flair2_exp.tracking.run import NullRun, TrackedRun

    store = open_store(config)
    if store is None:
        return NullRun()
    experiment = store.ensure_experiment(config.tracking.experiment)
    store.close_dead_runs()
    tags = {"flair2.sweep": options.name, "flair2.kind": "sweep", "flair2.folder": str(folder)}
    earlier = parent_of(folder)
    pending = folder / "unsent"
    if earlier:
        return TrackedRun.resume(store, earlier, pending=pending, tags=tags)
    run = TrackedRun.start(store, experiment, name=options.name, pending=pending, tags=tags)
    (folder / SWEEP_FILE).write_text(
        json.dumps({"name": options.name, "parent_run_id": run.run_id}) + "\n"
    )
    return run


def parent_of(folder: Path) -> str | None:
    """The MLflow run of the sweep in a folder, or None where it has none."""
    try:
        found: str | None = json.loads((folder / SWEEP_FILE).read_text())["parent_run_id"]
    except (OSError, ValueError, KeyError):
        return None
    return found


def write_report(
    jobs: Sequence[Job], options: schema.SweepConfig, folder: Path, parent: Run
) -> None:
    """Turn the finished runs into an answer: files in the sweep's folder and on the parent run."""
    if not options.report or not any(job.state == DONE and job.config.test for job in jobs):
        return
    from flair2_exp.report.collect import read_folders
    from flair2_exp.report.render import report_runs

    found = read_folders([each.folder for each in jobs if (each.folder / "config.yaml").is_file()])
    report = report_runs(
        found.runs,
        folder / REPORT,
        absent=found.absent,
        expected=[(job.row, job.config.seed) for job in jobs],
        baseline=options.baseline,
        factors=options.factors,
        title=options.name,
    )
    for path in report.paths:
        parent.log_artifact(path, REPORT)


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
