"""What a report costs: `python scripts/benchmark.py report [--rounds N]`.

First its statistics. Counts of FLAIR #2's size (16,050 test patches; with some 83 per area, as in
the whole data set, 193 areas) for the published table's five rows with five seeds each. Measured is
what happens to counts that are in memory: summing patches to areas, levels, all pairs of rows,
per-class scores, intervals, p. Reading the files is measured beside.

Then collecting many runs, 500 with 50 metrics each: from a sqlite store without and with the curves
that figures draw, and from run folders. Their counts are of few patches, since each run's file of
counts is read whatever the source is.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness import Figure, take_turns
from benchmarks.many_runs import SWEEP, make_runs
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.nomenclature import FLAIR_13
from flair2_exp.report.counts import Counts, read_counts
from flair2_exp.report.folders import read_folders
from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.results import ReportOptions
from flair2_exp.report.runs import RunSet, ScoredRun
from flair2_exp.report.statistics import RESAMPLES, Integers, sum_by_area
from flair2_exp.report.store import read_mlflow
from flair2_exp.tracking.tags import Tag

ROUNDS: Final = (1, 5)
OPTIONS: Final = {
    "--resamples": {"type": int, "default": RESAMPLES},
    "--patches": {"type": int, "default": 16_050},
    "--runs": {"type": int, "default": 500, "help": "how many are collected"},
    "--metrics": {"type": int, "default": 50, "help": "of each run that is collected"},
}
ROWS: Final = 5
SEEDS: Final = 5
AREAS: Final = 193
BOUND: Final = 10.0
"""Seconds, on two cores: a report at a sweep's end is not to be waited for."""
COLLECTING: Final = 5.0
"""Seconds for 500 runs with 50 metrics each, for the same reason."""
CLASSES: Final = FLAIR_13.names


def measure(arguments: Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Measure the statistics of counts in memory, reading one run's file, collecting many runs."""
    figures, facts = _statistics(arguments)
    return figures + _collecting(arguments), facts


def _collecting(arguments: Namespace) -> list[Figure]:
    """Measure reading many runs from a store and from folders."""
    with tempfile.TemporaryDirectory() as name:
        many = make_runs(Path(name), arguments.runs, arguments.metrics)
        calls: dict[str, Callable[[], RunSet]] = {
            "sqlite, without curves": lambda: read_mlflow(many.uri, sweep=SWEEP, curves=False),
            "sqlite, with curves": lambda: read_mlflow(many.uri, sweep=SWEEP),
            "folders": lambda: read_folders([many.folder]),
        }
        assert all(len(call().runs) == arguments.runs for call in calls.values())
        times = take_turns(calls, rounds=arguments.rounds, warmup=0)
    what = f"{arguments.runs} runs × {arguments.metrics} metrics"
    return [Figure(f"{what}, {source}", times[source], COLLECTING, unit="s") for source in times]


def _statistics(arguments: Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Measure the statistics of counts in memory, and reading one run's file."""
    patches, resamples = arguments.patches, arguments.resamples
    generator = np.random.default_rng(0)
    names = np.array([f"D{at // 19:03}_2021/Z{at % 19 + 1}_NN" for at in range(AREAS)])
    areas = names[np.arange(patches) * AREAS // patches]
    base = generator.integers(0, 200, (patches, len(CLASSES), len(CLASSES)), dtype=np.int32)
    base += 5000 * np.eye(len(CLASSES), dtype=np.int32)
    runs = [base + generator.integers(0, 50, base.shape, np.int32) for _ in range(ROWS * SEEDS)]

    def statistics() -> None:
        scored = (_scored(number, areas, counts) for number, counts in enumerate(runs))
        build_report(RunSet(tuple(scored)), ReportOptions(resamples=resamples))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.npz"
        ids = np.array([f"IMG_{at:06}" for at in range(patches)])
        classes = np.array(CLASSES)
        np.savez_compressed(path, patch_ids=ids, areas=areas, confusion=runs[0], classes=classes)
        calls = {"statistics": statistics, "reading": lambda: read_counts(path)}
        times = take_turns(calls, rounds=arguments.rounds)
    what = f"{resamples:,} resamples, {ROWS} rows × {SEEDS} seeds"
    return [
        Figure(f"statistics, {what}", times["statistics"], BOUND, unit="s"),
        Figure("reading the counts of one run", times["reading"], unit="s"),
    ], {"test set": f"{patches:,} patches in {AREAS} areas"}


def _scored(number: int, areas: np.ndarray, confusion: Integers) -> ScoredRun:
    names, summed = sum_by_area(areas, confusion)
    counts = Counts(tuple(map(str, names)), summed, FLAIR_13, len(areas), "the same")
    tags = {str(Tag.ROW): f"row {number // SEEDS}", str(Tag.SEED): str(number % SEEDS)}
    return ScoredRun(RunRecord(tags), counts)
