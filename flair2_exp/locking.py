"""One process a folder: two starts of one command in the same second must not both work in it.

The lock is the kernel's (`flock`), so that it ends with its process however that ends: no lock file
is ever stale. Nothing heavy is imported.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from flair2_exp.errors import ConfigError

log = logging.getLogger(__name__)

FILE: Final = ".lock"

_UNSUPPORTED: Final = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
"""What file systems without locks answer: some network and some FUSE ones."""

_held: Final[set[IO[str]]] = set()


def _forget() -> None:
    """Close the locks' files in a fork; the parent's lock stays.

    Else a data worker that outlives its killed parent, as they do for some seconds, would keep the
    folder from the parent's restart.
    """
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(folder: Path, fix: str = "") -> Iterator[bool]:
    """Hold a folder for this process alone; not re-entrant.

    Args:
        folder: Made where it is missing. Its `.lock` names the holder, and stays behind.
        fix: What to do instead of waiting, as `choose another folder with hydra.run.dir=FOLDER`.

    Yields:
        Whether it is held indeed: False where the file system knows no locks.

    Raises:
        ConfigError: Another process (or another place in this one) holds it, or it cannot be
            written.
    """
    try:
        file, held = _take(folder)
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
    _held.add(file)
    try:
        yield held
    finally:
        _held.discard(file)
        file.close()


def wait_until_free(folder: Path) -> None:
    """Wait until no process holds a folder; at once where the file system knows no locks."""
    import fcntl

    with suppress(FileNotFoundError, NotADirectoryError), (folder / FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for %s.", folder, _holder(folder))
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise


def _take(folder: Path) -> tuple[IO[str], bool]:
    """The open file, and whether it is locked: with a warning where there are no locks."""
    import fcntl

    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / FILE).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                file.close()
                raise
            log.warning(
                "%s: no locks on this file system (%s); do not start this command twice at once.",
                folder,
                error.strerror,
            )
            return file, False
        if _is_still(file, folder / FILE):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            return file, True
        file.close()  # the holder before removed its folder between our opening and locking


def _is_still(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(folder: Path) -> str:
    """`process 12 on host`, as the holder wrote it."""
    try:
        return (folder / FILE).read_text().strip() or "another process"
    except OSError:
        return "another process"
