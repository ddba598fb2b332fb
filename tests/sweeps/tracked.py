"""Runs by hand with an MLflow run of their own, in a local store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FINISHED, RUNNING, RunRecord
from flair2_exp.tracking.store import Store, end_run
from flair2_exp.tracking.tags import Tag
from tests.lifecycle.made import config_below, finished_folder

_WRITER: Final = (
    "import json; from flair2_exp.tracking.process import WriterProcess; "
    "print(json.dumps({str(name): each for name, each in WriterProcess.this().tags().items()}))"
)


def tracked_run(
    store: Store, path: Path, *, status: str = FINISHED, parent: str = "", writer: bool = False
) -> RunFolder:
    """A run's folder, and its MLflow run with an artifact.

    Args:
        store: In `mlruns` of the root.
        path: Of the folder.
        status: Of both.
        parent: The MLflow run that it stands under.
        writer: A process that has ended is named as the one that writes the MLflow run.
    """
    assert store.folder is not None
    config = config_below(store.folder.parent, f"name={path.name}")
    folder = finished_folder(path, config, status=status)
    record = RunRecord.read(folder)
    assert record is not None
    tags = {**record.tags, str(Tag.FOLDER): str(path)}
    tags |= {str(Tag.PARENT): parent} if parent else {}
    if writer:
        done = subprocess.run([sys.executable, "-c", _WRITER], capture_output=True, check=True)
        tags |= json.loads(done.stdout)
    experiment = store.ensure_experiment("flair2")
    run = store.call("making", lambda client: client.create_run(experiment, tags=tags))
    record.run_id, record.tags = run.info.run_id, tags
    record.write(folder)
    store.call("adding", lambda client: client.log_text(record.run_id, "text", "note.txt"))
    if status != RUNNING:
        store.call("ending", lambda client: end_run(client, record.run_id, status, 2_000_000))
    return folder


def state_in(store: Store, run_id: str) -> tuple[str, str]:
    """The status and the stage (`active`, `deleted`) of an MLflow run."""
    run = store.find(run_id)
    assert run is not None
    return run.info.status, run.info.lifecycle_stage
