"""Runs for a report, from the folders that they left.

What has no score (failed, still running, without counts, damaged) is not dropped: the report shows
it with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flair2_exp.errors import ConfigError, DataError, FlairError
from flair2_exp.lifecycle.folder import RunFolder, run_folders
from flair2_exp.lifecycle.record import FINISHED, RunRecord, read_settings
from flair2_exp.report.counts import read_counts
from flair2_exp.report.runs import CURVES, AbsentRun, Curve, RunSet, ScoredRun
from flair2_exp.results.run import read_history
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import flat_text


def read_folders(folders: Iterable[Path]) -> RunSet:
    """Read run folders, and all run folders below folders that are none themselves.

    Raises:
        ConfigError: There is no run folder in one of `folders`.
    """
    runs: list[ScoredRun | AbsentRun] = []
    for start in folders:
        before = len(runs)
        runs += map(read_folder, run_folders(start))
        if len(runs) == before:
            raise ConfigError(
                f"there is no run folder in {start}: expected one with a "
                f"{RunFolder(start).config.name}.\n"
                "Name the folder of a run, of a sweep, or multirun."
            )
    return RunSet.of(runs)


def read_folder(folder: RunFolder) -> ScoredRun | AbsentRun:
    """Read a run's record, config, history and counts, or why it has no score."""
    record = None
    try:
        record = RunRecord.read(folder)
        if record is None:
            names = f"{folder.record.name} or {folder.metrics.name}"
            raise DataError(f"{names} of {folder} is missing or damaged. Start the run again.")
        if record.status != FINISHED:
            return AbsentRun.of(record, str(folder))
        return ScoredRun(
            record=record,
            counts=read_counts(folder.confusion),
            settings=_read_settings(folder),
            curves=_read_history(folder),
            source=str(folder),
            folder=folder.path,
        )
    except FlairError as error:
        row, seed = (record.row, record.seed) if record else _row_and_seed(folder)
        state = "damaged" if folder.confusion.exists() else "unfinished"
        return AbsentRun(row, seed, state, str(error))


def _row_and_seed(folder: RunFolder) -> tuple[str, int]:
    """Return the row and the seed of a run without a record, by its config as far as it goes."""
    try:
        settings = _read_settings(folder)
    except DataError:
        settings = {}
    row = settings.get(f"tracking.tags.{Tag.ROW}") or settings.get("name") or folder.path.name
    seed = settings.get("seed", "")
    return row, int(seed) if seed.isdecimal() else -1


def _read_settings(folder: RunFolder) -> dict[str, str]:
    """Return a config, flat, values as text."""
    return flat_text(read_settings(folder))


def _read_history(folder: RunFolder) -> dict[str, Curve]:
    """Return the curves of a run's history; epochs without a value are left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in read_history(folder, CURVES):
        for name in CURVES:
            if name in row:
                curves.setdefault(name, []).append((row["epoch"], row[name]))
    return dict(curves)
