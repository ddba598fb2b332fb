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


@dataclass(frozen=True)
class RunFolder:
    """The files that a run leaves.

    Attributes:
        path: The folder itself.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def config(self) -> Path:
        """The whole config, every interpolation resolved."""
        return self.path / "config.yaml"

    @cached_property
    def record(self) -> Path:
        """By which the same run knows itself again (`RunRecord`)."""
        return self.path / "run.json"

    @cached_property
    def metrics(self) -> Path:
        """All numbers that the run measured."""
        return self.path / "metrics.json"

    @cached_property
    def history(self) -> Path:
        """One row per epoch."""
        return self.path / "history.csv"

    @cached_property
    def confusion(self) -> Path:
        """The counts of each test patch, from which the statistics are computed."""
        return self.path / "confusion_per_patch.npz"

    @cached_property
    def confusion_figure(self) -> Path:
        """The summed confusion matrix, drawn."""
        return self.path / "confusion.png"

    @cached_property
    def panel_figure(self) -> Path:
        """Some test patches: image, truth, prediction, errors."""
        return self.path / "panel.png"

    @cached_property
    def error(self) -> Path:
        """The traceback of a sweep's job that failed."""
        return self.path / "error.txt"

    @cached_property
    def unsent(self) -> Path:
        """What MLflow did not take yet; a folder."""
        return self.path / "unsent"

    @cached_property
    def checkpoints(self) -> Path:
        """The folder of the next three."""
        return self.path / "checkpoints"

    @cached_property
    def best(self) -> Path:
        """The tested checkpoint."""
        return self.checkpoints / "best.ckpt"

    @cached_property
    def last(self) -> Path:
        """The newest checkpoint, from which an interrupted run resumes."""
        return self.checkpoints / "last.ckpt"

    @cached_property
    def previous(self) -> Path:
        """The one before, should `last` be torn."""
        return self.checkpoints / "previous.ckpt"

    @cached_property
    def hydra(self) -> Path:
        """What Hydra keeps of the command; a folder."""
        return self.path / ".hydra"

    @property
    def log(self) -> Path:
        """What the run said, with times."""
        return self.path / "flair2_exp.log"  # by conf/config.yaml: hydra.job.name

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
