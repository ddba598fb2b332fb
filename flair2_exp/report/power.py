"""How many seeds a difference needs: what finished runs say about runs that are still to be made.

The error of a difference between two rows of n seeds each is error² = units + 2 · spread² / n. The
units' part, from the rows' paired differences on the test set, does not shrink with seeds: below it
no number of seeds shows a difference on this test set. A difference is called visible where t tests
would find it in 80 of 100 repetitions at a two-sided 5 %, shared by the table's comparisons
(Bonferroni). Units and seeds are few, and each part has the quantiles of its own degrees of freedom
(as Cochran's approximation, 1964). The bootstrap is a little more careful: in simulation it found
69 to 74 of 100 (20 units, 3, 5 and 10 seeds, 200 worlds each), so reports say 3 of 4. These are
planning figures: the spreads themselves are known from few runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from flair2_exp.report import statistics
from flair2_exp.report.statistics import LEVEL, Floats, RowCounts

POWER: Final[float] = 0.8
"""Share of repetitions in which t tests find a visible difference."""

PLANNED_SEEDS: Final = (2, 3, 5, 10)
"""Per row, for which the visible difference is said: those of usual papers, and twice that."""

MOST_SEEDS: Final[int] = 1000
"""More are not planned for."""


@dataclass(frozen=True)
class Outlook:
    """What differences in mIoU more seeds would show."""

    unit_variance: float
    """Of a difference over the units, the median of the comparisons."""
    units: int
    seed_variance: float
    """Of a row's score over seeds, pooled over the rows."""
    comparisons: int
    """That share the 5 %."""

    @classmethod
    def of(cls, rows: Sequence[RowCounts], contrasts: Floats) -> Outlook | None:
        """Return what rows of finished runs say.

        Args:
            rows: Counted by unit.
            contrasts: (M, K) comparisons of two of them each.

        Returns:
            None where nothing is compared, no row has two seeds, or there is one unit.
        """
        freedom = sum(row.seeds - 1 for row in rows)
        if not len(contrasts) or not freedom or rows[0].areas < 2:
            return None
        variances = statistics.unit_variance(rows, contrasts)[:, 0]
        squares = sum(((of_row[:, 0] - of_row[:, 0].mean()) ** 2).sum()
                      for of_row in statistics.scores(rows))  # fmt: skip
        return cls(
            float(np.median(variances)), rows[0].areas, float(squares / freedom), len(contrasts)
        )

    def visible(self, seeds: float) -> float:
        """Return the least difference that so many seeds per row (from 2 on; or inf) would show."""
        share = (1 - LEVEL) / self.comparisons / 2

        def needed(variance: float, freedom: float) -> float:
            quantiles = stats.t.isf(share, freedom) + stats.t.ppf(POWER, freedom)
            return float(variance * quantiles**2)

        of_seeds = needed(2 * self.seed_variance / seeds, 2 * (seeds - 1))
        return math.sqrt(needed(self.unit_variance, self.units - 1) + of_seeds)

    def seeds_for(self, difference: float) -> int | None:
        """Return the fewest seeds per row that would show a difference; None where none would."""
        if self.visible(MOST_SEEDS) > difference:
            return None
        low, high = 1, MOST_SEEDS  # too few, enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.visible(middle) <= difference else (middle, high)
        return high
