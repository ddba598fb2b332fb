"""What is kept about files in the user's cache directory: where, and when it still holds."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Final, NamedTuple

FRESH_NS: Final = 2_000_000_000
"""A file can change twice within one tick of the file system's clock, so a state as young as this
proves nothing. 2 s is the coarsest clock in use (FAT)."""

_FORMAT: Final = 3
"""Raised when the cached index changes its form or its rules."""


class State(NamedTuple):
    """What changes when a file's content or a directory's entries do; -1 where there is none."""

    inode: int = -1
    size: int = -1
    changed: int = -1
    """Nanoseconds; of the content, and can be set back."""
    touched: int = -1
    """Nanoseconds; of anything about the file (ctime), and cannot be set."""


def state_of(path: str | Path) -> State:
    """Look a file or directory up."""
    try:
        status = os.stat(path)
    except OSError:
        return State()
    inode = status.st_ino & 0x7FFF_FFFF_FFFF_FFFF  # some file systems use all 64 bits
    return State(inode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def cache_file(data: object, kind: str) -> Path:
    """Return where a kind of thing about some data, such as `index`, is kept for the user.

    Args:
        data: Plain values or paths that tell these data from others.
        kind: Of what is kept.
    """
    key = json.dumps([_FORMAT, data], default=str, sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return cache_folder() / f"{kind}-{name}.npz"


def cache_folder() -> Path:
    """Return the folder in which things about data sets are kept for the user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flair2_exp"
