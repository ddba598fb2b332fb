"""Check a data set: every file that the tree names, all damage in one go.

    from flair2_exp.config.data import DatasetConfig
    from flair2_exp.data.check.tree import check_tree
    from flair2_exp.data.layout import locate

    for finding in check_tree(locate(DatasetConfig(root="data/flair2")), workers=2):
        print(finding.severity, finding.kind, finding.path, finding.message)

`check_tree` reads everything; with `headers_only` (and before a run, through `require_sound`) it
reads names, headers, lists and tables: that finds what is missing, truncated or of the wrong kind,
but neither a wrong mask value nor a pixel that does not decode.

Areas are checked in processes: decoding a raster leaves the interpreter's lock, but opening,
looking up and judging do not.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from flair2_exp.config.data import DataGroups
from flair2_exp.data.check.findings import Entry, Finding
from flair2_exp.data.check.names import Area, survey
from flair2_exp.data.check.rasters import Size, check_patch, check_sizes
from flair2_exp.data.check.series import SeriesShape, check_series
from flair2_exp.data.check.tables import check_centroid, check_metadata, check_table
from flair2_exp.data.layout import Folders, locate
from flair2_exp.errors import DataError
from flair2_exp.progress import Progress

SUPER_PATCH: Final = 40
"""Pixels on a side of the satellite crop, by default."""


class _AreaResult(NamedTuple):
    """What is wrong in an area, and what is compared across areas."""

    findings: list[Finding]
    sizes: dict[Path, Size]
    shape: SeriesShape | None


def check_tree(
    folders: Folders,
    *,
    headers_only: bool = False,
    workers: int = 1,
    super_patch: int = SUPER_PATCH,
    series: bool = True,
    metadata: bool = True,
    report: Progress | None = None,
) -> list[Finding]:
    """Find everything that is wrong with a data set, or strange.

    Args:
        folders: Where its parts are, as from `layout.locate`.
        headers_only: Whether to leave pixels and values unread.
        workers: Processes; 1 checks in this one.
        super_patch: Pixels on a side of the satellite crop that must fit into each area.
        series: Whether satellite series and centroids matter.
        metadata: Whether the aerial metadata matters.
        report: Called as patches are checked.

    Returns:
        The findings, errors first, by path. All-zero frames of a series are none; masks of the
        test set that are absent altogether are a warning.

    Raises:
        DataError: A worker process died, which a file can cause that crashes GDAL.
    """
    findings: list[Finding] = []
    areas = survey(folders, findings, series=series)
    total = sum(len(area.images) for area in areas)
    done = 0
    sizes: dict[Path, Size] = {}
    shapes: dict[tuple[str, bool], SeriesShape | None] = {}
    for area, result in _checked(areas, headers_only, workers):
        findings += result.findings
        sizes |= result.sizes
        shapes[area.name, area.test] = result.shape
        done += len(area.images)
        if report is not None:
            report(done, total)
    check_sizes(areas, sizes, findings)

    def check_place(entry: Entry, value: object, area: Area) -> None:
        check_centroid(entry, value, shapes[area.name, area.test], super_patch)

    if series and areas:
        check_table(folders, "centroids", areas, check_place, findings)
    if metadata and areas:
        check_table(folders, "aerial_metadata", areas, check_metadata, findings)
    return sorted(findings, key=lambda finding: (finding.severity, finding))


_passed: dict[tuple[object, ...], list[Finding]] = {}
"""Warnings of the data sets that this process found sound by their headers."""


def require_sound(groups: DataGroups, reads: frozenset[str]) -> list[Finding]:
    """Check by its headers, before a run, what the run reads of a data set.

    Once in a process as long as nothing is wrong: the jobs of a sweep in one process share a data
    set, and 77,762 headers take minutes on a network's disk. What is damaged between two jobs is
    found where it is read.

    Args:
        groups: The data set, the size of the satellite crop, and how many processes may check.
        reads: What the network reads, of `aerial`, `satellite` and `metadata`.

    Returns:
        The findings, errors first; with `dataset.on_damaged=stop` these are warnings only.

    Raises:
        DataError: Anything is wrong, and `dataset.on_damaged` is `stop`. The message names the
            first few files and how many there are.
    """
    folders, size = locate(groups.dataset), groups.s2_preproc.size
    wanted = *folders.items(), size, reads
    if wanted not in _passed:
        findings = check_tree(
            folders,
            headers_only=True,
            workers=max(1, groups.data.workers),
            super_patch=size,
            series="satellite" in reads,
            metadata="metadata" in reads,
        )
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors and groups.dataset.on_damaged == "stop":
            raise DataError(_summary(errors, size))
        if errors:
            return findings
        _passed[wanted] = findings
    return list(_passed[wanted])


def _summary(errors: Sequence[Finding], super_patch: int) -> str:
    """Return what is wrong in two lines."""
    shown = "; ".join(f"{error.path} ({error.subject}: {error.message})" for error in errors[:3])
    more = f"; and {len(errors) - 3:,} more" if len(errors) > 3 else ""
    kinds = Counter(error.kind for error in errors)
    if set(kinds) == {"centroid-near-border"}:  # no damage where less is asked for
        return (
            f"s2_preproc.size={super_patch} leaves the areas' series: {shown}{more}.\n"
            "Choose a smaller s2_preproc.size, or correct the centroids."
        )
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
    return (
        f"damaged data set: {shown}{more}.\n{counts}; `flair2-exp check ROOT "
        f"--super-patch {super_patch}` lists all. Download the damaged files again."
    )


def _checked(
    areas: Sequence[Area], headers_only: bool, workers: int
) -> Iterator[tuple[Area, _AreaResult]]:
    """Yield each area with what is wrong with it, as they are done."""
    check = partial(_check_area, headers_only=headers_only)
    # A worker of joblib has a start method of joblib's own, which fresh processes do not know.
    method = multiprocessing.get_start_method(allow_none=True)
    known = method is None or method in multiprocessing.get_all_start_methods()
    if workers <= 1 or len(areas) <= 1 or not known:
        yield from ((area, check(area)) for area in areas)
        return
    # Fresh processes: a forked one would inherit the locks that this one's threads hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts) as pool:
        futures = {pool.submit(check, area): area for area in areas}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            undone = [area.name for future, area in futures.items() if future.exception()]
            raise DataError(
                "a process died while it read a file, in one of the areas "
                f"{', '.join(undone[: 2 * workers])}.\nMove them away one by one and check again."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the main process, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_area(area: Area, *, headers_only: bool) -> _AreaResult:
    """Check the files of one area."""
    findings: list[Finding] = []
    sizes: dict[Path, Size] = {}
    for patch in area.patches():
        sizes |= check_patch(area, patch, findings, headers_only=headers_only)
    shape = None
    if area.series is not None:
        shape = check_series(area.name, area.series, findings, headers_only=headers_only)
    return _AreaResult(findings, sizes, shape)
