"""The leaderboard computed: rows of runs, scores with intervals, differences, effects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from flair2_exp.errors import ConfigError
from flair2_exp.nomenclature import SCORED
from flair2_exp.report import statistics
from flair2_exp.report.factors import find_factors, fit_seeds, full_design
from flair2_exp.report.results import (
    FEW_ROWS,
    Contrast,
    Difference,
    Report,
    ReportOptions,
    Row,
    Score,
)
from flair2_exp.report.rows import name_rows, require_comparable
from flair2_exp.report.runs import AbsentRun, RunSet, ScoredRun
from flair2_exp.report.statistics import Estimate, Floats, RowCounts

DEFAULT: Final = ReportOptions()


def build_report(
    runs: RunSet,
    options: ReportOptions = DEFAULT,
    expected: Iterable[tuple[str, int]] = (),
) -> Report:
    """Compute a report.

    Args:
        runs: Finished runs and those without a score (`store.read_mlflow`, `folders.read_folders`).
        options: How to report them.
        expected: (row, seed) pairs that should be there; those that are not are "missing". Without
            it each row should have the seeds that the others have.

    Raises:
        ConfigError: Nothing to report, an unknown baseline, two runs of one config and seed, runs
            that cannot be compared, or what `ReportOptions.strict` refuses.
    """
    named = name_rows(runs.runs, strict=options.strict)
    absent = _all_absent(named, runs.absent, expected)
    if not named:
        states = ", ".join(f"{each.row} seed {each.seed}: {each.state}" for each in absent)
        raise ConfigError(f"there is no finished run to report ({states or 'no run at all'}).")
    require_comparable(named)
    by_row = {
        row: sorted((run for run in named if run.row == row), key=lambda run: run.seed)
        for row in dict.fromkeys(run.row for run in named)
    }
    names = list(by_row)
    baseline = _baseline(options.baseline, names, absent)
    counts = [_row_counts(name, by_row[name], options.unit) for name in names]
    every = options.pairs == "all" or (options.pairs == "auto" and len(names) <= FEW_ROWS)
    pairs, contrasts = statistics.pair_contrasts(
        len(names), names.index(baseline), against_all=every
    )
    # Levels and differences in one go: the resampling is what takes time.
    both = _estimate(counts, np.concatenate([np.eye(len(names)), contrasts]), options)
    differences = _differences(
        both.part(slice(len(names), None)), [(names[one], names[other]) for one, other in pairs]
    )
    against = {each.row: each for each in differences if each.other == baseline}
    report = Report(
        options=options,
        rows=_rows(both, counts, by_row, absent, against),
        absent=absent,
        differences=differences,
        class_names=named[0].counts.classes,
        baseline=baseline,
        areas=counts[0].areas,
    )
    return report if options.factors is None else _with_effects(report, counts)


def _all_absent(
    runs: Sequence[ScoredRun], absent: Sequence[AbsentRun], expected: Iterable[tuple[str, int]]
) -> tuple[AbsentRun, ...]:
    """Return absent runs, expected ones without a trace, and seeds that other rows have.

    `absent` and `expected` name rows as they were before rows of one name were told apart. Of
    several that speak of one run the last one counts.
    """
    scored = {(row, run.seed) for run in runs for row in (run.row, run.record.row)}
    places = {(each.row, each.seed): each for each in absent if (each.row, each.seed) not in scored}
    wanted = list(expected)
    if not wanted:
        rows = dict.fromkeys([run.row for run in runs] + [each.row for each in absent])
        seeds = sorted({run.seed for run in runs})
        wanted = [(row, seed) for row in rows for seed in seeds]
    for place in wanted:
        if place not in scored:
            places.setdefault(place, AbsentRun(*place, "missing", "no run of this seed"))
    return tuple(places.values())


def _baseline(wanted: str | None, rows: Sequence[str], absent: Sequence[AbsentRun]) -> str:
    """Return the row to measure against: a report against another row is better than none."""
    if wanted is None or (wanted not in rows and any(each.row == wanted for each in absent)):
        return rows[0]
    if wanted not in rows:
        raise ConfigError(
            f"baseline={wanted} is not a row of the report: expected one of {', '.join(rows)}."
        )
    return wanted


def _row_counts(name: str, runs: Sequence[ScoredRun], unit: str) -> RowCounts:
    confusions = [run.counts.confusion for run in runs]
    if unit == "domain":
        domains = np.array([area.split("/")[0] for area in runs[0].counts.areas])
        confusions = [statistics.sum_by_area(domains, each)[1] for each in confusions]
    return statistics.row_counts(name, confusions, min(SCORED, len(runs[0].counts.classes)))


def _estimate(
    counts: Sequence[RowCounts], contrasts: Floats, options: ReportOptions, *, pooled: bool = False
) -> Estimate:
    return statistics.estimate(
        counts, contrasts, resamples=options.resamples, seed=options.seed, pooled=pooled
    )


def _differences(estimate: Estimate, named: Sequence[tuple[str, str]]) -> tuple[Difference, ...]:
    holm = np.hstack([statistics.holm(estimate.p[:, :1]), statistics.holm(estimate.p[:, 1:])])
    numbers = np.stack(
        [estimate.value, estimate.error, estimate.low, estimate.high, estimate.p, holm], axis=-1
    )
    made = []
    for (row, other), each, known in zip(named, numbers, estimate.seeds_known, strict=True):
        miou, *classes = map(Contrast.of, each)
        made.append(Difference(row, other, miou, tuple(classes), bool(known)))
    return tuple(made)


def _rows(
    levels: Estimate,
    counts: Sequence[RowCounts],
    by_row: Mapping[str, Sequence[ScoredRun]],
    absent: Sequence[AbsentRun],
    against: Mapping[str, Difference],
) -> tuple[Row, ...]:
    # Intervals are cut to 0..1, where every IoU lies.
    low, high = np.maximum(levels.low, 0.0), np.minimum(levels.high, 1.0)
    numbers = np.stack([levels.value, levels.error, low, high], axis=-1)
    made = []
    for name, scores, each in zip(by_row, statistics.scores(counts), numbers, strict=False):
        miou, *classes = map(Score.of, each)
        made.append(
            Row(
                runs=tuple(by_row[name]),
                scores=tuple(scores[:, 0].tolist()),
                absent=tuple(run for run in absent if run.row == name),
                miou=miou,
                classes=tuple(classes),
                against_baseline=against.get(name),
            )
        )
    return tuple(made)


def _with_effects(report: Report, counts: Sequence[RowCounts]) -> Report:
    """Add the factors' effects; a design that is not full is noted: the rest stands."""
    settings = [row.runs[0].settings for row in report.rows]
    try:
        factors = find_factors(settings, report.options.factors or ())
        design = full_design([row.name for row in report.rows], settings, factors)
    except ConfigError as error:
        return dataclasses.replace(report, factors_refused=str(error))
    names, codes = zip(*design.effects(), strict=True)
    contrasts = np.zeros((len(names), len(counts)))
    contrasts[:, list(design.rows)] = codes
    estimate = _estimate(counts, contrasts, report.options, pooled=True)
    over_seeds, freedom = fit_seeds(design, [row.scores for row in report.rows])
    effects = tuple(
        dataclasses.replace(effect, over_seeds=fit)
        for effect, fit in zip(
            _differences(estimate, [(name, "") for name in names]), over_seeds, strict=True
        )
    )
    return dataclasses.replace(report, effects=effects, seeds_freedom=freedom)
