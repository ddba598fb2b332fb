"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from flair2_exp.errors import DataError


@contextlib.contextmanager
def alone(lock: Path, *, work: str, folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the system frees it even when the process is killed.

    Args:
        lock: The file to lock; made if missing.
        work: What is done meanwhile, like "download", for the message.
        folder: Where it is done.

    Raises:
        DataError: Another process holds it, or the file system has no locks.
        OSError: The file cannot be made.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another {work} is at work in {folder}; wait for it to end.") from None
        except OSError as error:
            raise DataError(
                f"{folder} cannot be locked ({error.strerror}).\nChoose a folder on another disk."
            ) from None
        yield
