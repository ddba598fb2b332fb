"""Main effects and two-way interactions of a full factorial over the rows.

Each factor is an option with two levels, each row one cell. An effect is a contrast of the cells'
mean scores: a main effect is the mean over the cells with the factor on minus the mean over those
with it off; an interaction is half the difference between the effect of one factor with the other
on and with it off. In a balanced design these are the coefficients of the least-squares fit, twice
over (levels coded -1 and +1).

Two intervals, for two questions:

- *areas and seeds* (`statistics.estimate` on the contrast): does the effect hold on other areas and
  with other seeds? This is the one to quote; the rows share the test areas, which a fit to the
  runs' scores cannot know.
- *seeds alone* (ordinary least squares on the runs' mIoU, spread pooled over cells): is the effect
  on these very test areas more than the seeds' luck? With one seed per cell, three-way and higher
  interactions serve as the error, as is usual for unreplicated factorials.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from flair2_exp.errors import ConfigError
from flair2_exp.report.results import Contrast
from flair2_exp.report.statistics import LEVEL, Floats


@dataclass(frozen=True)
class Factor:
    """An option with two levels."""

    name: str
    """For tables, as `cloud filter`."""
    key: str
    """The config's key, as `s2_preproc.cloud_filter`."""
    low: str = "false"
    high: str = "true"


PUBLISHED: Final[tuple[Factor, ...]] = (
    Factor("cloud filter", "s2_preproc.cloud_filter"),
    Factor("monthly averages", "s2_preproc.monthly"),
    Factor("augmentation", "aug.geometry", "none", "flips"),
    Factor("metadata", "metadata.enabled"),
    Factor("satellite", "model.name", "unet", "utt"),
)
"""The questions of the published table; those that vary over the rows are analysed by default."""


@dataclass(frozen=True)
class Design:
    """A full factorial of k factors."""

    factors: tuple[Factor, ...]
    rows: tuple[int, ...]
    """For each of the 2^k cells its row's index."""
    codes: Floats
    """(2^k, k) levels, -1 or +1."""

    def effects(self) -> list[tuple[str, Floats]]:
        """Return main effects, then two-way interactions: name, contrast over the cells (2^k,)."""
        half = len(self.rows) / 2
        coded = [(factor.name, self.codes[:, at]) for at, factor in enumerate(self.factors)]
        return [(name, codes / half) for name, codes in coded] + [
            (f"{one} × {other}", codes * others / half)
            for (one, codes), (other, others) in itertools.combinations(coded, 2)
        ]


def find_factors(
    settings: Sequence[Mapping[str, str]], keys: Sequence[str] = ()
) -> tuple[Factor, ...]:
    """Return the factors of a set of rows.

    Args:
        settings: For each row its flat config.
        keys: Config keys to analyse; without them those of the `PUBLISHED` factors that vary. Such
            a factor has its name only with its own levels: a network against another is not
            "satellite".

    Raises:
        ConfigError: A key that does not take two values over the rows.
    """
    published = {factor.key: factor for factor in PUBLISHED}
    chosen = []
    for key in keys or published:
        values = list(dict.fromkeys(row.get(key, "") for row in settings))
        if not keys and len(values) < 2:
            continue
        if len(values) != 2 or "" in values:
            listed = ", ".join(value or "nothing" for value in values)
            raise ConfigError(f"factor {key} must take two values over the rows, not {listed}")
        low, high = values if values != ["true", "false"] else ["false", "true"]
        factor = published.get(key)
        fits = factor is not None and {factor.low, factor.high} == {low, high}
        chosen.append(factor if factor and fits else Factor(key, key, low, high))
    if not chosen:
        raise ConfigError("no factor varies over the rows: name the keys (--factors key,key)")
    return tuple(chosen)


def full_design(
    names: Sequence[str], settings: Sequence[Mapping[str, str]], factors: Sequence[Factor]
) -> Design:
    """Place each row, of these names and flat configs, in its cell.

    Raises:
        ConfigError: Cells without a row (named), or two rows in one cell.
    """
    cells: dict[tuple[int, ...], int] = {}
    for at, row in enumerate(settings):
        cell = tuple(1 if row.get(factor.key) == factor.high else -1 for factor in factors)
        if cell in cells:
            raise ConfigError(
                f"rows {names[cells[cell]]} and {names[at]} are the same cell "
                f"({_describe(cell, factors)}): they differ in something that is not a factor"
            )
        cells[cell] = at
    wanted = list(itertools.product((-1, 1), repeat=len(factors)))
    missing = [cell for cell in wanted if cell not in cells]
    if missing:
        listed = "; ".join(_describe(cell, factors) for cell in missing)
        raise ConfigError(f"not a full factorial, cells without a finished run: {listed}")
    return Design(tuple(factors), tuple(cells[cell] for cell in wanted), np.array(wanted, float))


def _describe(cell: Sequence[int], factors: Sequence[Factor]) -> str:
    return ", ".join(
        f"{factor.name}={factor.high if level > 0 else factor.low}"
        for factor, level in zip(factors, cell, strict=True)
    )


def fit_seeds(design: Design, scores: Sequence[Sequence[float]]) -> tuple[list[Contrast], int]:
    """Fit the runs' scores by the factors: effects with intervals over seeds alone.

    All interactions are fitted where a cell has several runs; otherwise those of three and more
    factors are left to the residual.

    Args:
        design: The cells.
        scores: For each *row* (not cell) its runs' mIoU.

    Returns:
        The effects in the order of `Design.effects`, without intervals where no run is left to
        judge the error by; and the residual degrees of freedom.
    """
    count = len(design.factors)
    repeated = any(len(scores[row]) > 1 for row in design.rows)
    orders = range(count + 1) if repeated else range(min(count, 2) + 1)
    terms = [term for order in orders for term in itertools.combinations(range(count), order)]
    columns = np.stack([design.codes[:, list(term)].prod(axis=1) for term in terms], axis=1)
    columns = columns[[cell for cell, row in enumerate(design.rows) for _ in scores[row]]]
    observed = np.array([score for row in design.rows for score in scores[row]])
    shown = slice(1, 1 + count + count * (count - 1) // 2)  # behind the mean; pairs follow mains
    solution = np.linalg.lstsq(columns, observed, rcond=None)[0]
    residual = observed - columns @ solution
    freedom = len(observed) - len(terms)
    variance = residual @ residual / freedom if freedom else np.nan
    # Levels are coded -1 and +1: an effect is twice its coefficient.
    effect = 2 * solution[shown]
    error = 2 * np.sqrt(variance * np.diag(np.linalg.inv(columns.T @ columns)))[shown]
    margin = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    with np.errstate(divide="ignore", invalid="ignore"):  # runs that repeat to the last digit
        p = 2 * stats.t.sf(np.abs(effect) / error, freedom)
    fields = ("value", "error", "low", "high", "p")
    lines = zip(effect, error, effect - margin, effect + margin, p, strict=True)
    return [Contrast.of(dict(zip(fields, line, strict=True))) for line in lines], freedom
