"""What a report says, as numbers: rows with scores and intervals, differences, effects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np

from flair2_exp.config.fields import Group, option
from flair2_exp.nomenclature import Nomenclature
from flair2_exp.report.power import Outlook
from flair2_exp.report.published import Published, published_row
from flair2_exp.report.runs import AbsentRun, Curve, ScoredRun
from flair2_exp.report.statistics import RESAMPLES, Floats, Integers, sum_by_area
from flair2_exp.score import Convention, iou, known_mean, miou, score
from flair2_exp.tracking.tags import Tag

SIGNIFICANT: Final[float] = 0.05

FEW_ROWS: Final[int] = 6
"""Up to here all pairs are compared, and rows are drawn side by side."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Group):
    """How runs are reported."""

    title: str = "Leaderboard"
    baseline: str | None = None
    """The row that others are compared with; null: the first, as where it has no finished run."""
    factors: tuple[str, ...] | None = None
    """Options of a full factorial; empty: the published ones that vary; null: no factorial."""
    pairs: Literal["auto", "all", "baseline"] = "auto"
    """Comparisons shown and corrected for: `all` pairs of rows, those with the `baseline` alone, or
    `auto`: all with up to `FEW_ROWS` rows. A table of 16 rows has 120 pairs, and correcting for
    them hides what the 15 with the baseline would show."""
    unit: Literal["auto", "domain", "area"] = "auto"
    """What the bootstrap draws: domains, whose areas are alike, or areas, as if they were not;
    `auto`: domains where there are enough of them (`statistics.ENOUGH_DOMAINS`)."""
    difference: float | None = option(None, 1e-6, 1.0)
    """A difference in mIoU to plan for: the report says how many seeds it needs."""
    resamples: int = option(RESAMPLES, 100)
    """Of the bootstrap; with fewer a 95 % quantile is among the last few draws."""
    seed: int = option(0, 0)
    """Of the bootstrap."""
    command: str = ""
    """What makes the runs and the report again, for the report to name."""
    strict: bool = False
    """Whether runs are refused that cannot be compared with the baseline's, rather than left out;
    and runs of one row name that are different experiments, rather than made rows of their own."""


Ends = tuple[float | None, float | None]
"""Of an interval."""


@dataclass(frozen=True)
class Score:
    """A number with its standard error and 95 % interval; None where nothing can be said."""

    value: float | None
    error: float | None
    low: float | None
    high: float | None
    area_low: float | None = None
    area_high: float | None = None
    """Ends of the interval as it would be if the areas of a domain were independent; None where
    areas are the units."""

    @property
    def shown(self) -> Ends:
        """The interval for readers."""
        return self.low, self.high

    @property
    def beside(self) -> Ends:
        """The interval over areas."""
        return self.area_low, self.area_high

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> Self:
        """Return numbers by field as a score: NaN is not known."""
        return cls(**{name: float(each) if math.isfinite(each) else None
                      for name, each in numbers.items()})  # fmt: skip


@dataclass(frozen=True)
class Contrast(Score):
    """A difference of scores, tested against 0 where each row that takes part has several seeds."""

    p: float | None = None
    """Of the difference by itself, as `low` and `high` are."""
    joint_low: float | None = None
    joint_high: float | None = None
    """Ends of the interval that holds for all of the table's comparisons at once (of factors: for
    all effects): mIoU over the comparisons, classes over comparisons × classes. `area_low` and
    `area_high` are joint ones as well."""
    joint_p: float | None = None
    """Corrected for the same comparisons: below 0.05 where the joint interval leaves out 0."""

    @property
    def shown(self) -> Ends:
        """The interval for readers: the joint one, or that of a difference without a test."""
        tested = self.joint_p is not None
        return (self.joint_low, self.joint_high) if tested else (self.low, self.high)


@dataclass(frozen=True)
class Difference:
    """Row minus baseline (`row` − `other`), or a factor's effect (`other` empty)."""

    row: str
    other: str
    miou: Contrast
    classes: tuple[Contrast, ...]
    seeds_known: bool
    """False where a row that takes part has one seed: the interval is over units alone, and there
    is no test."""
    over_seeds: Contrast | None = None
    """Of an effect: by the runs' scores alone, on these very areas (`factors.fit_seeds`)."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return f"{self.row} − {self.other}" if self.other else self.row


@dataclass(frozen=True)
class Row:
    """One row of the leaderboard."""

    runs: tuple[ScoredRun, ...]
    """Its finished runs, by seed."""
    scores: tuple[float, ...]
    """mIoU of each."""
    absent: tuple[AbsentRun, ...]
    """Its runs that have no score."""
    miou: Score
    """Mean over the finished seeds."""
    classes: tuple[Score, ...]
    """IoU of the scored classes, mean over seeds."""
    against_baseline: Difference | None
    """None for that row."""

    @property
    def name(self) -> str:
        """Of the row."""
        return self.runs[0].row

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its finished runs."""
        return tuple(run.seed for run in self.runs)

    @property
    def best(self) -> float:
        """The best run's mIoU."""
        return max(self.scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the scores over seeds (n - 1); None with one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None

    @property
    def published(self) -> Published | None:
        """The published row, where all runs are of its settings and of the real, whole test set."""
        rows = {published_row(run) for run in self.runs}
        return rows.pop() if len(rows) == 1 else None

    @property
    def confusion(self) -> Integers:
        """(C, C) int64 pixels, summed over seeds and areas."""
        total: Integers = self._totals.sum(axis=0)
        return total

    @property
    def f1(self) -> float | None:
        """Mean F1 over the scored classes, absent ones left out; mean over the runs."""
        per_class = iou(self._totals)[:, : self._scored]
        return _known(known_mean(2 * per_class / (1 + per_class), -1))  # 2 TP / (2 TP + FP + FN)

    @property
    def accuracy(self) -> float | None:
        """Share of the counted pixels that are right, as runs log it; mean over the runs."""
        totals = self._totals
        pixels = totals.sum(axis=(1, 2))
        right = np.trace(totals, axis1=1, axis2=2) / np.where(pixels > 0, pixels, np.nan)
        return _known(right)

    @cached_property
    def _totals(self) -> Integers:
        """(S, C, C) pixels of each run."""
        return np.stack([run.counts.confusion.sum(axis=0) for run in self.runs])

    @property
    def _scored(self) -> int:
        return self.runs[0].counts.nomenclature.scored

    def by_domain(self) -> dict[str, float | None]:
        """Return mIoU by domain: of the classes that occur in it, mean over the runs."""
        of_areas = np.array([domain_of(area) for area in self.runs[0].counts.areas])
        each = [sum_by_area(of_areas, run.counts.confusion) for run in self.runs]
        means = known_mean(np.stack([miou(counts, self._scored) for _, counts in each]), 0)
        return {str(domain): _known(mean) for domain, mean in zip(each[0][0], means, strict=True)}

    def by_convention(self, convention: Convention) -> float | None:
        """Return the mean over runs of another mIoU; None where their counts do not give it."""
        scores = [
            score(
                convention,
                total,
                other_kept=run.convention is Convention.CHALLENGE,
                scored=self._scored,
            )
            for run, total in zip(self.runs, self._totals, strict=True)
        ]
        values = [float(each) for each in scores if each is not None and np.isfinite(each)]
        return sum(values) / len(values) if len(values) == len(scores) else None

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over the runs that measured it."""
        scores = [run.record.scores for run in self.runs]
        values = [each[metric] for each in scores if metric in each]
        return sum(values) / len(values) if values else None

    def curves(self, metric: str) -> list[Curve]:
        """Return the courses of a metric, one per seed that measured it."""
        return [run.curves[metric] for run in self.runs if metric in run.curves]


def domain_of(area: str) -> str:
    """Return the domain of an area `DOMAIN/AREA`; of data without domains the area."""
    return area.partition("/")[0]


def _known(values: Floats) -> float | None:
    """Return the mean of numbers that are all known, else None."""
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None


@dataclass(frozen=True)
class Report:
    """Everything that the outputs show."""

    options: ReportOptions
    rows: tuple[Row, ...]
    """With finished runs, in the order given."""
    absent: tuple[AbsentRun, ...]
    """All runs without a score, of rows without a finished run too."""
    differences: tuple[Difference, ...]
    """The pairs compared: row minus baseline, else later row minus earlier."""
    nomenclature: Nomenclature
    """All C classes, and which of them count."""
    baseline: str
    """Name of the row that others are measured against."""
    unit: Literal["domain", "area"]
    """What the bootstrap drew."""
    domains: int
    areas: int
    """Of the test set."""
    alike: tuple[float | None, float | None]
    """Correlation of the scores of two areas of one domain, and of their differences in score
    between two rows; None where it cannot be estimated."""
    outlook: Outlook | None
    """What more seeds would show; None without two rows, one of them with several seeds."""
    effects: tuple[Difference, ...] = ()
    """Of the factors, where they were asked for and make a full factorial."""
    seeds_freedom: int = 0
    """Residual degrees of freedom of the effects over seeds alone."""
    factors_refused: str = ""
    """Why there are no effects, where they were asked for."""
    paths: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """All C classes."""
        return self.nomenclature.names

    @property
    def scored(self) -> tuple[str, ...]:
        """The classes that count."""
        return self.class_names[: self.nomenclature.scored]

    @property
    def truth(self) -> Integers:
        """(A, C) pixels of the test set that count, by area and true class."""
        truth: Integers = self.rows[0].runs[0].counts.confusion.sum(axis=2)
        return truth

    @property
    def units(self) -> int:
        """How many the bootstrap drew."""
        return self.domains if self.unit == "domain" else self.areas

    @property
    def patches(self) -> int:
        """Test patches of a run."""
        return self.rows[0].runs[0].counts.patches

    @property
    def setting(self) -> Mapping[str, str]:
        """What the runs agree on: dataset, fingerprint, split, metric (empty: not recorded)."""
        runs = [run for row in self.rows for run in row.runs]
        tags = (Tag.DATASET, Tag.FINGERPRINT, Tag.SPLIT, Tag.METRIC)
        return {tag.name.lower(): next(filter(None, (run.tag(tag) for run in runs)), "")
                for tag in tags}  # fmt: skip

    @property
    def convention(self) -> Convention | None:
        """What the scores mean by mIoU; None where the runs do not say."""
        return next(filter(None, (run.convention for row in self.rows for run in row.runs)), None)

    @property
    def synthetic(self) -> bool:
        """Whether the scores are of the synthetic sample data set."""
        return self.setting["dataset"] == "sample"

    @property
    def best(self) -> Row:
        """The row of the highest mean mIoU."""
        return max(self.rows, key=lambda row: row.miou.value or 0.0)

    def row(self, name: str) -> Row:
        """Return the row of this name."""
        return next(row for row in self.rows if row.name == name)
