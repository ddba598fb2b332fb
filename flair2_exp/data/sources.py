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
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.data.arrays import read_npz, write_npz
from flair2_exp.data.layout import FRESH_NS, Index, cache_file, state_of

log = logging.getLogger(__name__)

NAMES: Final = ("image", "mask", "series data", "series masks", "products")
"""A patch's files, in the order of this module's arrays; the last three are its area's."""

_DIGEST: Final = 16
_BLOCK: Final = 4096
_BLOCKS: Final = 8
_WHOLE: Final = 2 * _BLOCKS * _BLOCK
"""Bytes up to which a file is read whole."""

_NOTHING_KEPT: Final = {
    "states": np.full((1, 4), -1),
    "digests": np.zeros((1, _DIGEST), dtype=np.uint8),
}
"""States (m, 4), sorted by inode, and digests (m, 16): of the absent file alone, inode -1."""

_THREADS: Final = 16
"""They wait for a network's file system; little is computed."""
_CHUNK: Final = 256
"""Files that a thread takes at once."""
_MANY: Final = 10_000
"""Files from which on reading their blocks is worth a word."""

Positions = NDArray[np.int64]
States = NDArray[np.int64]
Digests = NDArray[np.uint8]


def is_read(reads: frozenset[str]) -> NDArray[np.bool_]:
    """Return, (5,), which of a patch's files are read; the mask always is."""
    series = "satellite" in reads
    return np.array(["aerial" in reads, True, series, series, series])


def states(index: Index, patches: Positions, reads: frozenset[str]) -> States:
    """Look up size and time of change of the files of (n,) patches.

    Returns:
        (n, 5, 2): bytes, and nanoseconds since 1970; -1 where a file is absent or not read.
    """
    paths, files = _files(index, patches, reads)
    return _each(state_of, paths)[:, 1:3][files]


def digests(index: Index, patches: Positions, reads: frozenset[str]) -> Digests:
    """Return digests of the files of (n,) patches; a file is read only if it changed since.

    Returns:
        (n, 5, 16); zeros where a file is absent, not read, or unreadable.
    """
    paths, files = _files(index, patches, reads)
    current = _each(state_of, paths)
    cache = cache_file(index.folders, "digests")
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
    return result[files]


def _files(
    index: Index, patches: Positions, reads: frozenset[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the paths of all files, each once, and (n, 5) which of them are each patch's.

    The first path is empty: it stands for what is absent or not read.
    """
    paths = [""]
    files = np.zeros((len(patches), len(NAMES)), dtype=np.int64)
    for column, part in enumerate(("aerial", "labels")):
        if part in reads or part == "labels":
            files[:, column] = len(paths) + np.arange(len(patches))
            paths += index.paths(part, patches)
    if "satellite" in reads:
        areas, which = np.unique(index.area[patches], return_inverse=True)
        files[:, 2:] = len(paths) + 3 * which[:, None] + np.arange(3)
        for area in areas.tolist():
            has_series = index.folders.part("satellite", test=bool(index.area_test[area]))
            paths += map(str, index.series_files(area)) if has_series else ["", "", ""]
    return paths, files


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
            digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=_DIGEST)
            if size <= _WHOLE:
                digest.update(file.read())
            else:
                for block in range(_BLOCKS):
                    start = block * (size - _BLOCK) // (_BLOCKS - 1)
                    digest.update(os.pread(file.fileno(), _BLOCK, start))
    except OSError:
        return bytes(_DIGEST)
    return digest.digest()
