"""The leaderboard: rows of runs, their scores with intervals, and what differs by more than luck.

`build_report` computes; `render.report_runs` writes it too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from flair2_exp.errors import ConfigError
from flair2_exp.nomenclature import SCORED
from flair2_exp.report import factors as factorial
from flair2_exp.report import statistics
from flair2_exp.report.collect import AbsentRun, Run, check_comparable, tell_rows_apart
from flair2_exp.report.published import PODIUM, Published, is_published_test, published
from flair2_exp.report.statistics import Floats, Integers

LEVEL: Final[float] = 0.95
SIGNIFICANT: Final[float] = 0.05
FEW_AREAS: Final[int] = 30
"""Below this the simulated coverage of intervals per class leaves 92..98 %; the report says so."""

FEW_ROWS: Final[int] = 6
"""Up to here all pairs are compared, and rows are drawn side by side."""
MIN_RESAMPLES: Final[int] = 100
"""The smallest number whose 95 % quantile is not among the last few draws."""


@dataclass(frozen=True)
class Score:
    """A figure with its standard error and 95 % interval; None where nothing can be said."""

    value: float | None
    error: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Row minus baseline (`row` − `other`), or a factor's effect (`other` empty)."""

    row: str
    other: str
    miou: Score
    p: float | None
    p_holm: float | None
    """Holm-corrected over the table's comparisons (of factors: over the effects)."""
    classes: tuple[Score, ...]
    class_p: tuple[float | None, ...]
    class_p_holm: tuple[float | None, ...]
    """Holm-corrected over all comparisons × classes: a family of their own."""
    seeds_known: bool
    """False where a row that takes part has one seed: the interval is over areas alone."""


@dataclass(frozen=True)
class Row:
    """One row of the leaderboard.

    Attributes:
        name: Of the row.
        seeds: Of its finished runs.
        scores: mIoU of each, in the order of `seeds`.
        absent: Its runs that could not be scored.
        miou: Mean over the finished seeds.
        deviation: Standard deviation over seeds (n - 1); None with one.
        classes: IoU of the scored classes, mean over seeds.
        against_baseline: Difference to the baseline row; None for that row.
        published: The published figures, on the real test set alone.
        parameters: Of the model.
        train_seconds: Mean over runs.
        inference_seconds: Mean over runs, of the whole test set.
        confusion: (C, C) int64 pixels, summed over seeds and areas.
        curves: By metric, one course a seed.
    """

    name: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    absent: tuple[AbsentRun, ...]
    miou: Score
    deviation: float | None
    classes: tuple[Score, ...]
    against_baseline: Difference | None
    published: Published | None
    parameters: int | None
    train_seconds: float | None
    inference_seconds: float | None
    confusion: Integers
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]

    @property
    def best(self) -> float:
        """The best run's mIoU."""
        return max(self.scores)


@dataclass(frozen=True)
class Factorial:
    """Effects of a full factorial, or why there are none."""

    effects: tuple[Difference, ...] = ()
    over_seeds: factorial.SeedFit | None = None
    refused: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that the outputs show.

    Attributes:
        title: Of the report.
        rows: With finished runs, in the order given.
        absent: All runs that could not be scored, of rows without a finished run too.
        differences: The pairs shown (`pairs`): row minus baseline, else later row minus earlier.
        class_names: All C classes; the first `scored` count.
        scored: How many classes count.
        baseline: Name of the row that others are measured against.
        setting: dataset, fingerprint, split, other_pixels (empty: not recorded).
        areas: Number of units drawn by the bootstrap.
        unit: `area` or `domain`.
        patches: Test patches of a run.
        resamples: Of the bootstrap.
        factorial: Where factors were asked for.
        notes: What a reader must know beside the figures.
        paths: Files written, by format and name.
    """

    title: str
    rows: tuple[Row, ...]
    absent: tuple[AbsentRun, ...]
    differences: tuple[Difference, ...]
    class_names: tuple[str, ...]
    scored: int
    baseline: str
    setting: Mapping[str, str]
    areas: int
    unit: str
    patches: int
    resamples: int
    factorial: Factorial | None
    notes: tuple[str, ...]
    paths: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def synthetic(self) -> bool:
        """Whether the scores are of the synthetic sample data set."""
        return self.setting.get("dataset") == "sample"

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)


def build_report(
    runs: Sequence[Run],
    *,
    absent: Sequence[AbsentRun] = (),
    expected: Iterable[tuple[str, int]] = (),
    baseline: str | None = None,
    factors: Sequence[str] | None = None,
    title: str = "Leaderboard",
    pairs: str = "auto",
    unit: str = "area",
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Report:
    """Compute a report.

    Args:
        runs: Finished runs (`collect.read_mlflow`, `collect.read_folders`).
        absent: Runs that failed or are unreadable, with their state.
        expected: (row, seed) pairs that should be there; those that are not are "missing". Without
            it each row should have the seeds that the others have.
        baseline: Row that others are measured against; the first row by default, and in place of
            one that has no finished run.
        factors: Config keys of a factorial; empty for the known ones that vary; None for no
            factorial.
        title: Of the report.
        pairs: Comparisons shown and corrected for: `all` pairs of rows, those with the `baseline`
            alone, or `auto`: all up to `FEW_ROWS` rows. A table of 16 rows has 120 pairs, and
            correcting for them hides what the 15 with the baseline would show.
        unit: What the bootstrap draws: `area`, or `domain` (fewer, and more independent).
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ConfigError: Nothing to report, an unknown baseline, two runs of one config and seed, or
            runs that cannot be compared.
    """
    named, runs = runs, tell_rows_apart(runs)
    absent = _all_absent(named, runs, absent, expected)
    if not runs:
        states = ", ".join(f"{each.row} seed {each.seed}: {each.state}" for each in absent)
        raise ConfigError(f"no finished run to report ({states or 'none given'})")
    _check_choice("unit", unit, ("area", "domain"))
    _check_choice("pairs", pairs, ("auto", "all", "baseline"))
    if resamples < MIN_RESAMPLES:
        raise ConfigError(f"resamples={resamples}: a 95 % interval needs {MIN_RESAMPLES} or more")
    check_comparable(runs)
    by_row = _by_row(runs)
    names = list(by_row)
    first = _baseline(baseline, names, absent)
    every = pairs == "all" or (pairs == "auto" and len(names) <= FEW_ROWS)
    counts = [_row_counts(name, by_row[name], unit) for name in names]
    work = _Work(counts, resamples, seed)
    levels, differences = _levels_and_differences(work, names.index(first), every)
    sample = runs[0].counts
    report = Report(
        title=title,
        rows=_rows(work, levels, by_row, absent, differences, first),
        absent=absent,
        differences=differences,
        class_names=sample.classes,
        scored=counts[0].hits.shape[2],
        baseline=first,
        setting=_setting(runs),
        areas=counts[0].areas,
        unit=unit,
        patches=sample.patches,
        resamples=resamples,
        factorial=None if factors is None else _factorial(work, by_row, factors),
        notes=(),
    )
    replaced = baseline if baseline not in (None, first) else None
    return dataclasses.replace(report, notes=tuple(_notes(report, runs, replaced)))


def _baseline(wanted: str | None, names: Sequence[str], absent: Sequence[AbsentRun]) -> str:
    """The row to measure against: a report against another row is better than none at all."""
    if wanted is None or (wanted not in names and any(each.row == wanted for each in absent)):
        return names[0]
    if wanted not in names:
        raise ConfigError(f"baseline {wanted} is no row of the report: {', '.join(names)}")
    return wanted


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value} of a report is not one of {', '.join(choices)}")


@dataclass(frozen=True)
class _Work:
    """The rows' counts and how to estimate from them."""

    counts: Sequence[statistics.RowCounts]
    resamples: int
    seed: int

    @property
    def names(self) -> list[str]:
        return [row.name for row in self.counts]

    def estimate(self, contrasts: Floats, *, pooled: bool = False) -> statistics.Estimate:
        return statistics.estimate(
            self.counts,
            contrasts,
            resamples=self.resamples,
            seed=self.seed,
            level=LEVEL,
            pooled=pooled,
        )


def _all_absent(
    named: Sequence[Run],
    runs: Sequence[Run],
    absent: Sequence[AbsentRun],
    expected: Iterable[tuple[str, int]],
) -> tuple[AbsentRun, ...]:
    """Known absent runs, expected ones without a trace, and seeds that other rows have.

    `named` are the runs under the names that `absent` and `expected` know, before rows of one name
    were told apart.
    """
    there = {(run.row, run.seed) for run in (*named, *runs)}
    found = {(each.row, each.seed): each for each in absent if (each.row, each.seed) not in there}
    wanted = list(expected)
    if not wanted:
        rows = dict.fromkeys([run.row for run in runs] + [each.row for each in absent])
        seeds = sorted({run.seed for run in runs})
        wanted = [(row, seed) for row in rows for seed in seeds]
    for place in wanted:
        if place not in there:
            found.setdefault(place, AbsentRun(*place, "missing", "no run of this seed"))
    return tuple(found.values())


def _by_row(runs: Sequence[Run]) -> dict[str, list[Run]]:
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run)
    return {row: sorted(found, key=lambda run: run.seed) for row, found in rows.items()}


def _row_counts(name: str, runs: Sequence[Run], unit: str) -> statistics.RowCounts:
    confusions = [run.counts.confusion for run in runs]
    if unit == "domain":
        domains = np.array([area.split("/")[0] for area in runs[0].counts.areas])
        confusions = [statistics.sum_by_area(domains, each)[1] for each in confusions]
    return statistics.row_counts(name, confusions, min(SCORED, len(runs[0].counts.classes)))


def _setting(runs: Sequence[Run]) -> dict[str, str]:
    """What the runs agree on; a value that only some recorded counts."""
    keys = ("dataset", "fingerprint", "split", "other_pixels")
    return {
        key: next((run.setting[key] for run in runs if run.setting.get(key)), "") for key in keys
    }


def _levels_and_differences(
    work: _Work, baseline: int, every: bool
) -> tuple[statistics.Estimate, tuple[Difference, ...]]:
    """Each row's score, and the pairs of rows: Holm's family is the pairs shown."""
    count = len(work.counts)
    pairs, contrasts = statistics.pair_contrasts(count, baseline, against_all=every)
    found = work.estimate(np.concatenate([np.eye(count), contrasts]))
    named = [(work.names[one], work.names[other]) for one, other in pairs]
    return found.part(slice(count)), _contrasted(found.part(slice(count, None)), named)


def _contrasted(
    estimate: statistics.Estimate, named: Sequence[tuple[str, str]]
) -> tuple[Difference, ...]:
    of_mean, of_classes = statistics.holm(estimate.p[:, 0]), statistics.holm(estimate.p[:, 1:])
    return tuple(
        Difference(
            row=row,
            other=other,
            miou=_score(estimate, at, 0),
            p=_known(estimate.p[at, 0]),
            p_holm=_known(of_mean[at]),
            classes=tuple(_score(estimate, at, 1 + one) for one in range(of_classes.shape[1])),
            class_p=tuple(_known(value) for value in estimate.p[at, 1:]),
            class_p_holm=tuple(_known(value) for value in of_classes[at]),
            seeds_known=bool(estimate.seeds_known[at]),
        )
        for at, (row, other) in enumerate(named)
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _score(estimate: statistics.Estimate, at: int, kind: int) -> Score:
    return Score(
        _known(estimate.value[at, kind]),
        _known(estimate.error[at, kind]),
        _known(estimate.low[at, kind]),
        _known(estimate.high[at, kind]),
    )


def _level(estimate: statistics.Estimate, at: int, kind: int) -> Score:
    """A score with its interval cut to 0..1, where every IoU lies."""
    score = _score(estimate, at, kind)
    if score.low is None or score.high is None:
        return score
    return Score(score.value, score.error, max(score.low, 0.0), min(score.high, 1.0))


def _rows(
    work: _Work,
    levels: statistics.Estimate,
    by_row: Mapping[str, Sequence[Run]],
    absent: Sequence[AbsentRun],
    differences: Sequence[Difference],
    baseline: str,
) -> tuple[Row, ...]:
    against = {each.row: each for each in differences if each.other == baseline}
    of_seeds = statistics.scores(work.counts)
    rows = []
    for at, name in enumerate(work.names):
        runs, scores = by_row[name], of_seeds[at][:, 0]
        rows.append(
            Row(
                name=name,
                seeds=tuple(run.seed for run in runs),
                scores=tuple(float(score) for score in scores),
                absent=tuple(each for each in absent if each.row == name),
                miou=_level(levels, at, 0),
                deviation=float(scores.std(ddof=1)) if len(scores) > 1 else None,
                classes=tuple(_level(levels, at, kind) for kind in range(1, levels.value.shape[1])),
                against_baseline=against.get(name),
                published=_published(runs),
                parameters=_whole(_mean_metric(runs, "model/parameters")),
                train_seconds=_mean_metric(runs, "train/seconds"),
                inference_seconds=_mean_metric(runs, "inference/seconds"),
                confusion=np.sum([run.counts.confusion.sum(axis=0) for run in runs], axis=0),
                curves=_curves(runs),
            )
        )
    return tuple(rows)


def _published(runs: Sequence[Run]) -> Published | None:
    """The published row, where all runs are of its settings and of the real, whole test set."""
    found = {published(run.settings) for run in runs}
    allowed = all(
        is_published_test(
            run.setting.get("dataset", ""),
            run.counts.patches,
            run.setting.get("other_pixels", ""),
        )
        for run in runs
    )
    return found.pop() if allowed and len(found) == 1 else None


def _mean_metric(runs: Sequence[Run], name: str) -> float | None:
    values = [run.metrics[name] for run in runs if name in run.metrics]
    return sum(values) / len(values) if values else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _curves(runs: Sequence[Run]) -> dict[str, list[Sequence[tuple[float, float]]]]:
    curves: dict[str, list[Sequence[tuple[float, float]]]] = {}
    for run in runs:
        for name, curve in run.curves.items():
            curves.setdefault(name, []).append(curve)
    return curves


def _factorial(work: _Work, by_row: Mapping[str, Sequence[Run]], keys: Sequence[str]) -> Factorial:
    """The factors' effects; a design that is not full is told, not raised: the rest stands."""
    settings = [by_row[name][0].settings for name in work.names]
    try:
        factors = factorial.find_factors(settings, keys)
        design = factorial.full_design(work.names, settings, factors)
    except ConfigError as error:
        return Factorial(refused=str(error))
    effects = design.effects()
    contrasts = np.zeros((len(effects), len(work.counts)))
    contrasts[:, list(design.rows)] = [codes for _, codes in effects]
    found = work.estimate(contrasts, pooled=True)
    scores = [[float(score) for score in row[:, 0]] for row in statistics.scores(work.counts)]
    return Factorial(
        _contrasted(found, [(name, "") for name, _ in effects]),
        factorial.fit_seeds(design, scores, LEVEL),
    )


def _notes(report: Report, runs: Sequence[Run], replaced: str | None) -> Iterable[str]:
    if replaced is not None:
        yield (
            f"The baseline {replaced} has no finished run: differences are to {report.baseline}, "
            "the first row that has one."
        )
    if report.synthetic:
        yield (
            "Synthetic sample data: these scores say nothing about FLAIR #2 and are never shown "
            "beside published ones."
        )
    for each in report.absent:
        reason = f" ({each.reason})" if each.reason else ""
        yield f"{each.row}, seed {each.seed}: {each.state}{reason}; not in any figure."
    if single := [row.name for row in report.rows if len(row.seeds) == 1]:
        yield (
            f"One seed only: {', '.join(single)}. Their intervals are over {report.unit}s alone; "
            "the luck of the seed is not known and not in them."
        )
    if report.areas == 1:
        yield f"A single test {report.unit}: no interval can be given."
    elif report.areas < FEW_AREAS:
        yield (
            f"Only {report.areas} test {report.unit}s: intervals are wide, and those of a rare "
            "class hold the truth less often than they say (in 86 to 90 % of simulated cases)."
        )
    yield from _disagreements(report, runs)
    if any(not report.setting.get(key) for key in ("dataset", "split", "other_pixels")):
        lacking = [key for key, value in report.setting.items() if not value]
        yield f"Not recorded by the runs: {', '.join(lacking)}; the test patches are the same."
    if any(row.published for row in report.rows):
        yield (
            "Published: leaderboard figure (a best run) and earlier mean ± standard deviation. The "
            "mean is what to reproduce. Challenge podium, for scale: "
            + ", ".join(f"{score:.4f}" for score in PODIUM)
            + "."
        )


def _disagreements(report: Report, runs: Sequence[Run]) -> Iterable[str]:
    """Runs whose logged score is not that of their counts: an artifact of another run."""
    for row in report.rows:
        for score, run in zip(row.scores, _of_row(runs, row), strict=True):
            logged = run.metrics.get("test/miou")
            if logged is not None and abs(logged - score) > 1e-4:
                yield (
                    f"{row.name}, seed {run.seed}: logged test/miou {logged:.4f}, but the counts "
                    f"give {score:.4f}, which is shown."
                )


def _of_row(runs: Sequence[Run], row: Row) -> list[Run]:
    return sorted((run for run in runs if run.row == row.name), key=lambda run: run.seed)
