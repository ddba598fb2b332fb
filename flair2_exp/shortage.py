"""What the machine has run out of, where that ended a run: disk, shared memory, open files.

That is neither the user's mistake nor a bug: it is named, with figures, and what makes room.
"""

from __future__ import annotations

import errno
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from flair2_exp.errors import FlairError, ShortageError
from flair2_exp.files import nearest_existing, write_bytes

SHARED_MEMORY: Final = Path("/dev/shm")
"""Where Linux keeps it, and workers their batches; in Docker 64 MB unless asked for."""

_MORE_SHARED: Final = "use data.workers=0 or a smaller data.batch_size; in Docker, --shm-size=2g"


_FULL: Final = re.compile(
    "database or disk is full|No space left on device|[0-9]+ requested and [0-9]+ written"
)
"""What libraries that raise errors of their own say of a full disk: SQLite, GDAL, NumPy."""


def shortage(error: BaseException, place: Path = Path()) -> str | None:
    """Return in a line what was lacking and what helps; None where an error has another reason.

    Args:
        error: What ended the work; what it was raised from is looked at, too.
        place: A folder that the work writes to, for an error that does not name its file.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        number = link.errno if isinstance(link, OSError) else None
        text = str(link)
        if (
            "insufficient shared memory" in text
            or "Bus error" in text
            or ("No space left" in text and ("shm" in text or "/torch_" in text))
        ):
            return f"shared memory is full: {_room(SHARED_MEMORY)}; {_MORE_SHARED}."
        if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
            return (
                f"too many open files: this process may have {_open_files()} at once; raise that "
                "with `ulimit -n 4096`, or use data.workers=0."
            )
        if number in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(text):
            files = getattr(link, "filename2", None), getattr(link, "filename", None)
            full = next((Path(each) for each in files if isinstance(each, str)), place)
            return f"the disk is full: not all that was to be written fits; {_room(full)}."
        link = link.__cause__ or link.__context__
    return None


def lack_of_shared_memory(needed: int, what: str) -> str | None:
    """Return why batches do not fit into shared memory; None where they do, or it is not known.

    Args:
        needed: Bytes.
        what: What needs them, for the message.
    """
    with suppress(OSError):
        if needed > shutil.disk_usage(SHARED_MEMORY).free:
            return (
                f"{what} need about {needed / 1e6:.0f} MB of shared memory, and "
                f"{_room(SHARED_MEMORY)}.\n{_MORE_SHARED[0].upper()}{_MORE_SHARED[1:]}."
            )
    return None


@contextmanager
def in_words(place: Path, rest: Callable[[], str]) -> Iterator[None]:
    """Say what the machine ran out of within the context, and what is to be done.

    Args:
        place: A folder that the work writes to.
        rest: Returns what is safe and what resumes; asked where something was lacking alone.

    Raises:
        ShortageError: The disk, shared memory or open files were exhausted.
    """
    try:
        yield
    except Exception as error:
        lack = None if isinstance(error, FlairError) else shortage(error, place)
        if lack is None:
            raise
        raise ShortageError(f"{lack}\n{rest()}") from error


@contextmanager
def reserved(file: Path, size: int = 2**18) -> Iterator[None]:
    """Keep room within this context, for what is to be written after it on a full disk.

    Args:
        file: Takes the room; removed at the end.
        size: In bytes.
    """
    with suppress(OSError):
        write_bytes(file, bytes(size))
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _room(place: Path) -> str:
    """Return the file system that holds a place, and how much is free on it."""
    existing = nearest_existing(place.absolute())
    usage = shutil.disk_usage(existing)
    while not existing.is_mount() and existing != existing.parent:
        existing = existing.parent
    return f"{existing} has {usage.free / 1e6:.0f} MB free of {usage.total / 1e6:.0f} MB"


def _open_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
