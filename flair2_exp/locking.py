"""One process per folder: two starts of one command in the same second must not both work in it.

The locks are the kernel's (`flock`), so that they end with their process however that ends: no lock
file is ever stale. Nothing heavy is imported.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from flair2_exp.errors import ConfigError

log = logging.getLogger(__name__)

FILE: Final = ".lock"

_UNSUPPORTED: Final = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
"""What file systems without locks answer: some network and some FUSE ones."""

_lock_files: Final[set[IO[str]]] = set()


def _close_lock_files() -> None:
    """Close the locks' files in a fork; the parent's lock stays.

    Else a data worker that outlives its killed parent, as they do for some seconds, would keep the
    folder from the parent's restart.
    """
    for file in _lock_files:
        file.close()
    _lock_files.clear()


os.register_at_fork(after_in_child=_close_lock_files)


@contextmanager
def file_lock(path: Path, *, shared: bool = False, blocking: bool = True) -> Iterator[bool]:
    """Hold a lock on a file within this context; not re-entrant.

    Args:
        path: An exclusive lock makes the file and its folder, a shared one needs them. The file
            stays behind.
        shared: Others may hold the lock as well, as long as all of them share it.
        blocking: Wait until the lock is free.

    Yields:
        Whether the lock is held: False where the file system has no locks.

    Raises:
        BlockingIOError: The lock is not free, and `blocking` is False.
        OSError: The file cannot be opened.
    """
    file, supported = _acquire(path, shared, blocking)
    _lock_files.add(file)
    try:
        yield supported
    finally:
        _lock_files.discard(file)
        file.close()


def _acquire(path: Path, shared: bool, blocking: bool) -> tuple[IO[str], bool]:
    """Return the open file, and whether it is locked."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        if not shared:
            path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("r" if shared else "a", encoding="utf-8")
        try:
            fcntl.flock(file, operation | (0 if blocking else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return file, False
            file.close()
            raise
        if _is_still(file, path):
            return file, True
        file.close()  # the holder before removed its folder between our opening and locking


def _is_still(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(folder: Path, fix: str = "") -> Iterator[bool]:
    """Hold a folder for this process alone; not re-entrant.

    Args:
        folder: Made where it is missing. Its `.lock` names the holder, and stays behind.
        fix: What to do instead of waiting, as `choose another folder with hydra.run.dir=FOLDER`.

    Yields:
        Whether the folder is held: False, after a warning, where the file system has no locks.

    Raises:
        ConfigError: Another process (or another place in this one) holds the folder, or it cannot
            be written.
    """
    with ExitStack() as stack:
        try:
            supported = stack.enter_context(file_lock(folder / FILE, blocking=False))
            if supported:
                holder = f"process {os.getpid()} on {socket.gethostname()}\n"
                (folder / FILE).write_text(holder, "utf-8", "backslashreplace")
        except BlockingIOError:
            alternative = f", or {fix}" if fix else ""
            raise ConfigError(
                f"{folder} is in use by {_holder(folder)}.\nWait for it or end it{alternative}."
            ) from None
        except OSError as error:
            raise ConfigError(
                f"cannot write to {folder}: {error.strerror}.\n"
                "Choose another place with paths.root=FOLDER, or hydra.run.dir=FOLDER."
            ) from error
        if not supported:
            log.warning(
                "%s: no locks on this file system; do not start this command twice at once.", folder
            )
        yield supported


def is_held(folder: Path) -> bool:
    """Return whether a process holds a folder; False where the file system has no locks.

    Not while one may be about to take it: for a moment, this does.
    """
    return bool(holder_of(folder))


def wait_until_free(folder: Path) -> None:
    """Wait until no process holds a folder; at once where the file system has no locks."""
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            with file_lock(folder / FILE, shared=True, blocking=False):
                return
        except BlockingIOError:
            log.info("%s: waiting for %s.", folder, _holder(folder))
        with file_lock(folder / FILE, shared=True):
            return


def holder_of(folder: Path) -> str:
    """Return `process 12 on host` of the process that holds a folder; "" where none does.

    Without locks on the file system nobody is known to hold it.
    """
    try:
        with file_lock(folder / FILE, shared=True, blocking=False):
            return ""
    except BlockingIOError:
        return _holder(folder)
    except OSError:  # it is not there
        return ""


def lock_time(folder: Path) -> float | None:
    """Return when a process last took a folder, in seconds since 1970; None: none ever did."""
    try:
        return (folder / FILE).stat().st_mtime
    except OSError:
        return None


def _holder(folder: Path) -> str:
    """Return `process 12 on host`, as the holder wrote it."""
    try:
        return (folder / FILE).read_text("utf-8", "replace").strip() or "another process"
    except OSError:
        return "another process"
