"""The leaderboard computed: rows of runs, scores with intervals, differences, effects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from flair2_exp.errors import ConfigError
from flair2_exp.report import statistics
from flair2_exp.report.factors import find_factors, fit_seeds, full_design
from flair2_exp.report.power import Outlook
from flair2_exp.report.results import (
    FEW_ROWS,
    Contrast,
    Difference,
    Report,
    ReportOptions,
    Row,
    Score,
)
from flair2_exp.report.rows import NOT_COMPARABLE, comparable, name_rows, require_comparable
from flair2_exp.report.runs import AbsentRun, RunSet, ScoredRun
from flair2_exp.report.statistics import Estimate, Floats, RowCounts
from flair2_exp.report.units import Unit, Units
from flair2_exp.tracking.tags import Tag

DEFAULT: Final = ReportOptions()
_NUMBERS: Final = ("value", "error", "low", "high")


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

    Returns:
        The report. Runs that cannot be compared with the baseline's are among its absent ones.

    Raises:
        ConfigError: Nothing to report, an unknown baseline, two runs of one config and seed, or
            what `ReportOptions.strict` refuses.
    """
    named, others = _comparable(runs, options)
    absent = (*_all_absent(named, runs.absent, expected), *others)
    if not named:
        states = ", ".join(f"{each.row} seed {each.seed}: {each.state}" for each in absent)
        raise ConfigError(f"there is no finished run to report ({states or 'no run at all'}).")
    compared = _compare(named, absent, options)
    names, units, contrasts = list(compared.by_row), compared.units, compared.contrasts
    levels, further = slice(len(names)), slice(len(names), len(names) + len(contrasts))
    # Levels and differences in one go: the resampling is what takes time.
    both = units.estimate(
        np.concatenate([np.eye(len(names)), contrasts]), family=further, **_drawing(options)
    )
    differences = _differences(both, further, compared.pairs)
    against = {each.row: each for each in differences if each.other == compared.baseline}
    report = Report(
        options=options,
        rows=_rows(both, levels, compared, absent, against),
        absent=absent,
        differences=differences,
        nomenclature=named[0].counts.nomenclature,
        baseline=compared.baseline,
        unit=units.unit,
        domains=len(np.unique(units.domains)),
        areas=len(units.domains),
        alike=(units.correlation(np.eye(len(names))), units.correlation(contrasts)),
        outlook=Outlook.of(units.drawn, contrasts),
    )
    return report if options.factors is None else _with_effects(report, units)


def outlook(runs: RunSet, options: ReportOptions = DEFAULT) -> tuple[Outlook | None, Unit]:
    """Return what more seeds would show, as a report of these runs says it, and the unit.

    Raises:
        ConfigError: What `build_report` refuses.
    """
    if not runs.runs:
        return None, "area"
    compared = _compare(_comparable(runs, options)[0], runs.absent, options)
    return Outlook.of(compared.units.drawn, compared.contrasts), compared.units.unit


@dataclass(frozen=True)
class _Compared:
    """Rows that may be compared, and with which."""

    by_row: Mapping[str, Sequence[ScoredRun]]
    """Their runs, by seed."""
    units: Units
    baseline: str
    pairs: Sequence[tuple[str, str]]
    contrasts: Floats
    """(pairs, rows)."""


def _comparable(
    runs: RunSet, options: ReportOptions
) -> tuple[list[ScoredRun], Sequence[AbsentRun]]:
    """Return the runs that may be compared, by the names of their rows, and the others."""
    if options.strict:
        named = name_rows(runs.runs, strict=True)
        require_comparable(named)
        return named, ()
    kept, others = comparable(runs.runs, options.baseline)
    return name_rows(kept), others


def _compare(
    named: Sequence[ScoredRun], absent: Sequence[AbsentRun], options: ReportOptions
) -> _Compared:
    """Put runs into rows, and those into pairs."""
    by_row = {
        row: sorted((run for run in named if run.row == row), key=lambda run: run.seed)
        for row in dict.fromkeys(run.row for run in named)
    }
    names = list(by_row)
    baseline = _baseline(options.baseline, names, absent)
    counts = [_row_counts(name, by_row[name]) for name in names]
    every = options.pairs == "all" or (options.pairs == "auto" and len(names) <= FEW_ROWS)
    pairs, contrasts = statistics.pair_contrasts(
        len(names), names.index(baseline), against_all=every
    )
    units = Units.of(counts, named[0].counts.areas, options.unit)
    named_pairs = [(names[one], names[other]) for one, other in pairs]
    return _Compared(by_row, units, baseline, named_pairs, contrasts)


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
        trained = [run for run in runs if not run.tag(Tag.MEMBERS)]  # others are scored as asked
        rows = dict.fromkeys([run.row for run in trained] + [each.row for each in absent])
        seeds = sorted({run.seed for run in trained})
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


def _row_counts(name: str, runs: Sequence[ScoredRun]) -> RowCounts:
    confusions = [run.counts.confusion for run in runs]
    return statistics.row_counts(name, confusions, runs[0].counts.nomenclature.scored)


def _drawing(options: ReportOptions) -> dict[str, int]:
    return {"resamples": options.resamples, "seed": options.seed}


def _differences(
    both: tuple[Estimate, Estimate | None], part: slice, named: Sequence[tuple[str, str]]
) -> tuple[Difference, ...]:
    """Return contrasts as differences; those of rows with one seed are not tested."""
    main, by_area = _part(both, part)
    numbers = {name: getattr(main, name) for name in _NUMBERS}
    numbers |= {name: getattr(main, name) for name in ("joint_low", "joint_high", "joint_p")}
    numbers["p"] = np.where(main.seeds_known[:, None], main.p, np.nan)
    if by_area is not None:
        ends = ((by_area.joint_low, by_area.low), (by_area.joint_high, by_area.high))
        known = main.seeds_known[:, None]
        numbers["area_low"], numbers["area_high"] = (np.where(known, *each) for each in ends)
    made = []
    for at, ((row, other), known) in enumerate(zip(named, main.seeds_known, strict=True)):
        miou, *classes = map(Contrast.of, _by_column(numbers, at))
        made.append(Difference(row, other, miou, tuple(classes), bool(known)))
    return tuple(made)


def _part(both: tuple[Estimate, Estimate | None], part: slice) -> tuple[Estimate, Estimate | None]:
    """Return the estimates of some contrasts, over units and, where those are others, areas."""
    main, by_area = both
    return main.part(part), None if by_area is None else by_area.part(part)


def _by_column(numbers: Mapping[str, Floats], at: int) -> list[dict[str, float]]:
    """Return line `at` of tables (M, 1 + C) as the numbers of mIoU and of each class."""
    lines = {name: table[at] for name, table in numbers.items()}
    names = list(lines)
    return [dict(zip(names, column, strict=True)) for column in zip(*lines.values(), strict=True)]


def _rows(
    both: tuple[Estimate, Estimate | None],
    part: slice,
    compared: _Compared,
    absent: Sequence[AbsentRun],
    against: Mapping[str, Difference],
) -> tuple[Row, ...]:
    main, by_area = _part(both, part)
    numbers = {name: getattr(main, name) for name in _NUMBERS}
    if by_area is not None:
        numbers |= {"area_low": by_area.low, "area_high": by_area.high}
    for end in numbers.keys() - {"value", "error"}:  # cut to 0..1, where every IoU lies
        numbers[end] = numbers[end].clip(0.0, 1.0)
    made = []
    of_rows = statistics.scores(compared.units.by_area)
    for at, (name, scores) in enumerate(zip(compared.by_row, of_rows, strict=True)):
        miou, *classes = map(Score.of, _by_column(numbers, at))
        made.append(
            Row(
                runs=tuple(compared.by_row[name]),
                scores=tuple(scores[:, 0].tolist()),
                absent=tuple(
                    run for run in absent if run.row == name and run.state != NOT_COMPARABLE
                ),
                miou=miou,
                classes=tuple(classes),
                against_baseline=against.get(name),
            )
        )
    return tuple(made)


def _with_effects(report: Report, units: Units) -> Report:
    """Add the factors' effects; a design that is not full is noted: the rest stands."""
    settings = [row.runs[0].settings for row in report.rows]
    try:
        factors = find_factors(settings, report.options.factors or ())
        design = full_design([row.name for row in report.rows], settings, factors)
    except ConfigError as error:
        return dataclasses.replace(report, factors_refused=str(error))
    names, codes = zip(*design.effects(), strict=True)
    contrasts = np.zeros((len(names), len(report.rows)))
    contrasts[:, list(design.rows)] = codes
    every = slice(0, len(names))
    both = units.estimate(contrasts, pooled=True, family=every, **_drawing(report.options))
    over_seeds, freedom = fit_seeds(design, [row.scores for row in report.rows])
    effects = tuple(
        dataclasses.replace(effect, over_seeds=fit)
        for effect, fit in zip(
            _differences(both, every, [(name, "") for name in names]), over_seeds, strict=True
        )
    )
    return dataclasses.replace(report, effects=effects, seeds_freedom=freedom)
