"""A world with known truth: areas of unequal mixture, rows of unequal skill, seeds with luck.

Areas are correlated within and between rows: an area's difficulty is shared by all rows and by all
of its pixels. Areas of one domain are alike in difficulty and mixture. The true score of a row is
that on infinitely many domains, averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from flair2_exp.report.statistics import RowCounts, scores

CLASSES = 6


@dataclass(frozen=True)
class World:
    skills: tuple[float, ...] = (1.0, 1.15)
    """By row: logit of the recall."""
    difficulty: float = 0.6
    """Spread of an area's effect on all rows."""
    own: float = 0.15
    """Spread of an area's effect on one row."""
    luck: tuple[float, ...] = (0.05, 0.05)
    """By row: spread of a seed's effect."""
    mixture: float = 0.5
    """Concentration of an area's composition: the smaller, the fewer classes an area holds."""
    alike: float = 0.0
    """Correlation of two areas of one domain, in all three of these."""
    areas_per_domain: int = 1
    """Without effect on areas that are not alike."""

    def draw(
        self, generator: np.random.Generator, areas: int, seeds: int, names: str = "abcdefgh"
    ) -> list[RowCounts]:
        """Draw rows counted on `areas` areas, those of one domain in a run."""
        shares = np.array([0.3, 0.25, 0.2, 0.12, 0.08, 0.05])
        concentration = self.mixture * CLASSES * shares
        truth = self._in_domains(lambda size: generator.dirichlet(concentration, size), areas)
        truth /= truth.sum(axis=1, keepdims=True)
        truth *= generator.integers(10, 60, size=(areas, 1))

        def effect(spread: float) -> np.ndarray:
            return spread * self._in_domains(
                lambda size: generator.standard_normal((size, 1)), areas
            )

        shared = effect(self.difficulty)
        rows = []
        for skill, luck, name in zip(self.skills, self.luck, names, strict=False):
            own = shared + effect(self.own)
            hits, marks = [], []
            for _ in range(seeds):
                chance = luck * generator.standard_normal((1, CLASSES)) + luck * (
                    generator.standard_normal()
                )
                tilt = np.linspace(0.5, -0.5, CLASSES)
                recall = 1 / (1 + np.exp(-(skill + tilt + own + chance)))
                hit = truth * recall
                missed = (truth - hit).sum(axis=1, keepdims=True)
                wrong = missed * (truth + 0.3 * shares * truth.sum(axis=1, keepdims=True))
                wrong /= 1.3 * truth.sum(axis=1, keepdims=True)
                hits.append(hit)
                marks.append(truth + hit + wrong)
            rows.append(RowCounts(name, np.stack(hits), np.stack(marks)))
        return rows

    def _in_domains(self, draw: Callable[[int], np.ndarray], areas: int) -> np.ndarray:
        """Mix what a domain's areas have in common with their own, with unit variance in all."""
        of_domains = draw(-(-areas // self.areas_per_domain))
        common = of_domains.repeat(self.areas_per_domain, axis=0)[:areas]
        return self.alike**0.5 * common + (1 - self.alike) ** 0.5 * draw(areas)

    def truth(self, parts: int = 20) -> np.ndarray:
        """(K, 1 + C) scores on 5000 areas at a time, averaged over these and over 25 seeds each.

        With 100,000 areas and 500 seeds in all its own error is below a sixth of the smallest error
        of a world that is compared with it, which costs under half a per cent of coverage.
        """
        apart = replace(self, areas_per_domain=1)
        generator = np.random.default_rng(12345)
        means = [
            [score.mean(axis=0) for score in scores(apart.draw(generator, 5000, 25))]
            for _ in range(parts)
        ]
        return np.mean(means, axis=0)
