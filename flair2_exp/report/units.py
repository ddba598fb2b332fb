"""What the bootstrap draws: domains or areas of the test set, and how alike the areas are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flair2_exp.report import statistics
from flair2_exp.report.statistics import ENOUGH_DOMAINS, Estimate, Floats, RowCounts

Unit = Literal["domain", "area"]


@dataclass(frozen=True)
class Units:
    """Rows counted by area, with each area's domain."""

    by_area: tuple[RowCounts, ...]
    domains: NDArray[np.str_]
    """(A,) names."""
    unit: Unit
    """What is drawn."""

    @classmethod
    def of(
        cls, by_area: Sequence[RowCounts], areas: Sequence[str], wanted: Unit | Literal["auto"]
    ) -> Units:
        """Choose the unit.

        Args:
            by_area: The rows.
            areas: (A,) their areas' names, `DOMAIN/AREA`, or of data without domains `AREA`.
            wanted: `auto`: domains, where areas have some and there are `ENOUGH_DOMAINS`.
        """
        domains = np.array([area.partition("/")[0] for area in areas])
        grouped = any("/" in area for area in areas)
        enough = grouped and len(np.unique(domains)) >= ENOUGH_DOMAINS
        unit: Unit = ("domain" if enough else "area") if wanted == "auto" else wanted
        return cls(tuple(by_area), domains, unit)

    @cached_property
    def by_domain(self) -> list[RowCounts]:
        """The rows, counted by domain."""
        return [statistics.grouped(row, self.domains) for row in self.by_area]

    @property
    def drawn(self) -> Sequence[RowCounts]:
        """The rows, counted by unit."""
        return self.by_domain if self.unit == "domain" else self.by_area

    def estimate(self, contrasts: Floats, **options: Any) -> tuple[Estimate, Estimate | None]:
        """Estimate contrasts over the units, and over the areas beside it where those are others.

        Args:
            contrasts: As for `statistics.estimate`.
            options: Likewise.
        """
        main = statistics.estimate(self.drawn, contrasts, **options)
        if self.unit == "area":
            return main, None
        return main, statistics.estimate(self.by_area, contrasts, **options)

    def correlation(self, contrasts: Floats) -> float | None:
        """Return the correlation of two areas of a domain, the median of contrasts of mIoU.

        None where the domains are too few to tell, or have an area each.
        """
        domains, sizes = np.unique(self.domains, return_counts=True)
        if len(domains) < ENOUGH_DOMAINS or sizes.max() == 1 or not len(contrasts):
            return None
        by_area, by_domain = (
            statistics.unit_variance(rows, contrasts)[:, 0]
            for rows in (self.by_area, self.by_domain)
        )
        return float(np.median(statistics.correlation(by_area, by_domain, sizes)))
