"""A sweep's own MLflow run, under which its jobs' runs stand: the same one each time."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.config.experiment import Config
from flair2_exp.files import write_text
from flair2_exp.lifecycle.assembly import open_store
from flair2_exp.lifecycle.delivery import BEGUN, COMPLETE
from flair2_exp.lifecycle.folder import SWEEP_FILE, RunFolder
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store

REPORT: Final = "report"
"""The folder of a sweep's report, and that of its artifacts."""


@dataclass(frozen=True)
class Notes:
    """What a sweep's folder says of its MLflow run; empty where that is not known yet.

    Attributes:
        name: The sweep's.
        key: By which its run is found that was made and not noted.
        parent_run_id: Of its run.
        store: The address of the store, without credentials.
        folder: Where the sweep's folder was when this was written.
    """

    name: str = ""
    key: str = ""
    parent_run_id: str = ""
    store: str = ""
    folder: str = ""

    @classmethod
    def read(cls, folder: Path) -> Notes | None:
        """Return a sweep's notes; None where a folder has none, or torn ones."""
        try:
            values = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(values, dict):
            return None
        return cls(**{each.name: str(values.get(each.name, "")) for each in fields(cls)})

    def write(self, folder: Path) -> None:
        """Write them, in one step."""
        values = {name: value for name, value in asdict(self).items() if value}
        write_text(folder / SWEEP_FILE, json.dumps(values) + "\n")


def open_parent(name: str, folder: Path, config: Config, *, take_over: bool = False) -> Run:
    """Start the sweep's MLflow run, or resume it when the sweep is taken up again.

    Args:
        name: The sweep's.
        folder: The sweep's, absolute.
        config: Of one of its jobs, for the store.
        take_over: The caller holds the folder.
    """
    notes = Notes.read(folder) or Notes()
    store, experiment = open_store(config), config.tracking.experiment
    return _open(replace(notes, name=name), folder, store, experiment, take_over=take_over)


def _open(
    notes: Notes,
    folder: Path,
    store: Store | None,
    experiment: str,
    *,
    take_over: bool,
    tags: Mapping[str, str] | None = None,
) -> Run:
    from flair2_exp.tracking.run import open_run

    run_id, key = notes.parent_run_id, notes.key or uuid.uuid4().hex
    noted = replace(
        notes, key=key, store="" if store is None else store.address, folder=str(folder)
    )
    if store is not None and not run_id:
        # The key is on the disk before the run is made: a process that is killed before it has
        # noted the run's id finds the run by it, and no sweep gets two parents.
        if notes.key:
            found = store.find_run(store.ensure_experiment(experiment), {Tag.SWEEP_KEY: key})
            run_id = found or ""
        noted.write(folder)
    own: dict[str, str] = {Tag.SWEEP: notes.name, Tag.KIND: "sweep"}
    own |= {Tag.FOLDER: str(folder), Tag.SWEEP_KEY: key, **(tags or {})}
    run = open_run(
        store,
        experiment,
        notes.name,
        RunFolder(folder).unsent,
        tags={**own, **(tags or {})},
        run_id=run_id,
        take_over=take_over,
    )
    if store is not None:
        replace(noted, parent_run_id=run.run_id).write(folder)
    return run


def rebuild_parent(folder: Path, notes: Notes, store: Store, experiment: str, status: str) -> int:
    """Make a sweep's MLflow run again, with the report that its folder holds.

    Args:
        folder: The sweep's, absolute; the caller holds it.
        notes: The sweep's.
        store: Where to make it.
        experiment: MLflow's experiment.
        status: How the sweep ended.

    Returns:
        How many records could not be sent and wait in the folder.

    Raises:
        TrackingError: The store does not take it.
    """
    if not notes.parent_run_id or store.find(notes.parent_run_id) is None:
        notes = replace(notes, parent_run_id="")
    begun = {str(Tag.REBUILT): BEGUN}
    run = _open(notes, folder, store, experiment, take_over=True, tags=begun)
    for path in sorted((folder / REPORT).glob("*")):
        if path.is_file():
            run.log_artifact(path, REPORT)
    run.set_tags({Tag.REBUILT: COMPLETE})
    run.finish(status)
    return run.waiting


def parent_of(folder: Path) -> str | None:
    """Return the id of the MLflow run of the sweep in a folder; None where it has none."""
    notes = Notes.read(folder)
    return (notes.parent_run_id or None) if notes is not None else None
