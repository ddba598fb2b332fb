"""What a report costs: `python scripts/benchmark.py report [--rounds N] [--resamples N]`.

Counts of FLAIR #2's size (16,050 test patches; with some 83 per area, as in the whole data set,
193 areas) for the published table's five rows with five seeds each. Measured is what happens to
counts that are in memory: summing patches to areas, levels, all pairs of rows, per-class scores,
intervals, p. Reading the files is measured beside.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.harness import Figure, report, take_turns, this_machine
from flair2_exp.nomenclature import CLASSES_13
from flair2_exp.report.counts import Counts, read_counts
from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.results import ReportOptions
from flair2_exp.report.runs import RunSet, ScoredRun
from flair2_exp.report.statistics import RESAMPLES, Integers, sum_by_area
from flair2_exp.run.record import RunRecord
from flair2_exp.tracking.tags import Tag

ROWS: Final = 5
SEEDS: Final = 5
PATCHES: Final = 16_050
AREAS: Final = 193
BOUND: Final = 10.0
"""Seconds, on two cores: a report at a sweep's end is not to be waited for."""


def main(options: Sequence[str] = ()) -> int:
    """Measure and print; return 1 where the bound is missed."""
    parser = argparse.ArgumentParser(prog="benchmark.py report")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each figure (5)")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"({RESAMPLES})")
    parser.add_argument("--patches", type=int, default=PATCHES, help=f"({PATCHES})")
    arguments = parser.parse_args(list(options))
    machine = this_machine()
    areas, counted = _counted(arguments.patches)
    with tempfile.TemporaryDirectory() as folder:
        path = _write(Path(folder), areas, counted[0])
        times = take_turns(
            {
                "statistics": lambda: _statistics(areas, counted, arguments.resamples),
                "reading": lambda: read_counts(path),
            },
            rounds=arguments.rounds,
        )
    what = f"{arguments.resamples:,} resamples, {ROWS} rows × {SEEDS} seeds"
    figures = [
        Figure(f"statistics, {what}", times["statistics"], BOUND, unit="s"),
        Figure("reading the counts of one run", times["reading"], unit="s"),
    ]
    facts = {
        "machine": machine,
        "test set": f"{arguments.patches:,} patches in {AREAS} areas",
    }
    return report("report", figures, facts=facts)


def _counted(patches: int) -> tuple[np.ndarray, list[Integers]]:
    """Return the area of each patch, and counts (patches, 13, 13) of each run."""
    generator = np.random.default_rng(0)
    names = np.array([f"D{at // 19:03}_2021/Z{at % 19 + 1}_NN" for at in range(AREAS)])
    areas = names[np.arange(patches) * AREAS // patches]
    classes = len(CLASSES_13)
    base = generator.integers(0, 200, (patches, classes, classes), dtype=np.int32)
    base[:, np.arange(classes), np.arange(classes)] += 5000
    runs = range(ROWS * SEEDS)
    return areas, [base + generator.integers(0, 50, base.shape, dtype=np.int32) for _ in runs]


def _statistics(areas: np.ndarray, counted: Sequence[Integers], resamples: int) -> None:
    runs = []
    for at, confusion in enumerate(counted):
        names, summed = sum_by_area(areas, confusion)
        classes = tuple(each.name for each in CLASSES_13)
        counts = Counts(tuple(map(str, names)), summed, classes, len(areas), "the same")
        tags = {str(Tag.ROW): f"row {at // SEEDS}", str(Tag.SEED): str(at % SEEDS)}
        runs.append(ScoredRun(RunRecord(tags), counts))
    build_report(RunSet(tuple(runs)), ReportOptions(resamples=resamples))


def _write(folder: Path, areas: np.ndarray, confusion: Integers) -> Path:
    path = folder / "counts.npz"
    ids = np.array([f"IMG_{at:06}" for at in range(len(areas))])
    names = np.array([each.name for each in CLASSES_13])
    np.savez_compressed(path, patch_ids=ids, areas=areas, confusion=confusion, classes=names)
    return path
