"""How far a sweep or a search is, from its folder alone; and how to end it.

Nothing heavy is imported, and nothing is asked of MLflow: it may be on another machine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flair2_exp.engines import watching
from flair2_exp.engines.engine import ACTIVE, CANCELLED, LIVE, last_words
from flair2_exp.engines.job import Submission
from flair2_exp.engines.watching import UNKNOWN
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.files import write_text
from flair2_exp.lifecycle.folder import (
    JOBS_FILE,
    SWEEP_CONFIG,
    RunFolder,
    natural_key,
    run_folders,
)
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.locking import holder_of, lock_time, wait_until_free
from flair2_exp.results.run import (
    DONE,
    ENDED_SILENTLY,
    FAILED,
    STOPPED,
    RecordedRun,
    state_of,
)
from flair2_exp.tracking.tags import Tag

WAITING: Final = "waiting"


@dataclass(frozen=True)
class JobState:
    """Where one job of a sweep is.

    Attributes:
        row: Of the leaderboard, or a search's trial.
        seed: -1 for a trial.
        folder: The run's.
        state: `waiting` (not started), `queued`, `running`, `done`, `failed`, `stopped` (resumes
            with the sweep's command), `cancelled`, `unknown` (the engine does not answer).
        epoch: Epochs that are complete.
        epochs: Of the whole training; 0 where not known.
        score: On the test split, else on the validation split; None where there is none yet.
        note: Where it is, or why it failed.
        seconds: Since it was queued or started; None where that is not known.
        process: Who is at work in its folder, as `process 12 on host`; empty where nobody is, or an
            engine's machine does not show it.
        seconds_per_epoch: Of this process, on average; None before its first epoch ends.
        seconds_left: Of training at this pace; None where that is not known.
    """

    row: str
    seed: int
    folder: RunFolder
    state: str
    epoch: int = 0
    epochs: int = 0
    score: float | None = None
    note: str = ""
    seconds: float | None = None
    process: str = ""
    seconds_per_epoch: float | None = None
    seconds_left: float | None = None


def write_jobs(folder: Path, jobs: Sequence[tuple[str, int, RunFolder]]) -> None:
    """Note the jobs of a sweep in its folder: those that are not started have none of their own."""
    values = [
        {"row": row, "seed": seed, "folder": os.path.relpath(own.path, folder)}
        for row, seed, own in jobs
    ]
    write_text(folder / JOBS_FILE, json.dumps(values, indent=1) + "\n")


def sweeps_below(folder: Path) -> Iterator[Path]:
    """Yield the folders of sweeps and searches below one, or itself."""
    if (folder / SWEEP_CONFIG).is_file():
        yield folder
        return
    for config in sorted(folder.glob(f"*/{SWEEP_CONFIG}")):
        yield config.parent


def overview(folder: Path) -> list[JobState]:
    """Return where the jobs of a sweep or a search are.

    Raises:
        ConfigError: It is not a sweep's.
    """
    if not (folder / SWEEP_CONFIG).is_file():
        raise ConfigError(f"{folder} is not the folder of a sweep or a search.")
    planned = _planned(folder)
    folders = [own for _, _, own in planned]
    folders += [own for own in _started(folder) if own not in folders]
    names = {own.path: (row, seed) for row, seed, own in planned}
    submissions = {str(own): job for own in folders if (job := Submission.read(own)) is not None}
    try:
        states = watching.states_of(submissions, guess=False)
    except FlairError:
        states = dict.fromkeys(submissions, UNKNOWN)
    return [
        _state_of(own, names.get(own.path), submissions.get(str(own)), states.get(str(own), ""))
        for own in folders
    ]


def _planned(folder: Path) -> list[tuple[str, int, RunFolder]]:
    try:
        values = json.loads((folder / JOBS_FILE).read_text("utf-8"))
        return [(each["row"], each["seed"], RunFolder(folder / each["folder"])) for each in values]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # of a search, or of an earlier version


def _started(folder: Path) -> Iterator[RunFolder]:
    """Yield the folders below a sweep's in which a run began or was submitted, in natural order."""
    begun = []
    for path, folders, files in os.walk(folder):
        own = RunFolder(Path(path))
        if {own.record.name, own.job.name} & {*files}:
            begun.append(own)
            folders.clear()
    yield from sorted(begun, key=lambda own: natural_key(own.path))


def state_of_run(folder: RunFolder) -> JobState:
    """Return where a run is that belongs to no sweep."""
    record = None
    with suppress(ConfigError):  # of another version
        record = RunRecord.read(folder)
    name = (record.row, record.seed) if record is not None else (folder.path.name, -1)
    return _state_of(folder, name, None, "")


def at_work(folder: Path) -> list[JobState]:
    """Return the runs below a folder that processes are at work in."""
    busy = [each for each in run_folders(folder) if holder_of(each.path)]
    return [each for each in map(state_of_run, busy) if each.state == ACTIVE]


def _state_of(
    folder: RunFolder, name: tuple[str, int] | None, job: Submission | None, live: str
) -> JobState:
    record = None
    with suppress(ConfigError):
        record = RunRecord.read(folder)
    row, seed = name or (f"trial {folder.path.name}", -1)  # of a search, which plans none
    state, note = _state_and_note(folder, record, job, live)
    run = RecordedRun(folder, record or RunRecord({}))
    epoch, epochs, score = _progress(run)
    since = job.time if job is not None else run.record.start
    seconds = time.time() - since / 1000 if since and state in LIVE else None
    process = holder_of(folder.path) if state == ACTIVE else ""
    pace = _seconds_per_epoch(run, epoch) if process else None
    left = None
    if pace is not None and epochs and not run.record.training:
        left = max(0.0, (epochs - epoch) * pace)
    return JobState(row, seed, folder, state, epoch, epochs, score, note, seconds, process, pace,
                    left)  # fmt: skip


def _state_and_note(
    folder: RunFolder, record: RunRecord | None, job: Submission | None, live: str
) -> tuple[str, str]:
    """Return a job's state, and where it is or why it failed."""
    where = f"{job.engine} {job.id}" if job is not None else ""
    state, note = state_of(folder, record)
    if state == DONE:
        return DONE, ""
    if live in LIVE:
        return live, where
    if state == ACTIVE:  # a run that no engine has started, or that an engine cannot see from here
        return ACTIVE, note
    if live in (CANCELLED, UNKNOWN):
        return live, where
    if record is None:
        words = last_words(folder)
        if words:
            return FAILED, words
        return (STOPPED, ENDED_SILENTLY) if job is not None else (WAITING, "")
    return state, note


def _progress(run: RecordedRun) -> tuple[int, int, float | None]:
    """Return the complete epochs, those of the whole training, and the newest mIoU."""
    epochs, done, score = 0, 0, None
    with suppress(OSError, ValueError):
        option = re.search(r"^  max_epochs: (\d+)$", run.folder.config.read_text("utf-8"), re.M)
        epochs = int(option[1]) if option else 0
    with suppress(FlairError):
        if run.history:
            last = run.history[-1]  # whose number counts those of another run's checkpoint, too
            done, score = int(last["epoch"]), last.get("val/miou")
    scores = run.record.scores
    return done, epochs, scores.get("test/miou", scores.get("best/val/miou", score))


def _seconds_per_epoch(run: RecordedRun, epoch: int) -> float | None:
    """Return how long an epoch takes the process at work; None where it has trained none yet.

    Args:
        run: In whose folder the process is at work.
        epoch: The last complete one.
    """
    start, epochs = run.record.resumed / 1000, epoch - run.record.resumed_epochs
    taken = lock_time(run.folder.path)
    if epochs < 1 or taken is None or start < taken:  # the record is of the process before
        return None
    with suppress(OSError):
        spent = run.folder.history.stat().st_mtime - start
        return spent / epochs if spent > 0 else None
    return None


# --- ending -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cancelled:
    """What was done to end a sweep.

    Attributes:
        jobs: How many jobs were asked to end, or taken out of a queue.
        elsewhere: The process of the sweep's own command, where it runs on another machine; "".
    """

    jobs: int
    elsewhere: str = ""


_HOLDER: Final = re.compile(r"process (\d+) on (.+)")


def cancel(folder: Path) -> Cancelled:
    """End a sweep's or a run's jobs with a checkpoint, and the command that waits for them.

    The jobs are marked as cancelled, so that the sweep's command starts them again on request
    alone (`sweep.cancelled=resume`). A single run is asked to end by a signal.

    Args:
        folder: A sweep's, a search's, or that of one of their runs.

    Raises:
        FlairError: There is no such sweep or run, or an engine does not answer.
    """
    own = RunFolder(folder)
    submitted = Submission.read(own) is not None
    if not submitted and not (folder / SWEEP_CONFIG).is_file():
        return _end_single(own)
    folders = [own] if submitted else list(_started(folder))
    jobs = {str(each): job for each in folders if (job := Submission.read(each)) is not None}
    live = {key: jobs[key] for key, state in watching.states_of(jobs).items() if state in LIVE}
    for key, job in live.items():
        job.cancelled = True
        job.write(RunFolder(Path(key)))
    # The command first: it would start the next job as soon as one has ended. Where its jobs end
    # with it, it stops them itself, and a second signal would cost them their checkpoint.
    elsewhere = "" if submitted else _end_command(folder)
    states = watching.states_of(live)
    left = {key: job for key, job in live.items() if states[key] in LIVE}
    watching.stop(left)
    return Cancelled(len(live), elsewhere)


def _end_single(folder: RunFolder) -> Cancelled:
    """End the process of a run that no engine has started."""
    record = RunRecord.read(folder)
    if record is None:
        raise ConfigError(f"{folder} is not the folder of a sweep, a search or a run.")
    if Tag.SWEEP in record.tags:
        raise ConfigError(
            f"{folder} is one of the runs of {record.tags[Tag.SWEEP]}, which are at work in the "
            "process of the whole sweep: name that."
        )
    holder = holder_of(folder.path)
    elsewhere = _end_command(folder.path)
    return Cancelled(int(bool(holder) and not elsewhere), elsewhere)


def _end_command(folder: Path) -> str:
    """End the process that holds a sweep's or a run's folder; return it where it is elsewhere."""
    match = _HOLDER.search(holder_of(folder))
    if match is None:
        return ""
    if match[2] != socket.gethostname():
        return match[0]
    with suppress(OSError):
        os.kill(int(match[1]), signal.SIGTERM)
    wait_until_free(folder)
    return ""
