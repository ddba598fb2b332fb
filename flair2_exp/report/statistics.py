"""Uncertainty of a score over domains and seeds: intervals, paired differences, joint p.

Pure functions over arrays. A run is what it counted: for each area of the test set a confusion
matrix. A row of the leaderboard is several runs that differ in the seed alone.

**What is estimated.** The mIoU that a row reaches on average over seeds, on units like those of
the test set. Two things are luck: which units were drawn and which seeds were drawn. The two are
crossed: each seed is scored on each unit. A unit is a domain: its areas share the season, the
camera and the landscape. Where the test set has fewer than `ENOUGH_DOMAINS`, a unit is an area, and
the interval is too narrow by as much as areas of one domain are alike.

**How.** A symmetric studentised bootstrap (Hall, 1988, "On symmetric bootstrap confidence
intervals"): the interval is estimate ± q · error, with q the 95 % quantile of |t*| over resamples,
and p the share of resamples with |t*| ≥ |t|, so that interval and p always agree.

- Units are drawn with replacement, the same draw for all rows, which pairs the rows. Scores of a
  resample come from summed counts by one matrix product: weights (R, A) @ counts (A, ...).
- Seeds are redrawn within each row from a normal distribution with that row's own mean and spread,
  the spread itself drawn from what S seeds say about it (chi-squared, S - 1 degrees of freedom).
  Drawn with replacement instead, two to five seeds take a handful of values whose variance is too
  small by (S - 1) / S; such an interval covers 57 to 86 % where seeds matter. Rows keep their own
  spread: the published table has 0.0009 beside 0.0096. Seed 1 of one row has nothing in common
  with seed 1 of another but the number, so seeds are not paired.
- The error of a resample is the linearised one: IoU is a ratio of sums, so its derivative by each
  unit's counts is known, and error² = A / (A - 1) · Σ over units (derivative · counts)² + Σ over
  rows (spread² / seeds). No inner bootstrap is needed.
- Several contrasts have joint intervals and corrected p from the same resamples (`_joint`), which
  agree in the same way.

Why this one: in a simulation with known truth (1000 to 2000 worlds each: 8, 20, 40 and 100
independent units with 2, 3 or 5 seeds, 30 with 3 or 5; three spreads of seeds) the 95 % interval
of a row's mIoU covers 94 to 95 % with five seeds, 94 to 96 % with three and 95 to 98 % with two;
that of a difference 94 to 97 % with five or three seeds on 20 units or more, 93 to 97 % on 8, and
96 to 98 % with two. IoU by class: 92 to 97 % from 30 units on (two seeds: 95 to 99 %), but from 90
% with 20 and from 86 % with 8, where a rare class is in two or three of them. In like worlds,
percentile and basic intervals fall to 70..85 % with 6 units, and estimate ± Student's t · error to
84..94 %: a mean of ratios of few skewed counts is biased and its error underestimated, which
studentising repairs.

Why domains: with areas of one domain alike (19 areas each, three seeds, 1000 worlds a line; three
standard errors of a share of 95 % are 2 %), the intervals cover

    domains  correlation   over areas: a row, a difference   over domains: a row, a difference
         10      0.0            96 %         96 %                  96 %         97 %
         10      0.2            76 %         93 %                  95 %         97 %
         10      0.5            58 %         90 %                  95 %         96 %
          4      0.0            94 %         94 %                  97 %         97 %
          4      0.2            73 %         91 %                  96 %         98 %
          4      0.5            55 %         82 %                  96 %         96 %

and IoU by class, on average over classes, in 93 to 96 % over domains (62 to 91 % over areas that
are alike). The price is width: with 4 independent domains a row's interval is 1.6 times as wide.

tests/report/test_statistics.py repeats a part of it.

With one seed, the spread over seeds cannot be known: the interval is over units alone, is marked so
(`Estimate.seeds_known`) and takes no part in joint intervals. Levels, differences and factor
effects are all contrasts of rows, so one function does them all.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.nomenclature import SCORED
from flair2_exp.score import iou_from_sums, known_mean, mean_iou

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVEL: Final[float] = 0.95
"""Coverage of all intervals."""

NO_FAMILY: Final = slice(0, 0)

ENOUGH_DOMAINS: Final[int] = 4
"""From here on the domains are the units. Of 3, a ninth of the resamples is 3 times the same one,
which leaves a 95 % quantile nothing to stand on where seeds vary little."""

RESAMPLES: Final[int] = 10_000
"""Resamples of a report: a p of 0.05 is then known to ± 0.004 (two standard errors)."""

_CHUNK_VALUES: Final[int] = 100_000
"""Numbers in the largest array of one row: 0.8 MB, which stays in a core's cache (measured)."""

_ZERO: Final[float] = 1e-24
"""A squared error below this is rounding: scores are near 1, and doubles hold 16 digits."""


@dataclass(frozen=True)
class RowCounts:
    """What the runs of one row counted."""

    name: str
    """The row; its random draws of seeds depend on it and not on the row's place."""
    hits: Floats
    """(S, A, C): correct pixels by seed, area and scored class."""
    marks: Floats
    """(S, A, C): pixels whose truth is the class plus pixels predicted as it. The union is
    `marks - hits`."""

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return int(self.hits.shape[0])

    @property
    def areas(self) -> int:
        """Number of areas."""
        return int(self.hits.shape[1])


def row_counts(name: str, confusions: Sequence[Integers], scored: int = SCORED) -> RowCounts:
    """Keep what IoU over the first `scored` classes needs of counts (A, C, C), one per seed."""
    stack = np.stack([np.asarray(one, dtype=np.float64) for one in confusions])
    hits = np.diagonal(stack, axis1=-2, axis2=-1)[..., :scored]
    marks = (stack.sum(axis=-1) + stack.sum(axis=-2))[..., :scored]
    return RowCounts(name, np.ascontiguousarray(hits), marks)


def sum_by_area(
    areas: NDArray[np.str_], confusion: NDArray[np.integer]
) -> tuple[NDArray[np.str_], Integers]:
    """Sum the counts (N, C, C) of patches, whose areas are (N,), by area.

    Returns:
        Names (A,), sorted, and counts (A, C, C) int64.
    """
    names, inverse = np.unique(areas, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(names)))
    totals = np.add.reduceat(np.asarray(confusion)[order], starts, axis=0, dtype=np.int64)
    return names, totals


def grouped(row: RowCounts, groups: NDArray[np.str_]) -> RowCounts:
    """Return a row counted on groups (A,) of its areas, as their domains, in sorted order."""
    member = (groups[:, None] == np.unique(groups)).astype(np.float64)  # (A, G)
    hits, marks = (np.einsum("sac,ag->sgc", each, member) for each in (row.hits, row.marks))
    return RowCounts(row.name, hits, marks)


@dataclass(frozen=True)
class Estimate:
    """Contrasts of rows, for mIoU (index 0 of the last axis) and each scored class (1..C).

    All numbers are (M, 1 + C) float64; NaN where a class is absent or nothing can be said.
    """

    value: Floats
    error: Floats
    """Standard error over units and seeds."""
    low: Floats
    high: Floats
    """Ends of the interval of each contrast by itself."""
    p: Floats
    """Two-sided, of "the contrast is 0"; 1 where value and error are both 0."""
    joint_low: Floats
    joint_high: Floats
    """Ends of the intervals that hold for all contrasts of the family at once: one family of mIoU,
    one of all contrasts × classes. NaN outside of the family and where seeds are not known."""
    joint_p: Floats
    """Corrected for the family: below 0.05 where the joint interval leaves out 0, and only there.
    """
    seeds_known: NDArray[np.bool_]
    """(M,): False where a row that takes part has a single seed: error, interval and p hold the
    units alone."""

    def part(self, contrasts: slice) -> Estimate:
        """Return the estimates of some of the contrasts."""
        return Estimate(*(getattr(self, each.name)[contrasts] for each in dataclasses.fields(self)))


def pair_contrasts(
    rows: int, baseline: int = 0, *, against_all: bool = True
) -> tuple[list[tuple[int, int]], Floats]:
    """Return pairs (one, other) of rows and their contrasts (pairs, rows) "one minus other".

    The baseline is always the other, else the earlier row is. All pairs, or with `against_all`
    False those with the baseline alone.
    """
    pairs = [
        (i, j) if j == baseline else (j, i)
        for i, j in itertools.combinations(range(rows), 2)
        if against_all or baseline in (i, j)
    ]
    contrasts = np.zeros((len(pairs), rows))
    for at, (one, other) in enumerate(pairs):
        contrasts[at, one], contrasts[at, other] = 1.0, -1.0
    return pairs, contrasts


def scores(rows: Sequence[RowCounts]) -> list[Floats]:
    """Return each run's mIoU and IoU by class on all areas: for each row an array (S, 1 + C)."""
    return [_scores(row.hits.sum(axis=1), row.marks.sum(axis=1)) for row in rows]


def estimate(
    rows: Sequence[RowCounts],
    contrasts: Floats,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    pooled: bool = False,
    family: slice = NO_FAMILY,
) -> Estimate:
    """Estimate contrasts of rows with intervals and p; see the module's text for the method.

    Args:
        rows: K rows counted on the same A areas, in the same order.
        contrasts: (M, K): a row of the identity is a level, (-1, 1) a difference.
        resamples: R, the number of draws.
        seed: Of the draws; the same seed gives the same figures.
        pooled: Take one spread over seeds for all rows, as a factorial's least squares does. Where
            each row has as many seeds and weighs as much, the error is the same; it comes from more
            runs, which matters with two or three seeds per row.
        family: The contrasts that are compared together, and get joint intervals and p.

    Raises:
        ValueError: The rows have different areas.
    """
    areas = {row.areas for row in rows}
    if len(areas) != 1:
        raise ValueError(f"rows counted on different numbers of areas: {sorted(areas)}")
    contrasts = np.asarray(contrasts, dtype=np.float64)
    means, spreads = _over_seeds(rows, pooled)
    value = _combine(contrasts, means)
    error = np.sqrt(unit_variance(rows, contrasts) + _combine(contrasts**2, spreads))
    draws = _seed_draws(rows, resamples, seed, pooled)
    drawn = _studentised(rows, contrasts, value, spreads, draws, seed)
    observed = np.abs(value) / np.where(error > 0, error, np.nan)
    same = (value == 0) & (error == 0)
    exceed, quantile = _tail(drawn, observed)
    margin = np.where(same, 0.0, np.where(np.isfinite(quantile), quantile, np.nan) * error)
    known = np.isfinite(margin) & np.isfinite(value)
    repeated = any(row.seeds > 1 for row in rows)
    single = np.array([not repeated if pooled else row.seeds == 1 for row in rows])
    seeds_known = ~((contrasts != 0) & single).any(axis=1)
    compared = np.zeros(len(contrasts), dtype=np.bool_)
    compared[family] = True
    tested = known & (compared & seeds_known)[:, None]
    joint_p, joint_quantile = _joint(drawn, observed, tested & ~same)
    joint_margin = np.where(same & tested, 0.0, joint_quantile * error)
    return Estimate(
        value=value,
        error=np.where(known, error, np.nan),
        low=np.where(known, value - margin, np.nan),
        high=np.where(known, value + margin, np.nan),
        p=np.where(same, 1.0, np.where(known, exceed, np.nan)),
        joint_low=value - joint_margin,
        joint_high=value + joint_margin,
        joint_p=np.where(same & tested, 1.0, joint_p),
        seeds_known=seeds_known,
    )


def unit_variance(rows: Sequence[RowCounts], contrasts: Floats) -> Floats:
    """Return the squared standard error over units alone of contrasts (M, K): (M, 1 + C)."""
    whole = np.ones((1, rows[0].areas))
    influence = np.stack([resampled(row, whole)[1] for row in rows])
    variance: Floats = _unit_variances(contrasts, influence)[0]
    return variance


def correlation(by_area: Floats, by_group: Floats, sizes: NDArray[np.integer]) -> Floats:
    """Return the correlation of two areas of one group, as their variances tell it.

    Args:
        by_area: Squared standard errors of contrasts over areas, of any shape.
        by_group: The same over groups. Their ratio is Kish's design effect, 1 + (m - 1) ·
            correlation (Survey Sampling, 1965), with m the areas of a group.
        sizes: (G,) areas of each group, not all 1.

    Returns:
        At most 1; below 0 where areas of one group differ more than others, as chance has it.
    """
    of_an_area = (sizes**2).sum() / sizes.sum()  # areas in the group of an average area
    correlated: Floats = (_ratio(by_group, by_area) - 1) / (of_an_area - 1)
    return np.minimum(correlated, 1.0)


def draw_areas(areas: int, resamples: int, seed: int, rows_at_once: int) -> Iterator[Floats]:
    """Yield the weights of the resamples in chunks (r, A): how often each area was drawn."""
    generator = np.random.default_rng([seed, 0])
    for start in range(0, resamples, rows_at_once):
        count = min(rows_at_once, resamples - start)
        yield generator.multinomial(areas, np.full(areas, 1 / areas), size=count).astype(np.float64)


def resampled(row: RowCounts, weights: Floats) -> tuple[Floats, Floats]:
    """Return a row's scores on areas of weights (r, A), and by how much each area moves them.

    Returns:
        Scores (r, 1 + C), averaged over seeds, and the linearised influence (1 + C, r, A) of each
        area. With IoU = T / (M - T), the derivative by one area's counts t, m is
        ((1 + IoU) t - IoU m) / (M - T); the derivatives of all areas sum to 0 by themselves.
    """
    hits, marks = _weigh(weights, row.hits), _weigh(weights, row.marks)
    union = marks - hits
    inverse = _ratio(np.ones_like(union), union)
    fall = hits * inverse * inverse
    present = np.maximum((union > 0).sum(axis=-1, keepdims=True), 1)
    slopes = np.concatenate([inverse + fall, -fall], axis=1) / row.seeds  # (r, 2S, C)
    counts = np.concatenate([row.hits, row.marks]).transpose(2, 0, 1)  # (C, 2S, A)
    influence = np.empty((1 + len(counts), *weights.shape))
    np.matmul(slopes.transpose(2, 0, 1), counts, out=influence[1:])
    slopes /= np.tile(present, (1, 2, 1))
    of_mean = slopes.transpose(0, 2, 1).reshape(len(weights), -1)
    np.matmul(of_mean, counts.reshape(-1, row.areas), out=influence[0])
    influence *= np.sqrt(weights)
    return known_mean(_scores(hits, marks), 1), influence


def _weigh(weights: Floats, counts: Floats) -> Floats:
    """Sum counts (S, A, C) over weighted areas (r, A) by one matrix product: (r, S, C)."""
    seeds, areas, classes = counts.shape
    flat = counts.transpose(1, 0, 2).reshape(areas, seeds * classes)
    return (weights @ flat).reshape(len(weights), seeds, classes)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Return the ratio; 0 where the denominator is."""
    ratio: Floats = np.divide(
        numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0
    )
    return ratio


def _scores(hits: Floats, marks: Floats) -> Floats:
    """Return mIoU and IoU by class (..., 1 + C) of summed counts (..., C)."""
    iou = iou_from_sums(hits, marks, 0.0)
    return np.concatenate([mean_iou(iou, iou.shape[-1])[..., None], iou], axis=-1)


def _over_seeds(rows: Sequence[RowCounts], pooled: bool) -> tuple[Floats, Floats]:
    """Return mean over seeds and squared standard error of that mean, both (K, 1 + C)."""
    of_rows = scores(rows)
    means = np.stack([known_mean(of_seeds, 0) for of_seeds in of_rows])
    counts = np.stack([np.isfinite(of_seeds).sum(axis=0) for of_seeds in of_rows]).astype(float)
    squares = np.stack(
        [np.nansum((each - mean) ** 2, axis=0) for each, mean in zip(of_rows, means, strict=True)]
    )
    freedom = np.maximum(counts - 1, 0.0)
    if pooled:
        squares, freedom = squares.sum(axis=0), freedom.sum(axis=0)
    return means, _ratio(squares + np.zeros_like(counts), counts * freedom)


def _combine(contrasts: Floats, values: Floats) -> Floats:
    """Apply contrasts (M, K) to values (..., K, 1 + C); a row of weight 0 may be NaN."""
    present = np.isfinite(values)
    combined: Floats = contrasts @ np.where(present, values, 0.0)
    lacking = (contrasts != 0).astype(np.float64) @ (~present).astype(np.float64) > 0
    return np.where(lacking, np.nan, combined)


def _unit_variances(contrasts: Floats, influence: Floats) -> Floats:
    """Return variances over units (r, M, 1 + C) of contrasts (M, K).

    Only the covariances of rows that meet in a contrast are computed: of 120 rows against one, a
    thirtieth of all.

    Args:
        contrasts: Of the rows.
        influence: Of the units on each row's scores (K, 1 + C, r, A), as of `resampled`.
    """
    _, columns, draws, areas = influence.shape
    taken = (contrasts != 0).astype(np.float64)
    one, other = np.nonzero(np.triu(taken.T @ taken))
    covariance = np.empty((len(one), columns, draws))
    for at, (i, j) in enumerate(zip(one, other, strict=True)):
        np.einsum("cra,cra->cr", influence[i], influence[j], out=covariance[at])
    weight = contrasts[:, one] * contrasts[:, other] * np.where(one == other, 1.0, 2.0)
    variance = (weight @ covariance.reshape(len(one), -1)).reshape(-1, columns, draws)
    variance *= areas / (areas - 1) if areas > 1 else np.nan
    return np.where(variance <= _ZERO, 0.0, variance).transpose(2, 0, 1)  # NaN (one area) stays


def _seed_draws(
    rows: Sequence[RowCounts], resamples: int, seed: int, pooled: bool
) -> tuple[Floats, Floats]:
    """Return for each resample and row the seeds' error and squared spread seen, both (R, K).

    In units of the row's own standard error over seeds: a true spread is drawn from what the
    row's S seeds tell of it, then S seeds are drawn from that: their mean's error, their spread.
    """
    errors, spreads = np.zeros((resamples, len(rows))), np.ones((resamples, len(rows)))
    together = sum(row.seeds - 1 for row in rows)
    for at, row in enumerate(rows):
        freedom = together if pooled else row.seeds - 1
        if freedom:
            own = np.random.default_rng([seed, 1, zlib.crc32(row.name.encode())])
            shared = np.random.default_rng([seed, 2]) if pooled else own
            true = freedom / shared.chisquare(freedom, resamples)
            spreads[:, at] = true * shared.chisquare(freedom, resamples) / freedom
            errors[:, at] = np.sqrt(true) * own.standard_normal(resamples)
    return errors, spreads


def _studentised(
    rows: Sequence[RowCounts],
    contrasts: Floats,
    value: Floats,
    spreads: Floats,
    draws: tuple[Floats, Floats],
    seed: int,
) -> NDArray[np.float32]:
    """Return |t*| of each resample, (R, M, 1 + C).

    Against the estimates on all areas, `value` (M, 1 + C), with squared standard errors over seeds
    `spreads` (K, 1 + C), drawn by `_seed_draws`.
    """
    luck, spread = draws
    areas, classes = rows[0].areas, rows[0].hits.shape[2]
    drawn = np.empty((len(luck), *value.shape), dtype=np.float32)
    chunk = max(1, _CHUNK_VALUES // (areas * (1 + classes)))
    start = 0
    for weights in draw_areas(areas, len(luck), seed, chunk):
        part = slice(start, start + len(weights))
        means = np.empty((len(weights), len(rows), 1 + classes))
        influence = np.empty((len(rows), 1 + classes, len(weights), areas))
        for at, row in enumerate(rows):
            means[:, at], influence[at] = resampled(row, weights)
        means += luck[part, :, None] * np.sqrt(spreads)
        variance = _unit_variances(contrasts, influence)
        variance += _combine(contrasts**2, spreads * spread[part, :, None])
        moved = np.abs(_combine(contrasts, means) - value)
        fixed = np.where(moved > 0, np.inf, moved)  # where nothing varies
        drawn[part] = np.divide(moved, np.sqrt(variance), out=fixed, where=variance > 0)
        start += len(weights)
    return drawn


def _tail(drawn: NDArray[np.float32], observed: Floats) -> tuple[Floats, Floats]:
    """Return p of the observed |t| and the quantile of the drawn ones, both (M, 1 + C).

    Draws without the class are left out.
    """
    absent = np.isnan(drawn)
    count = (~absent).sum(axis=0)
    exceed = (1 + (drawn >= observed).sum(axis=0)) / (1 + count)
    ordered = np.sort(drawn, axis=0)  # NaN last
    rank = np.clip(np.ceil(LEVEL * (count + 1)).astype(int), 1, np.maximum(count, 1)) - 1
    quantile = np.take_along_axis(ordered, rank[None], axis=0)[0].astype(np.float64)
    return exceed, quantile


def _joint(
    drawn: NDArray[np.float32], observed: Floats, tested: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return p and quantiles of |t*| that hold for a family at once, both (M, 1 + C).

    One family is the first column, one all others; NaN outside of them. The smallest p of a family
    is compared with the smallest of each resample (Westfall and Young, 1993); the quantiles are
    those beyond which that p is below 1 - LEVEL, so each contrast has an equal share in the error
    of the whole (Beran, 1988) however long the tail of its t* is.
    """
    p, quantile = np.full(observed.shape, np.nan), np.full(observed.shape, np.nan)
    of_miou = np.arange(observed.shape[1]) == 0
    for members in (tested & of_miou, tested & ~of_miou):
        if members.any():
            absent_last = np.where(np.isnan(drawn[:, members]), -np.inf, drawn[:, members])
            p[members], quantile[members] = _smallest(absent_last, observed[members])
    return p, quantile


def _smallest(drawn: NDArray[np.float32], observed: Floats) -> tuple[Floats, Floats]:
    """Return joint p and quantiles of K contrasts, given draws (R, K), -inf without the class."""
    resamples, contrasts = drawn.shape
    ordered = np.sort(drawn, axis=0)
    count = 1 + np.isfinite(ordered).sum(axis=0) + (ordered == np.inf).sum(axis=0)
    smallest, beyond = np.ones(resamples), np.empty(contrasts)
    for at, column in enumerate(ordered.T):
        as_large = resamples - np.searchsorted(column, drawn[:, at])
        np.minimum(smallest, as_large / count[at], out=smallest)
        beyond[at] = resamples - np.searchsorted(column, observed[at].astype(np.float32))
    smallest.sort()
    p = (1 + np.searchsorted(smallest, (1 + beyond) / count, side="right")) / (1 + resamples)
    share = smallest[math.ceil(round((1 - LEVEL) * (1 + resamples), 9)) - 2]
    # How many draws may be as large as a |t| whose p is below: those of the family's smallest
    # share, less the one that counts for the observed. With too few resamples there is no such |t|.
    rank = np.ceil(share * count - 1e-9).astype(int) - 2
    largest = np.take_along_axis(ordered, (resamples - 1 - np.maximum(rank, 0))[None], axis=0)[0]
    return p, np.where((rank >= 0) & np.isfinite(largest), largest, np.nan).astype(np.float64)
