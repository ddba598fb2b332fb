"""Everything below a folder that MLflow lacks: of runs, of sweeps, of searches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flair2_exp.errors import FlairError, TrackingError
from flair2_exp.lifecycle.assembly import store_at
from flair2_exp.lifecycle.delivery import (
    Delivery,
    address_now,
    address_of,
    lacks,
    rebuild,
    send_waiting,
    settle,
    waiting,
)
from flair2_exp.lifecycle.folder import SWEEP_FILE, RunFolder, run_folders
from flair2_exp.lifecycle.record import FINISHED, KILLED, RunRecord, read_config
from flair2_exp.locking import locked
from flair2_exp.sweeps.parent import REPORT, Notes, description, parent_of, rebuild_parent
from flair2_exp.tracking.pending import Pending
from flair2_exp.tracking.store import Store
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)


def deliver_runs(folders: Iterable[RunFolder], store: Store | None, parent: str = "") -> None:
    """Send what finished runs could not; what is in the way costs a warning.

    Args:
        folders: Of runs that no process is at work on.
        store: Where their MLflow runs are; None: they have none.
        parent: The id of an MLflow run that was made again: runs that the store lost with it are
            made again as well, and all are put under it.
    """
    for folder in folders:
        if store is None or not (parent or folder.unsent.is_dir()):
            continue
        try:
            with locked(folder.path):
                record = RunRecord.read(folder)
                if record is not None and record.run_id:
                    make = rebuild if parent and lacks(store, record.run_id) else settle
                    make(folder, record, store, parent)
        except FlairError as error:
            log.warning("%s", error)


class Deliverer:
    """Delivers folder after folder; opens each store once.

    Args:
        uri: Where to deliver; empty: to the store that each folder names.
    """

    def __init__(self, uri: str = "") -> None:
        self._uri = uri
        self._stores: dict[str, Store | TrackingError] = {}

    def below(self, start: Path) -> Iterator[Delivery]:
        """Deliver all below a folder, the sweep that it lies in first.

        Yields:
            What was delivered, or what was in the way, for each folder where anything was to do.
        """
        around = _sweep_around(start)
        changed: dict[Path, None] = {}
        for path in [*([] if around is None else [around]), *_places(start)]:
            delivery = self._held(RunFolder(path))
            if delivery is not None:
                sweep = path if Notes.read(path) is not None else _sweep_around(path)
                changed |= {} if sweep is None else {sweep: None}
                yield delivery
        for sweep in changed:  # whose runs may have other ids and scores by now
            self._describe(sweep)

    def _held(self, folder: RunFolder) -> Delivery | None:
        """Deliver one folder that no other process is at work in."""
        least = 0  # whoever is at work in it delivers at its end
        try:
            with locked(folder.path):
                least = 1
                return self._deliver(folder)
        except FlairError as error:
            text = str(error).splitlines()[0]
            return Delivery(folder.path, text, max(least, waiting(folder)))

    def _describe(self, sweep: Path) -> None:
        """Give a sweep's MLflow run its description, links to its runs among it."""
        try:
            with locked(sweep):
                notes = Notes.read(sweep) or Notes()
                uri = self._uri or address_now(notes.store, Path(notes.folder or "/"), sweep)
                store = self._store(uri)
                run = store.find(notes.parent_run_id) if notes.parent_run_id else None
                if run is not None:
                    store.call("describing the sweep", partial(_describe, run=run, sweep=sweep))
        except FlairError as error:
            log.warning("%s: %s", sweep, str(error).splitlines()[0])

    def _store(self, uri: str) -> Store:
        if uri not in self._stores:
            try:
                self._stores[uri] = store_at(uri)
            except TrackingError as error:
                self._stores[uri] = error
        store = self._stores[uri]
        if isinstance(store, TrackingError):
            raise store
        return store

    def _deliver(self, folder: RunFolder) -> Delivery | None:
        notes, record = Notes.read(folder.path), RunRecord.read(folder)
        if notes is not None:
            return self._deliver_parent(folder, notes)
        uri = self._uri or address_of(folder, record)
        if not uri:
            return _undeliverable(folder)
        store = self._store(uri)
        if record is None:
            run = store.find(Pending(folder.unsent).target.get("run_id", ""))
            return _undeliverable(folder) if run is None else send_waiting(folder, run, store)
        sweep = _sweep_around(folder.path)
        parent = (parent_of(sweep) or "") if sweep is not None else ""
        if lacks(store, parent):
            parent = ""
        make = rebuild if lacks(store, record.run_id) else settle
        return make(folder, record, store, parent)

    def _deliver_parent(self, folder: RunFolder, notes: Notes) -> Delivery | None:
        jobs = list(run_folders(folder.path))
        uri = self._uri or address_now(notes.store, Path(notes.folder or "/"), folder.path)
        if not uri and notes.parent_run_id and jobs:
            uri = address_of(jobs[0], RunRecord.read(jobs[0]))
        if not uri:
            return _undeliverable(folder)
        store = self._store(uri)
        run = store.find(notes.parent_run_id) if notes.parent_run_id else None
        if run is not None and not lacks(store, notes.parent_run_id):
            return send_waiting(folder, run, store)
        if not jobs:
            return _undeliverable(folder)
        records = [RunRecord.read(job) for job in jobs]
        finished = all(record is not None and record.status == FINISHED for record in records)
        experiment = read_config(jobs[0]).tracking.experiment
        status = FINISHED if finished else KILLED
        left = rebuild_parent(folder.path.absolute(), notes, store, experiment, status)
        return Delivery(folder.path, "the sweep's MLflow run is made again", left)


def _describe(client: MlflowClient, run: MlflowRun, sweep: Path) -> None:
    from flair2_exp.tracking.run import valid_tags

    text = description(sweep, run.info.experiment_id)
    for name, value in valid_tags({Tag.DESCRIPTION: text}).items():
        client.set_tag(run.info.run_id, name, value)


def _undeliverable(folder: RunFolder) -> Delivery | None:
    """Return what is to be said of a folder that does not tell where its records belong."""
    left = waiting(folder)
    return (
        Delivery(folder.path, "it does not say of which MLflow run it is", left) if left else None
    )


def _places(start: Path) -> Iterator[Path]:
    """Yield the folders of runs, sweeps and searches below one, or itself, outer ones first."""
    for path, folders, files in os.walk(start):
        folder = RunFolder(Path(path))
        inner = {folder.unsent.name, folder.checkpoints.name, REPORT}
        if {folder.record.name, SWEEP_FILE} & {*files} or folder.unsent.name in folders:
            yield folder.path
        folders[:] = sorted(each for each in folders if each not in inner and each[0] != ".")


def _sweep_around(path: Path) -> Path | None:
    """Return the folder of the sweep that a folder lies in; None where it lies in none."""
    for parent in path.absolute().parents:
        if (parent / SWEEP_FILE).is_file():
            return parent
    return None
