"""What failed in a sweep: why, and where to read on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.config.explain import explain
from flair2_exp.files import write_text
from flair2_exp.lifecycle.record import FAILED
from flair2_exp.projects import format_exception
from flair2_exp.sweeps.plan import DONE, Job

if TYPE_CHECKING:
    from hydra.types import TaskFunction
    from omegaconf import DictConfig

    from flair2_exp.report.runs import AbsentRun

log = logging.getLogger(__name__)

_TRACEBACK: Final = "flair2_traceback"


class Traced:
    """A job's function whose exceptions carry their traceback as text.

    A launcher may run it in another process, from which an exception comes back without.
    """

    def __init__(self, function: TaskFunction) -> None:
        self.function = function

    def __call__(self, config: DictConfig) -> Any:
        """Run the job."""
        try:
            return self.function(config)
        except Exception as error:
            with suppress(AttributeError):  # an exception that takes no attributes
                error.__dict__[_TRACEBACK] = format_exception(error)
            raise


@dataclass(frozen=True)
class Failure:
    """Why a job failed in this sweep, and where to read on: a file, or at least its folder."""

    reason: str
    log: Path


def mark_failed(
    job: Job, error: object, failures: dict[int, Failure], *, began: bool = True
) -> None:
    """Note why a job failed, also in its folder unless the run did so itself.

    Args:
        job: The job, refreshed.
        error: What its launch came to.
        failures: Takes the reason.
        began: Whether the run has written its state since it was launched. If not, the state is
            that of another process, which may still be at work in the folder.
    """
    if job.state == DONE:
        return
    reason = _first_line(error)
    failures[job.number] = Failure(reason, job.folder.path)
    try:
        if began and job.record is not None and job.record.status != FAILED:
            job.record.status, job.record.error = FAILED, reason
            job.record.write(job.folder)
            job.refresh()
        failures[job.number] = Failure(reason, _write_error(job, error))
    except OSError as full:  # the disk may be what the job failed of; others may yet find room
        log.warning("%s: why it failed cannot be kept: %s", job.folder, full.strerror)


def _first_line(error: object) -> str:
    if not isinstance(error, BaseException):
        return (str(error or "").splitlines() or ["its process ended without a word"])[0]
    return (explain(error) or f"{type(error).__name__}: {error}").splitlines()[0]


def _error_files(job: Job) -> tuple[Path, Path]:
    """Return where a job's traceback goes: its own folder, or the sweep's where that is gone."""
    own = job.folder.error
    name = "_".join(Path(os.path.relpath(job.folder.path, job.root)).parts)
    return own, job.root / f"{name}.{own.name}"


def _write_error(job: Job, error: object) -> Path:
    from flair2_exp.tracking.scrub import scrub

    text = getattr(error, _TRACEBACK, f"{error}\n")
    if isinstance(error, BaseException) and _TRACEBACK not in vars(error):
        text = format_exception(error)
    own, beside = _error_files(job)
    clear_error(job)
    path = own if job.folder.path.is_dir() else beside
    write_text(path, scrub(text))
    return path


def clear_error(job: Job) -> None:
    """Remove the traceback of an earlier attempt."""
    for path in _error_files(job):
        path.unlink(missing_ok=True)


def failed_jobs(
    jobs: Sequence[Job], failures: Mapping[int, Failure]
) -> list[tuple[Job, Failure | None]]:
    """Return the jobs that are not done; without a failure where they were not started.

    One whose folder has come to hold another run is not done either, however far that is.
    """
    return [
        (job, failures.get(job.number))
        for job in jobs
        if job.state != DONE or job.number in failures
    ]


def failure_table(failed: Sequence[tuple[Job, Failure | None]]) -> str:
    """Return what failed, why, and where its log is."""
    lines = [
        f"{len(failed)} of the sweep's jobs are not done; the same command tries again what failed."
    ]
    for job, failure in failed:
        reason = failure.reason if failure else "not started"
        lines.append(f"  {job.row} seed={job.seed}: {reason}")
        if failure:
            lines.append(f"    {failure.log}")
    return "\n".join(lines)


def absent_runs(failed: Sequence[tuple[Job, Failure | None]]) -> list[AbsentRun]:
    """Return the jobs that failed, as the report shows them; others are read from their folders."""
    from flair2_exp.report.runs import AbsentRun

    states = [(job, "failed", failure.reason) for job, failure in failed if failure]
    states += [
        (job, "missing", "not started") for job, failure in failed if not (failure or job.record)
    ]
    return [AbsentRun(job.row, job.seed, state, reason) for job, state, reason in states]
