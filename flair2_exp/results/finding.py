"""Where a run is: by its folder, by a checkpoint, or by the id of its MLflow run."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from flair2_exp.config.tracking import PathsConfig
from flair2_exp.errors import CheckpointError, ConfigError
from flair2_exp.lifecycle.folder import RunFolder, run_folders
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.tracking.tags import Tag

WEIGHTS: Final = ".safetensors"
"""The suffix of exported weights."""

_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Place:
    """Where a run, or the weights of one, are.

    Attributes:
        folder: The run's; None where a checkpoint lies by itself.
        checkpoint: The file that was named; None where it was the run.
    """

    folder: RunFolder | None
    checkpoint: Path | None = None


def is_run_id(text: str) -> bool:
    """Return whether a text has the form of an MLflow run's id."""
    return _RUN_ID.fullmatch(text) is not None


def locate(run: str | os.PathLike[str], tracking_uri: str = "") -> Place:
    """Return where a run is; nothing is read of it.

    Args:
        run: The run's folder (or one with this run alone below it), a checkpoint, exported weights,
            or the id of its MLflow run.
        tracking_uri: Of the store that knows the id; empty is the local one, `mlruns`.

    Raises:
        FlairError: There is no such run.
    """
    name = os.fspath(run)
    path = Path(name).expanduser()
    if path.suffix in (".ckpt", ".pt", WEIGHTS) or path.is_file():
        return _of_checkpoint(path)
    if path.is_dir():
        below = [path] if RunFolder(path).record.is_file() else []
        below = below or [each.path for each in islice(run_folders(path), 2)]
        return Place(RunFolder(below[0] if len(below) == 1 else path))
    if is_run_id(name):
        return Place(_folder_of(name, tracking_uri))
    raise ConfigError(
        f"{name}: there is no such run.\nExpected the folder of a run, a checkpoint "
        f"({RunFolder(Path()).best}), exported weights ({WEIGHTS}), or the 32 digits of "
        "an MLflow run."
    )


def record_in(folder: RunFolder) -> RunRecord:
    """Return the record of the run that a folder holds.

    Raises:
        ConfigError: It holds none, or one of another version.
    """
    record = RunRecord.read(folder)
    if record is None:
        raise ConfigError(
            f"{folder} does not hold a run (no readable {folder.record.name}).\n"
            "Name the folder of one run, as outputs/NAME/TIME or multirun/SWEEP/JOB."
        )
    return record


def results_root() -> Path:
    """Return the folder below which results are without being told: `FLAIR2_EXP_ROOT`, or here."""
    return Path(os.environ.get("FLAIR2_EXP_ROOT") or PathsConfig().root)


def multirun() -> Path:
    """Return where the folders of sweeps and searches are."""
    return results_root() / "multirun"


def results_folders() -> tuple[Path, ...]:
    """Return the folders of single runs and of sweeps, as far as they are there."""
    folders = (results_root() / PathsConfig().output, multirun())
    return tuple(folder for folder in folders if folder.is_dir())


def local_store() -> str:
    """Return the address of the local MLflow store of where the user stands."""
    from flair2_exp.tracking.store import local_uri

    return local_uri(results_root() / PathsConfig().mlflow)


def _of_checkpoint(path: Path) -> Place:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint.")
    folder = RunFolder(path.parent.parent)
    is_a_runs = path.parent == folder.checkpoints and folder.config.is_file()
    return Place(folder if is_a_runs else None, path)


def _folder_of(run_id: str, tracking_uri: str) -> RunFolder:
    """Return the folder of an MLflow run.

    Raises:
        FlairError: The store has no such run, or its folder is not here.
    """
    from flair2_exp.tracking.store import database_path, open_store

    uri = tracking_uri or local_store()
    if uri.startswith("sqlite:") and not database_path(uri).is_file():
        raise ConfigError(
            f"{run_id}: there is no MLflow database {database_path(uri)} to look it up in.\n"
            "Name the store with --tracking-uri, or the run by its folder."
        )
    store = open_store(uri)
    run = store.find(run_id)
    if run is None:
        raise ConfigError(
            f"{run_id}: there is no such run in the MLflow store {store}.\n"
            "Name another store with --tracking-uri, or the run by its folder."
        )
    named = run.data.tags.get(Tag.FOLDER, "")
    if not named or not Path(named).is_dir():
        raise ConfigError(
            f"MLflow run {run_id} was in {named or 'no folder'}, which is not on "
            "this machine.\nName the run's folder, or its checkpoint."
        )
    return RunFolder(Path(named))
