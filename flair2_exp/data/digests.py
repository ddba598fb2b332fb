"""The files that patches are read from: their state, and a digest of what is in them.

Of a file count its size and eight blocks of 4 KiB spread from its first byte to its last; a file of
up to 64 KiB, as most masks are, counts whole. A few pixels changed between two blocks of a larger
file are not noticed: reading all of FLAIR #2 would take an hour.

Digests are kept in the user's cache and looked up by inode, size, mtime and ctime. A file's size
and mtime can be put back after a change, its ctime cannot: a digest is used again only where all
four are as they were. NumPy and the standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair2_exp.data.arrays import read_npz, write_npz
from flair2_exp.data.cache import FRESH_NS, cache_file, state_of

log = logging.getLogger(__name__)

DIGEST: Final = 16
"""Bytes of a digest."""
_BLOCK: Final = 4096
_BLOCKS: Final = 8
_WHOLE: Final = 2 * _BLOCKS * _BLOCK
"""Bytes up to which a file is read whole."""

_NOTHING_KEPT: Final = {
    "states": np.full((1, 4), -1),
    "digests": np.zeros((1, DIGEST), dtype=np.uint8),
}
"""States (m, 4), sorted by inode, and digests (m, 16): of the absent file alone, inode -1."""

_THREADS: Final = 16
"""They wait for a network's file system; little is computed."""
_CHUNK: Final = 256
"""Files that a thread takes at once."""
_MANY: Final = 10_000
"""Files from which on reading their blocks is worth a word."""

States = NDArray[np.int64]
Digests = NDArray[np.uint8]


class Files(NamedTuple):
    """The files of patches; some patches share files, as the series of their area."""

    paths: list[str]
    """All of them, each once; the first is empty and stands for what is absent or not read."""
    which: NDArray[np.int64]
    """(n, k) positions in `paths` of each patch's k files."""


def states(files: Files) -> States:
    """Look up size and time of change of the files of n patches.

    Returns:
        (n, k, 2): bytes, and nanoseconds since 1970; -1 where a file is absent or not read.
    """
    return _each(state_of, files.paths)[:, 1:3][files.which]


def digests(files: Files, key: object) -> Digests:
    """Return digests of the files of n patches; a file is read only if it changed since.

    Args:
        files: Of the patches.
        key: Plain values that tell these data from others, whose digests are kept elsewhere.

    Returns:
        (n, k, 16); zeros where a file is absent, not read, or unreadable.
    """
    paths, which = files
    current = _each(state_of, paths)
    cache = cache_file(key, "digests")
    kept = read_npz(cache) or _NOTHING_KEPT
    old_states, old_digests = kept["states"], kept["digests"]
    places = np.searchsorted(old_states[:, 0], current[:, 0]).clip(max=len(old_states) - 1)
    result: Digests = old_digests[places]
    changed = np.flatnonzero((old_states[places] != current).any(axis=1))
    if len(changed):
        if len(changed) >= _MANY:
            log.info("reading blocks of %d files, this once, for the fingerprint", len(changed))
        result[changed] = _each(_digest, [paths[place] for place in changed.tolist()])
        settled = changed[current[changed, 2:].max(axis=1) < time.time_ns() - FRESH_NS]
        new_states = np.concatenate([current[settled], old_states])
        new_digests = np.concatenate([result[settled], old_digests])
        _, first = np.unique(new_states[:, 0], return_index=True)  # sorts by inode; new come first
        with contextlib.suppress(OSError):  # a cache that cannot be written
            write_npz(cache, states=new_states[first], digests=new_digests[first])
    return result[which]


def _each(function: Callable[[str], Sequence[int]], paths: Sequence[str]) -> NDArray[Any]:
    """Return a row of numbers per path, in threads."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = pool.map(lambda chunk: np.array([tuple(function(path)) for path in chunk]), chunks)
        return np.concatenate(list(rows))


def _digest(path: str) -> bytes:
    """Return a file's digest."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=DIGEST)
            if size <= _WHOLE:
                digest.update(file.read())
            else:
                for block in range(_BLOCKS):
                    start = block * (size - _BLOCK) // (_BLOCKS - 1)
                    digest.update(os.pread(file.fileno(), _BLOCK, start))
    except OSError:
        return bytes(DIGEST)
    return digest.digest()
