"""A run's folder: the names of all files in it, spelled here and nowhere else."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from flair2_exp import locking
from flair2_exp.errors import ConfigError
from flair2_exp.files import nearest_existing, unusable

SWEEP_CONFIG: Final = "multirun.yaml"
"""The config of a sweep or a search, in its folder; Hydra's name for it."""
JOBS_FILE: Final = "jobs.json"
"""The jobs of a sweep, in its folder."""
SWEEP_FILE: Final = "sweep.json"
"""What a sweep notes of its MLflow run, in its folder."""
SLURM_FOLDER: Final = "slurm"
"""What `hydra/launcher=slurm` has submitted, in the folder of a sweep or a search."""


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
    panel = _file("panel.npz")
    """The same patches as arrays, by which a report sets the predictions of runs side by side."""
    job = _file("job.json")
    """Where and how an engine has started it (`engines.job.Submission`)."""
    output = _file("output.log")
    """What it printed, where an engine has started it; all starts, one behind the other."""
    error = _file("error.txt")
    """The traceback of a sweep's job that failed."""
    reserve = _file(".reserve")
    """Room for the run's last words on a full disk; there while it runs."""
    unsent = _file("unsent")
    """What MLflow did not take yet; a folder."""
    loggers = _file("loggers")
    """What further loggers write (`tracking.loggers`); a folder."""
    checkpoints = _file("checkpoints")
    """The folder of the next three."""
    best = _file("checkpoints", "best.ckpt")
    """The tested checkpoint."""
    last = _file("checkpoints", "last.ckpt")
    """The newest checkpoint, from which an interrupted run resumes."""
    previous = _file("checkpoints", "previous.ckpt")
    """The one before, should `last` be torn."""
    writing = _file("checkpoints", "last.writing")
    """The next `last`, until it is whole."""
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
    for config in sorted(start.rglob(name), key=lambda path: natural_key(path.parent)):
        if not config.parent.name.startswith("."):  # Hydra keeps a config of its own
            yield RunFolder(config.parent)


def natural_key(path: Path) -> list[tuple[str, int]]:
    """Return a sort key that puts seed=10 behind seed=9."""
    parts = re.findall(r"(\D*)(\d*)", str(path))
    return [(text, int(number or -1)) for text, number in parts]


@dataclass(frozen=True)
class Footprint:
    """What was in the place of a folder before anything was written for a run or a sweep.

    Attributes:
        folder: The folder, absolute.
        base: The nearest folder that was there, perhaps itself; it and its parents stay.
        files: Those of the files that a refused command may write that were there.
    """

    folder: Path
    base: Path
    files: frozenset[Path] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> Footprint:
        """Return the footprint of a folder as it is now."""
        folder = folder.absolute()
        files = frozenset(path for path in _early_files(folder) if path.exists())
        return cls(folder, nearest_existing(folder), files)

    def restore(self) -> None:
        """Remove the files that a refused command has written since, and the empty folders."""
        for path in _early_files(self.folder):
            if path not in self.files:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        hydra = RunFolder(self.folder).hydra
        for each in (hydra, self.folder, *self.folder.parents):
            if each != hydra and (each == self.base or each in self.base.parents):
                return
            with suppress(OSError):  # it is not there, or not empty
                each.rmdir()


def _early_files(folder: Path) -> Iterator[Path]:
    """Yield what is written before a run or a sweep has begun: by Hydra, by the lock."""
    run = RunFolder(folder)
    yield from (run.hydra / name for name in ("config.yaml", "hydra.yaml", "overrides.yaml"))
    yield from (run.log, folder / locking.FILE, folder / SWEEP_CONFIG, folder / SWEEP_FILE)
    yield folder / JOBS_FILE


_SYSTEM: Final = tuple(map(Path, (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin",
    "/sys", "/usr",
)))  # fmt: skip
"""The system's own: nothing is written below."""
_SHARED: Final = tuple(map(Path, (
    "/", "/dev/shm", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp",
    "/usr/local", "/usr/src", "/var", "/var/tmp",
)))  # fmt: skip
"""Results go below these, not among what else is in them."""
_CODE: Final = (".git", ".venv", "conf", "docs", "flair2_exp", "scripts", "tests")
"""What a checkout holds beside results."""


def require_place(folder: Path) -> None:
    """Refuse a folder that is not meant for results, or could not be made or written; make nothing.

    Raises:
        ConfigError: The message says what kind of folder it is.
    """
    _require_writable(folder)
    place, package = folder.resolve(), Path(__file__).resolve().parents[1]
    checkout = package.parent
    below = {place, *place.parents}
    of_users = any(each in place.parents for each in _SHARED if {each, *each.parents} & {*_SYSTEM})
    if place in _SHARED or (not of_users and below & {*_SYSTEM}):
        kind = "a folder of the system's"
    elif place == Path(os.path.expanduser("~")).resolve():
        kind = "a home"
    elif place == checkout or below & {checkout / name for name in _CODE}:
        kind = "a folder of the code"
    else:
        return
    raise ConfigError(
        f"{folder} is {kind}: results would lie among what is in it.\nName a folder of their own: "
        "hydra.run.dir=FOLDER (of a sweep hydra.sweep.dir=FOLDER), or paths.root=FOLDER."
    )


def require_own(folder: RunFolder) -> None:
    """Refuse to run among another program's files of the names of ours.

    Raises:
        ConfigError: There are some; the message names one.
    """
    names = (each for each in vars(RunFolder).values() if isinstance(each, cached_property))
    files = [path for path in (each.func(folder) for each in names) if path.exists()]
    if files and not _is_ours(folder):
        raise ConfigError(
            f"{files[0]} is there already, and not from a run of this program.\n"
            "Choose another folder with hydra.run.dir=FOLDER."
        )


def _is_ours(folder: RunFolder) -> bool:
    """Return whether a run of ours has begun in a folder, however far it came."""
    marks = {
        folder.record: '"flair2.',  # its tags
        folder.job: '"engine"',
        folder.path / locking.FILE: "process ",
        folder.hydra / "hydra.yaml": "flair2_exp",
    }
    return any(mark in _text(path) for path, mark in marks.items())


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def require_own_sweep(folder: Path, others: Iterable[Path] = ()) -> None:
    """Refuse to put a sweep or a search into a folder that holds something else.

    Args:
        folder: The sweep's, absolute.
        others: What the command itself has put there, or may: a study's storage, the data.

    Raises:
        ConfigError: It is not empty, and no sweep has begun in it.
    """
    if not folder.is_dir():
        return
    own = {locking.FILE, *(path.name for path in others if path.parent == folder)}
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(name for name in names if not name.startswith(tuple(own)))
    begun = (
        "flair2_exp" in _text(folder / SWEEP_CONFIG)
        or any(name.startswith("optuna.journal") for name in names)
        or any(_is_ours(RunFolder(path)) for path in (*folder.glob("*"), *folder.glob("*/*")))
    )
    if foreign and not begun:
        raise ConfigError(
            f"{folder} is not empty, and holds no sweep: there is {foreign[0]}.\n"
            f"Name a folder of its own, as hydra.sweep.dir={folder}/NAME."
        )


def _require_writable(folder: Path) -> None:
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
    existing = nearest_existing(folder.absolute())
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
