"""A sweep's own MLflow run, under which its jobs' runs stand: the same one each time."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from flair2_exp.config.experiment import Config
from flair2_exp.files import write_text
from flair2_exp.run.assembly import open_store
from flair2_exp.run.folder import SWEEP_FILE, RunFolder
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.tracking.run import Run


def open_parent(name: str, folder: Path, config: Config, *, take_over: bool = False) -> Run:
    """Start the sweep's MLflow run, or resume it when the sweep is taken up again.

    Args:
        name: The sweep's.
        folder: The sweep's, absolute.
        config: Of one of its jobs, for the store.
        take_over: The caller holds the folder.
    """
    from flair2_exp.tracking.run import open_run

    notes = _notes(folder)
    key = notes.get("key") or uuid.uuid4().hex
    run_id, store = notes.get("parent_run_id"), open_store(config)
    if store is not None and not run_id:
        # The key is on the disk before the run is made: a process that is killed before it has
        # noted the run's id finds the run by it, and no sweep gets two parents.
        if "key" in notes:
            experiment = store.ensure_experiment(config.tracking.experiment)
            run_id = store.find_run(experiment, {Tag.SWEEP_KEY: key})
        _note(folder, name=name, key=key)
    run = open_run(
        store,
        config.tracking.experiment,
        name,
        RunFolder(folder).unsent,
        tags={Tag.SWEEP: name, Tag.KIND: "sweep", Tag.FOLDER: str(folder), Tag.SWEEP_KEY: key},
        run_id=run_id,
        take_over=take_over,
    )
    if store is not None:
        _note(folder, name=name, key=key, parent_run_id=run.run_id)
    return run


def parent_of(folder: Path) -> str | None:
    """Return the id of the MLflow run of the sweep in a folder; None where it has none."""
    return _notes(folder).get("parent_run_id")


def _notes(folder: Path) -> dict[str, str]:
    try:
        notes = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _note(folder: Path, **values: str) -> None:
    write_text(folder / SWEEP_FILE, json.dumps(values) + "\n")
