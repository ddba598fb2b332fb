"""The points that a search starts with, and how many trials it has."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .components import SamplerFactory
from .config import OptunaStudyConf
from .errors import SweepError
from .space import Space

_DEFAULT_TRIALS: Final = 20
_LARGEST_GRID: Final = 10_000

Point = Mapping[str, Any]
"""Parameter values by override key, as the study holds them."""


def given_points(options: OptunaStudyConf, space: Space) -> list[Point]:
    """Return the points of the option `first`, less what the command line decides.

    Raises:
        SweepError: A value that the search space does not hold.
    """
    dimensions = space.dimensions
    points: list[Point] = []
    for params in options.first:
        point: dict[str, Any] = {}
        for name, value in params.items():
            if name in space.fixed or name in space.settled:
                continue
            if name not in dimensions and options.custom_search_space is None:
                swept = ", ".join(dimensions)
                raise SweepError(
                    f"hydra.sweeper.first: {name} is not swept; expected one of {swept}."
                )
            point[name] = dimensions[name].internal(value) if name in dimensions else value
        points.append(point)
    return points


def grid_points(options: OptunaStudyConf, space: Space, present: Sequence[Point]) -> list[Point]:
    """Return all points of the grid but for those present, shuffled where the sampler has a seed.

    Raises:
        SweepError: The space is too large for a grid, or has no end.
    """
    if options.custom_search_space is not None:
        raise SweepError("a grid has no custom_search_space: use another hydra/sweeper/sampler.")
    size = math.prod(len(dimension.points()) for dimension in space.dimensions.values())
    if size > _LARGEST_GRID:
        raise SweepError(
            f"the grid has {size:,} points; expected at most {_LARGEST_GRID:,}: use another "
            "hydra/sweeper/sampler."
        )
    points: list[Point] = [point for point in space.grid() if point not in present]
    seed = options.sampler.get("seed")
    if seed is not None:
        random.Random(seed).shuffle(points)
    return points


def queue_and_total(
    options: OptunaStudyConf, space: Space, samplers: SamplerFactory
) -> tuple[list[Point], int]:
    """Return the points to try first, in order, and how many trials the study shall have.

    Raises:
        SweepError: No such search can be run.
    """
    queue, total = given_points(options, space), options.n_trials
    if samplers.is_grid:
        queue += grid_points(options, space, queue)
        return queue, len(queue) if total is None else min(total, len(queue))
    total = _DEFAULT_TRIALS if total is None else total
    if not space.dimensions and options.custom_search_space is None and total > 1:
        raise SweepError(
            f"the search space is empty, and {total} trials would all be the same. Give "
            "hydra.sweeper.params, or sweeps on the command line such as lr=interval(0,1)."
        )
    return queue, total
