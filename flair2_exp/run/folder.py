"""A run's folder: the names of all files in it, spelled here and nowhere else."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flair2_exp.errors import ConfigError
from flair2_exp.files import unusable


def _file(*names: str) -> cached_property[Path]:
    return cached_property(lambda folder: folder.path.joinpath(*names))


@dataclass(frozen=True)
class RunFolder:
    """The files that a run leaves.

    Attributes:
        path: The folder itself.
    """

    path: Path

    config = _file("config.yaml")
    """The whole config, every interpolation resolved."""
    record = _file("run.json")
    """By which the same run is recognised (`RunRecord`)."""
    metrics = _file("metrics.json")
    """All numbers that the run measured."""
    history = _file("history.csv")
    """One row per epoch."""
    confusion = _file("confusion_per_patch.npz")
    """The counts of each test patch, from which the statistics are computed."""
    confusion_figure = _file("confusion.png")
    """The summed confusion matrix, drawn."""
    panel_figure = _file("panel.png")
    """Some test patches: image, truth, prediction, errors."""
    error = _file("error.txt")
    """The traceback of a sweep's job that failed."""
    reserve = _file(".reserve")
    """Room for the run's last words on a full disk; there while it runs."""
    unsent = _file("unsent")
    """What MLflow did not take yet; a folder."""
    checkpoints = _file("checkpoints")
    """The folder of the next three."""
    best = _file("checkpoints", "best.ckpt")
    """The tested checkpoint."""
    last = _file("checkpoints", "last.ckpt")
    """The newest checkpoint, from which an interrupted run resumes."""
    previous = _file("checkpoints", "previous.ckpt")
    """The one before, should `last` be torn."""
    hydra = _file(".hydra")
    """What Hydra keeps of the command; a folder."""
    log = _file("flair2_exp.log")  # by conf/config.yaml: hydra.job.name
    """The messages of the run, with times."""

    def __str__(self) -> str:
        return str(self.path)

    def has_checkpoints(self) -> bool:
        """Return whether any checkpoint is there."""
        return any(path.exists() for path in (self.best, self.last, self.previous))


def run_folders(start: Path) -> Iterator[RunFolder]:
    """Yield the run folders below a folder (or itself): those with a config, in natural order."""
    if RunFolder(start).config.is_file():
        yield RunFolder(start)
        return
    name = RunFolder(start).config.name
    for config in sorted(start.rglob(name), key=lambda path: _natural(path.parent)):
        if not config.parent.name.startswith("."):  # Hydra keeps a config of its own
            yield RunFolder(config.parent)


def _natural(path: Path) -> list[tuple[str, int]]:
    """Return a sort key that puts seed=10 behind seed=9."""
    parts = re.findall(r"(\D*)(\d*)", str(path))
    return [(text, int(number or -1)) for text, number in parts]


def require_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or written in; make nothing.

    Raises:
        ConfigError: It could not; the message names the part of the path that is in the way.
    """
    if "~" in folder.parts:
        expanded = Path(*folder.parts[folder.parts.index("~") :]).expanduser()
        raise ConfigError(f"{folder}: ~ is not expanded here; write {expanded}.")
    reason = unusable(str(folder.absolute()))
    if reason:
        raise ConfigError(
            f"{str(folder)[:100]!r}: {reason}.\n"
            "Choose another place with paths.root=FOLDER, or hydra.run.dir=FOLDER."
        )
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        reason = os.strerror(errno.ENOTDIR)
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
    elif os.statvfs(existing).f_flag & os.ST_RDONLY or existing.parts[:2] == ("/", "proc"):
        reason = os.strerror(errno.EROFS)  # /proc says that it may be written, and may not
    else:
        return
    raise ConfigError(
        f"cannot write to {folder}: {existing}: {reason}.\n"
        "Choose another place with paths.root=FOLDER, or hydra.run.dir=FOLDER."
    )
