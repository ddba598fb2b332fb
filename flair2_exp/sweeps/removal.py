"""Removing runs and sweeps: the folder and what MLflow has of it, together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from flair2_exp.errors import ConfigError, FlairError, TrackingError
from flair2_exp.lifecycle.assembly import store_at
from flair2_exp.lifecycle.delivery import address_now, address_of
from flair2_exp.lifecycle.folder import SWEEP_CONFIG, RunFolder, run_folders
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.locking import holder_of, locked
from flair2_exp.results.finding import is_run_id, locate, multirun, results_folders
from flair2_exp.sweeps.parent import Notes
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.tracking.store import Store


@dataclass(frozen=True)
class Removal:
    """What is to be removed together.

    Attributes:
        folder: Of a run, a sweep or a search.
        runs: How many runs are in it.
        size: Bytes of its files.
        mlflow_runs: Ids of MLflow runs, by the address of their store.
    """

    folder: Path
    runs: int
    size: int
    mlflow_runs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def remove(self, *, folder_only: bool = False) -> None:
        """Remove it: from MLflow first, so that what fails there leaves the folder as it is.

        Raises:
            FlairError: A process is at work in it, a store does not answer, or a file cannot be
                removed.
        """
        with locked(self.folder):
            for uri, ids in {} if folder_only else self.mlflow_runs.items():
                try:
                    store = _store(uri)
                    if store is not None:
                        delete_runs(store, ids)
                except TrackingError as error:
                    raise TrackingError(
                        f"{str(error).splitlines()[0]}\n{self.folder} is still there: give the "
                        "command again when the store answers, or with --folder-only."
                    ) from error
            try:
                shutil.rmtree(self.folder)
            except OSError as error:
                raise ConfigError(
                    f"{error.filename} cannot be removed: {error.strerror}.\nA part of "
                    f"{self.folder} is still there: correct that, and remove it by hand."
                ) from error
        if self.folder.parent not in [each.resolve() for each in results_folders()]:
            with suppress(OSError):  # other runs of this name are there
                self.folder.parent.rmdir()


def removal_of(word: str, tracking_uri: str = "") -> Removal:
    """Return what a word names, checked; nothing is removed.

    Args:
        word: The folder of a run or a sweep, a sweep's name, or the id of an MLflow run.
        tracking_uri: Of the store that knows the id.

    Raises:
        FlairError: It names neither, lies outside of the folders of results, or a process is at
            work in it.
    """
    folder = _folder_of(word, tracking_uri).resolve()
    _require_among_results(folder)
    runs = list(run_folders(folder))
    sweep = (folder / SWEEP_CONFIG).is_file()
    if not sweep and [run.path for run in runs] != [folder]:
        raise ConfigError(
            f"{folder} is not the folder of a run or a sweep: nothing of it is removed.\n"
            "Name one, as outputs/NAME/TIME or multirun/SWEEP; `flair2-exp runs` lists them."
        )
    for path in (folder, *(run.path for run in runs)):
        if holder := holder_of(path):
            raise ConfigError(
                f"{path} is in use by {holder}.\nWait for it or end it (flair2-exp cancel)."
            )
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    ids: dict[str, list[str]] = {}
    for uri, run_id in _mlflow_runs(folder, runs, sweep=sweep):
        if run_id not in ids.setdefault(uri, []):
            ids[uri].append(run_id)
    return Removal(folder, len(runs), size, ids)


def delete_runs(store: Store, ids: Sequence[str]) -> int:
    """Delete MLflow runs, and of a local store their artifacts; return how many were there.

    A server keeps the artifacts of a deleted run until its owner calls `mlflow gc`.

    Raises:
        TrackingError: The store does not answer.
    """
    found = [run for each in ids if (run := store.find(each)) is not None]
    alive = [run.info.run_id for run in found if run.info.lifecycle_stage != "deleted"]
    store.call_each("deleting runs", lambda client, run_id: client.delete_run(run_id), alive)
    for run in found:
        place = Path(unquote(urlsplit(run.info.artifact_uri or "").path)).parent
        own = store.folder is not None and place.is_relative_to(store.folder)
        if own and place.name == run.info.run_id:
            shutil.rmtree(place, ignore_errors=True)
    return len(found)


def _folder_of(word: str, tracking_uri: str) -> Path:
    for folder in (Path(word).expanduser(), multirun() / word):
        if folder.is_dir() and word not in ("", "."):
            return folder
    if not is_run_id(word):
        raise ConfigError(
            f"{word}: no such folder, and no sweep of this name in {multirun()}.\n"
            "`flair2-exp runs` lists the runs that there are."
        )
    place = locate(word, tracking_uri).folder
    assert place is not None, "an id leads to a folder"
    return place.path


def _require_among_results(folder: Path) -> None:
    roots = [each.resolve() for each in results_folders()]
    if folder in roots:
        raise ConfigError(
            f"{folder} holds all results: name the runs or the sweeps to remove.\n"
            "`flair2-exp runs` lists them."
        )
    if not any(folder.is_relative_to(root) for root in roots):
        where = " or ".join(map(str, roots)) or f"outputs or multirun of {Path.cwd()}"
        raise ConfigError(
            f"{folder} is not below {where}: nothing outside of them is removed.\n"
            "Change to the folder that holds its outputs and multirun, or set FLAIR2_EXP_ROOT to "
            "that folder."
        )


def _mlflow_runs(
    folder: Path, runs: Sequence[RunFolder], *, sweep: bool
) -> Iterator[tuple[str, str]]:
    """Yield store and id of the MLflow runs of runs, and of their sweep's or search's own."""
    notes = Notes.read(folder) if sweep else None
    if notes is not None and notes.parent_run_id and notes.store:
        yield address_now(notes.store, Path(notes.folder or "/"), folder), notes.parent_run_id
    for run in runs:
        try:
            record = RunRecord.read(run)
            uri = address_of(run, record) if record is not None and record.run_id else ""
        except FlairError:  # of another version, or damaged: what MLflow has is not known
            continue
        if record is not None and uri:
            yield uri, record.run_id
            parent = record.tags.get(Tag.PARENT, "")
            if sweep and parent:
                yield uri, parent


def _store(uri: str) -> Store | None:
    """Return a store; None for a local one whose database is gone, with all that it had."""
    from flair2_exp.tracking.store import database_path

    if uri.startswith("sqlite:") and not database_path(uri).is_file():
        return None
    return store_at(uri)
