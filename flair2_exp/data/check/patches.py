"""Check any data source: read every patch, or look at what can be seen without that.

FLAIR #2 has a check of its own (`tree`), which knows its files.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from flair2_exp.config.data import DataGroups
from flair2_exp.data.check.findings import Finding
from flair2_exp.data.forked import forked
from flair2_exp.data.source import DataSource, Reader
from flair2_exp.errors import DamagedPatchError
from flair2_exp.progress import Progress

_CHUNK: Final = 16
"""Patches that a process takes at once."""
_DIED: Final = (
    "a process died while it read the patches: out of memory, or killed.\n"
    "Check again with fewer --workers."
)


def check_patches(
    source: DataSource,
    groups: DataGroups,
    reads: frozenset[str],
    *,
    headers_only: bool = False,
    workers: int = 1,
    report: Progress | None = None,
) -> list[Finding]:
    """Find the patches that lack something or cannot be read.

    Args:
        source: The data.
        groups: Options of the data.
        reads: What matters, of `aerial`, `satellite` and `metadata`.
        headers_only: Whether to leave pixels unread.
        workers: Processes.
        report: Called with the patches checked so far and their total.

    Returns:
        The findings, by path.
    """
    source.settle(np.arange(len(source.index)), "all")
    findings = []
    for what, missing in source.lacking(reads).items():
        for patch in np.flatnonzero(missing).tolist():
            findings.append(_finding(source, patch, "missing", f"has no {what}"))
    if headers_only:
        if report is not None:
            report(len(source.index), len(source.index))
        return sorted([*findings, *source.require_sound()])
    for patch, message in _read_all(source.reader(groups, reads), workers, report):
        if message:
            findings.append(_finding(source, patch, "damaged-patch", message))
    return sorted(findings)


def _finding(source: DataSource, patch: int, kind: str, message: str) -> Finding:
    """Return what is wrong with a patch, at the one of its files that the message names."""
    paths = [Path(path) for path in source.paths(patch)]
    named = [path for path in paths if message.startswith(f"{path}: ")]
    path = (named or paths or [Path()])[0]
    return Finding(path, source.index.name(patch), kind, message.removeprefix(f"{path}: "))


def _read_all(reader: Reader, workers: int, report: Progress | None) -> Iterator[tuple[int, str]]:
    """Yield each patch with what is wrong with it; empty where nothing is."""
    count, done = len(reader.index), 0
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    work = functools.partial(_read_chunk, reader)
    for results in forked(work, chunks, workers, died=_DIED):
        for result in results:
            done += 1
            if report is not None:
                report(done, count)
            yield result


def _read_chunk(reader: Reader, patches: range) -> list[tuple[int, str]]:
    return [_read(reader, patch) for patch in patches]


def _read(reader: Reader, patch: int) -> tuple[int, str]:
    try:
        reader.read(patch)
    except DamagedPatchError as error:
        return patch, " ".join(str(error).split())
    return patch, ""
