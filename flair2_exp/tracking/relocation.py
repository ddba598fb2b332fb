"""Places in a local store that has been moved or copied: they follow it.

MLflow keeps absolute places: of each experiment's artifacts, of each run's, and in tags. In a
folder that was moved they lead nowhere; in a copy they lead to the original, whose files the copy
would then overwrite. So a store notes with each experiment where it lies, and sets the places right
when it is opened elsewhere. Only places below its own folder count, and the folders of runs that
have come along.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from flair2_exp.compat import MLFLOW_PLACES
from flair2_exp.tracking.tags import Tag

ARTIFACTS: Final = "artifacts"
"""The folder of all artifacts, beside the database."""

_NAMING: Final = (Tag.FOLDER, Tag.BEST_CHECKPOINT, Tag.DESCRIPTION)
"""Tags that name a run's folder, or a file in it."""


def moved(path: Path, old: Path, new: Path) -> Path:
    """Return a path as it is since a folder has moved, with what lay around it.

    What both places of the folder end in alike has moved as well: where `a/one/runs/x` is now at
    `b/two/runs/x`, then `a/one` is at `b/two`.

    Returns:
        The new path; the same one where it did not lie in what has moved.
    """
    while old.name and old.name == new.name and old != new:
        old, new = old.parent, new.parent
    return new / path.relative_to(old) if path.is_relative_to(old) else path


def place_now(path: Path, old: Path, new: Path) -> Path:
    """Return where to find a path, given that a folder was at `old` and is at `new`.

    Beside the folder as it is now; where nothing is there, because the folder alone has moved, at
    the old place. A copy never leads to what belongs to its original.
    """
    here = moved(path, old, new)
    return here if here.exists() or old.exists() else path


def relocate(connection: sqlite3.Connection, folder: Path) -> None:
    """Set all places right in a store's database, within the caller's transaction.

    Raises:
        sqlite3.Error: It is not MLflow's database, or cannot be written.
    """
    key = str(Tag.FOLDER)
    query = (
        "SELECT e.experiment_id, e.artifact_location, t.value FROM experiments e LEFT JOIN "
        "experiment_tags t ON t.experiment_id = e.experiment_id AND t.key = ?"
    )
    roots: dict[int, Path] = {}
    for experiment, location, noted in connection.execute(query, (key,)).fetchall():
        root = root_of(location or "", noted or "", folder)
        if root is not None and not _is_same(root, folder):
            roots[experiment] = root
    for root in set(roots.values()):
        _tell_moved(connection, root, folder)
    # Also for one that MLflow has made by itself, as `Default`, and that lies in this folder.
    inside = [each for each, at, _ in connection.execute(query, (key,)) if _is_below(at, folder)]
    connection.executemany(
        "INSERT OR REPLACE INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)",
        [(key, str(folder), experiment) for experiment in {*roots, *inside}],
    )


def _is_below(location: str | None, folder: Path) -> bool:
    return (location or "").startswith((f"{folder.as_uri()}/", f"{folder}/"))


def _tell_moved(connection: sqlite3.Connection, root: Path, folder: Path) -> None:
    """Set the places that lay below the store's old folder, and those of runs beside it."""
    # MLflow has addresses of our experiments, and a plain path of its own one.
    spelled = [(root.as_uri(), folder.as_uri()), (str(root), str(folder))]
    for table, column in MLFLOW_PLACES:
        connection.executemany(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
            f"WHERE substr({column}, 1, ?) = ?",
            [(f"{now}/", len(old) + 2, len(old) + 1, f"{old}/") for old, now in spelled],
        )
    query = "SELECT run_uuid, value FROM tags WHERE key = ?"
    for run, text in connection.execute(query, (str(Tag.FOLDER),)).fetchall():
        old = Path(text)
        new = moved(old, root, folder)
        if new != old and (new.exists() or not old.exists()):
            connection.executemany(
                "UPDATE tags SET value = replace(value, ?, ?) WHERE run_uuid = ? AND key = ?",
                [(text, str(new), run, str(name)) for name in _NAMING],
            )


def root_of(location: str, noted: str, folder: Path) -> Path | None:
    """Return where a store lay when it was last opened; None for artifacts in a place of their own.

    Args:
        location: Of an experiment's artifacts, as MLflow has it.
        noted: The experiment's `Tag.FOLDER`; empty where an earlier version made it. Then artifacts
            that have come along tell.
        folder: Where the store lies now.
    """
    if noted:
        return Path(noted) if Path(noted).is_absolute() else None
    address = urlsplit(location)
    path = Path(unquote(address.path))
    if address.scheme != "file" or path.parent.name != ARTIFACTS:
        return None
    return path.parents[1] if (folder / ARTIFACTS / path.name).is_dir() else None


def _is_same(root: Path, folder: Path) -> bool:
    """Return whether two names are one folder's: by a link, it has two and has not moved."""
    return root == folder or (root.exists() and folder.exists() and folder.samefile(root))


def artifact_here(artifact_uri: str, root: Path | None, folder: Path) -> Path | None:
    """Return a run's folder of artifacts where the store lies now; None where none is there.

    For a store that is only read, in which the places cannot be set right.
    """
    address = urlsplit(artifact_uri)
    if root is None or address.scheme != "file":
        return None
    here = moved(Path(unquote(address.path)), root, folder)
    return here if here.is_dir() else None
