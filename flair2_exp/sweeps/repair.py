"""What killed processes and removed folders leave behind, and how it is set right.

What is sound is kept: checkpoints, scores and histories appear whole (`files.replacing`), so that
only records which claim that a run is at work, files that were never moved into place, and MLflow
runs without a folder are left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flair2_exp.engines import watching
from flair2_exp.engines.engine import LIVE
from flair2_exp.engines.job import Submission
from flair2_exp.errors import FlairError, TrackingError
from flair2_exp.files import half_written
from flair2_exp.lifecycle.assembly import store_at
from flair2_exp.lifecycle.delivery import address_of
from flair2_exp.lifecycle.folder import RunFolder, run_folders
from flair2_exp.lifecycle.record import KILLED, RUNNING, RunRecord
from flair2_exp.locking import holder_of, locked
from flair2_exp.results.finding import local_store
from flair2_exp.sweeps.removal import delete_runs
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from flair2_exp.tracking.store import Store


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        text: What it is.
        remedy: What is done about it; empty where nothing is done by itself.
        mend: Does it; returns what was in the way, empty where it is done.
        removes: Whether that removes something from MLflow.
    """

    text: str
    remedy: str = ""
    mend: Callable[[], str] | None = None
    removes: bool = False


def faults_of_runs(folders: Iterable[Path]) -> Iterator[Fault]:
    """Yield what is wrong with the runs below folders; those at work are left alone."""
    for start in folders:
        for folder in run_folders(start):
            if not holder_of(folder.path) and not _is_live(folder):
                yield from _of_record(folder)
                yield from _of_files(folder)


def faults_of_store(uri: str, folders: Sequence[Path]) -> Iterator[Fault]:
    """Yield what is wrong with the MLflow runs of a store.

    Args:
        uri: Of the store. Runs without a folder are removed from a local one alone: on a server,
            which has runs of other machines, they are their owners'.
        folders: Below which runs are; those of other places are left alone.

    Raises:
        TrackingError: The store does not answer.
    """
    from flair2_exp.tracking.process import WriterProcess
    from flair2_exp.tracking.store import search_runs

    store = store_at(uri)
    every = store.call("listing runs", lambda client: search_runs(client, {}))
    dead = [
        run
        for run in every
        if run.info.status == "RUNNING"
        and (writer := WriterProcess.from_tags(run.data.tags)) is not None
        and writer.has_ended(shared_store=not store.is_local)
    ]
    if dead:
        named = ", ".join(run.info.run_name or run.info.run_id for run in dead[:3])
        more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
        yield Fault(
            f"{store}: RUNNING in MLflow, though the process has ended: {named}{more}",
            "close them with the status that their folders have, else as KILLED",
            lambda: "" if store.close_dead_runs() else "none was closed",
        )
    if store.is_local:
        gone = [run for run in every if run not in dead and _is_gone(run, folders)]
        for run in gone:
            yield _without_folder(store, run)


def stores_of(folders: Iterable[Path]) -> list[str]:
    """Return the addresses of the stores of the runs below folders, and the local one if it is."""
    from flair2_exp.tracking.store import database_path

    uris = [local_store()]
    for start in folders:
        for folder in run_folders(start):
            with suppress(FlairError):
                record = RunRecord.read(folder)
                if record is not None and record.run_id:
                    uris.append(address_of(folder, record))
    return [
        uri
        for uri in dict.fromkeys(filter(None, uris))
        if not uri.startswith("sqlite:") or database_path(uri).is_file()
    ]


def _is_live(folder: RunFolder) -> bool:
    """Return whether an engine has the run, or does not say that it has not."""
    job = Submission.read(folder)
    if job is None:
        return False
    try:
        states = watching.states_of({"job": job}, guess=False)
    except FlairError:
        return True
    return states.get("job") in (*LIVE, watching.UNKNOWN)


def _of_record(folder: RunFolder) -> Iterator[Fault]:
    try:
        record = RunRecord.read(folder)
    except FlairError as error:
        yield Fault(str(error).splitlines()[0])
        return
    if record is None:
        yield Fault(
            f"{folder}: no readable {folder.record.name}: it cannot resume, and no table has its "
            f"score. `flair2-exp rm {folder}` removes it."
        )
    elif record.status == RUNNING:
        yield Fault(
            f"{folder}: {RUNNING} by its record, though no process is at work in it",
            f"set to {KILLED}; it resumes as before",
            lambda: _close(folder),
        )


def _close(folder: RunFolder) -> str:
    """Note in a run's record that it was killed, at the time of its last sign."""
    try:
        with locked(folder.path) as supported:
            record = RunRecord.read(folder)
            if not supported:
                return "this file system has no locks: whether a process is at work is not known"
            if record is None or record.status != RUNNING:
                return "it has changed meanwhile"
            signs = (folder.record, folder.history, folder.last, folder.log)
            end = max(path.stat().st_mtime for path in signs if path.exists())
            record.finish(KILLED)
            record.end = int(1000 * min(end, time.time()))
            record.write(folder)
    except FlairError as error:
        return str(error).splitlines()[0]
    return ""


def _of_files(folder: RunFolder) -> Iterator[Fault]:
    left = half_written(folder.path)
    left += [path for path in (folder.reserve, folder.writing) if path.exists()]
    if left:
        names = ", ".join(str(path.relative_to(folder.path)) for path in left)
        size = sum(path.stat().st_size for path in left) / 1e6
        yield Fault(f"{folder}: left half written: {names} ({size:.1f} MB)", "remove them",
                    lambda: _unlink(left))  # fmt: skip


def _unlink(paths: Sequence[Path]) -> str:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            return f"{path}: {error.strerror}"
    return ""


def _is_gone(run: MlflowRun, folders: Sequence[Path]) -> bool:
    """Return whether a run's folder was below these, on this machine, and is there no more."""
    named = run.data.tags.get(Tag.FOLDER, "")
    path = Path(named)
    return bool(named) and not path.exists() and any(path.is_relative_to(each) for each in folders)


def _without_folder(store: Store, run: MlflowRun) -> Fault:
    def remove() -> str:
        try:
            delete_runs(store, [run.info.run_id])
        except TrackingError as error:
            return str(error).splitlines()[0]
        return ""

    name = run.info.run_name or run.info.run_id
    text = f"{store}: MLflow run {name} was in {run.data.tags[Tag.FOLDER]}, which is gone"
    return Fault(text, "remove it from MLflow", remove, removes=True)
