"""How far a sweep or a search is, from its folder alone; and how to end it.

Nothing heavy is imported, and nothing is asked of MLflow: it may be on another machine.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flair2_exp.engines import watching
from flair2_exp.engines.engine import ACTIVE, CANCELLED, LIVE, last_words
from flair2_exp.engines.job import Submission
from flair2_exp.engines.watching import UNKNOWN
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.files import write_text
from flair2_exp.lifecycle.folder import JOBS_FILE, SWEEP_CONFIG, RunFolder, natural_key
from flair2_exp.lifecycle.record import FAILED as RUN_FAILED
from flair2_exp.lifecycle.record import FINISHED, KILLED, RUNNING, TRAINED, RunRecord
from flair2_exp.locking import holder_of, wait_until_free

WAITING, DONE, FAILED, STOPPED = "waiting", "done", "failed", "stopped"


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


def write_jobs(folder: Path, jobs: Sequence[tuple[str, int, RunFolder]]) -> None:
    """Note the jobs of a sweep in its folder: those that are not started have none of their own.

    Args:
        folder: The sweep's.
        jobs: Row, seed and folder of each.
    """
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

    Args:
        folder: The sweep's.

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
    found = []
    for path, folders, files in os.walk(folder):
        own = RunFolder(Path(path))
        if {own.record.name, own.job.name} & {*files}:
            found.append(own)
            folders.clear()
    yield from sorted(found, key=lambda own: natural_key(own.path))


def _state_of(
    folder: RunFolder, name: tuple[str, int] | None, job: Submission | None, live: str
) -> JobState:
    record = None
    with suppress(ConfigError):
        record = RunRecord.read(folder)
    row, seed = name or (f"trial {folder.path.name}", -1)  # of a search, which plans none
    state, note = _state_and_note(folder, record, job, live)
    epoch, epochs, last = _progress(folder)
    scores: Mapping[str, Any] = record.scores if record is not None else {}
    score = scores.get("test/miou", scores.get("best/val/miou", last))
    since = job.time if job is not None else (record.start if record is not None else 0)
    seconds = time.time() - since / 1000 if since and state in LIVE else None
    return JobState(row, seed, folder, state, epoch, epochs, score, note, seconds)


def _state_and_note(
    folder: RunFolder, record: RunRecord | None, job: Submission | None, live: str
) -> tuple[str, str]:
    """Return a job's state, and where it is or why it failed."""
    where = f"{job.engine} {job.id}" if job is not None else ""
    if record is not None and record.status == FINISHED:
        return DONE, ""
    if live in LIVE:
        return live, where
    holder = holder_of(folder.path)
    if holder:  # a run that no engine has started, or that an engine cannot see from here
        return ACTIVE, holder
    if live == CANCELLED:
        return CANCELLED, where
    if live == UNKNOWN:
        return UNKNOWN, where
    if record is None:
        words = last_words(folder)
        if words:
            return FAILED, words
        return (STOPPED, "its process ended without a word") if job is not None else (WAITING, "")
    if record.status == RUN_FAILED:
        return FAILED, (record.error.splitlines() or [""])[0]
    ended = "by a signal" if record.status == KILLED else "its process ended without a word"
    return STOPPED, ended if record.status in (KILLED, RUNNING, TRAINED) else record.status.lower()


def _progress(folder: RunFolder) -> tuple[int, int, float | None]:
    """Return the complete epochs, those of the whole training, and the last validation's mIoU."""
    epochs, done, score = 0, 0, None
    with suppress(OSError, ValueError, KeyError, TypeError):
        text = folder.config.read_text("utf-8")
        found = re.search(r"^  max_epochs: (\d+)$", text, re.MULTILINE)
        epochs = int(found[1]) if found else 0
    with suppress(OSError, ValueError), folder.history.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            done += 1
            with suppress(ValueError, TypeError):
                score = float(line.get("val/miou") or "nan")
    return done, epochs, score if score == score else None


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
    alone (`sweep.cancelled=resume`).

    Args:
        folder: A sweep's, a search's, or that of one of their runs.

    Raises:
        FlairError: There is no such sweep or run, or an engine does not answer.
    """
    own = RunFolder(folder)
    if Submission.read(own) is None and not (folder / SWEEP_CONFIG).is_file():
        raise ConfigError(f"{folder} is not the folder of a sweep, a search or a job of one.")
    folders = [own] if Submission.read(own) is not None else list(_started(folder))
    jobs = {str(each): job for each in folders if (job := Submission.read(each)) is not None}
    live = {key: jobs[key] for key, state in watching.states_of(jobs).items() if state in LIVE}
    for key, job in live.items():
        job.cancelled = True
        job.write(RunFolder(Path(key)))
    # The command first: it would start the next job as soon as one has ended. Where its jobs end
    # with it, it stops them itself, and a second signal would cost them their checkpoint.
    elsewhere = _end_command(folder)
    states = watching.states_of(live)
    left = {key: job for key, job in live.items() if states[key] in LIVE}
    watching.stop(left)
    return Cancelled(len(live), elsewhere)


def _end_command(folder: Path) -> str:
    """End the process that holds a sweep's folder; return it where it is on another machine."""
    match = _HOLDER.search(holder_of(folder))
    if match is None or not (folder / SWEEP_CONFIG).is_file():
        return ""
    if match[2] != socket.gethostname():
        return match[0]
    with suppress(OSError):
        os.kill(int(match[1]), signal.SIGTERM)
    wait_until_free(folder)
    return ""
