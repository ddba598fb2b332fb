from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair2_exp.report import statistics
from flair2_exp.report.power import MOST_SEEDS, Outlook
from tests.report.synthetic_world import World

DIFFERENCE = np.array([[-1.0, 1.0]])

outlooks = st.builds(
    Outlook,
    unit_variance=st.floats(0, 1e-2),
    units=st.integers(2, 200),
    seed_variance=st.floats(1e-8, 1e-2),
    comparisons=st.integers(1, 20),
)


@given(outlooks, st.integers(2, 50))
def test_more_seeds_show_smaller_differences(outlook: Outlook, seeds: int) -> None:
    assert outlook.visible(seeds) >= outlook.visible(seeds + 1) * (1 - 1e-9)


@given(outlooks, st.floats(1e-4, 0.5))
def test_the_seeds_for_a_difference_are_the_fewest_that_show_it(
    outlook: Outlook, difference: float
) -> None:
    seeds = outlook.seeds_for(difference)
    if seeds is None:
        assert outlook.visible(MOST_SEEDS) > difference
    else:
        assert outlook.visible(seeds) <= difference
        assert seeds == 2 or outlook.visible(seeds - 1) > difference


def test_without_luck_of_units_it_is_students_test_of_two_means() -> None:
    # statsmodels 0.14: TTestIndPower().solve_power(nobs1=10, alpha=0.05, power=0.8) = 1.3249
    outlook = Outlook(unit_variance=0.0, units=10, seed_variance=0.01**2, comparisons=1)
    assert outlook.visible(10) == pytest.approx(1.3249 * 0.01, rel=0.02)


def test_nothing_is_said_without_pairs_or_repeated_seeds() -> None:
    rows = World().draw(np.random.default_rng(0), 10, 3)
    assert Outlook.of(rows, DIFFERENCE) is not None
    assert Outlook.of(rows, np.zeros((0, 2))) is None
    assert Outlook.of(World().draw(np.random.default_rng(0), 10, 1), DIFFERENCE) is None


@pytest.mark.parametrize(("seeds", "luck"), [(3, 0.03), (5, 0.1), (10, 0.1)])
def test_a_visible_difference_is_found_in_about_3_of_4_worlds(seeds: int, luck: float) -> None:
    def world(skill: float, luck: float = luck) -> World:
        return World(skills=(1.0, skill), luck=(luck, luck), own=0.1)

    # What finished runs of three seeds each say, on 20 areas.
    said = [
        Outlook.of(world(1.1).draw(np.random.default_rng([at, 1]), 20, 3), DIFFERENCE)
        for at in range(100)
    ]
    units, spreads = np.mean(
        [(each.unit_variance, each.seed_variance) for each in said if each is not None], axis=0
    )
    outlook = Outlook(float(units), 20, float(spreads), comparisons=1)
    visible = outlook.visible(seeds)
    skills = np.linspace(1.0, 2.0, 6)
    reached = [np.diff(world(skill, 0.0).truth(1)[:, 0])[0] for skill in skills]
    there = world(float(np.interp(visible, reached, skills)))
    found = 0
    for at in range(200):
        rows = there.draw(np.random.default_rng([at, 2]), 20, seeds)
        found += statistics.estimate(rows, DIFFERENCE, resamples=199, seed=at).p[0, 0] < 0.05
    # Three standard errors of a share of 200 are 0.095.
    assert 0.75 - 0.095 <= found / 200 <= 0.80 + 0.095
    assert visible > outlook.visible(math.inf)
