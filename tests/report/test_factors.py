from __future__ import annotations

import itertools

import numpy as np
import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.report.factors import Design, Factor, find_factors, fit_seeds, full_design

FACTORS = (Factor("filter", "f"), Factor("months", "m"), Factor("flips", "a", "none", "flips"))


def cells() -> list[dict[str, str]]:
    levels = itertools.product(("false", "true"), ("false", "true"), ("none", "flips"))
    return [{"f": f, "m": m, "a": a} for f, m, a in levels]


def design(order: list[int] | None = None) -> tuple[Design, list[dict[str, str]]]:
    rows = [cells()[at] for at in order or range(8)]
    return full_design([f"row{at}" for at in range(8)], rows, FACTORS), rows


def test_effects_are_those_put_in_whatever_the_order_of_rows() -> None:
    for order in (list(range(8)), [5, 2, 7, 0, 3, 1, 6, 4]):
        made, rows = design(order)
        score = [
            0.5 + 0.02 * (row["f"] == "true") + 0.03 * (row["a"] == "flips")
            + 0.01 * (row["f"] == "true") * (row["m"] == "true")
            for row in rows
        ]  # fmt: skip
        effects = {name: codes @ np.array(score)[list(made.rows)] for name, codes in made.effects()}
        assert effects["filter"] == pytest.approx(0.02 + 0.01 / 2)
        assert effects["months"] == pytest.approx(0.01 / 2)
        assert effects["flips"] == pytest.approx(0.03)
        assert effects["filter × months"] == pytest.approx(0.01 / 2)
        assert effects["months × flips"] == pytest.approx(0, abs=1e-12)


def test_seeds_fit_agrees_with_statsmodels() -> None:
    made, rows = design()
    generator = np.random.default_rng(0)
    scores = [list(0.5 + 0.1 * generator.standard_normal(3)) for _ in rows]
    # statsmodels 0.14's ols("y ~ f * m * a") on these scores, with levels coded -0.5 and 0.5; of
    # interactions half, for one here is half the difference of effects.
    expected = np.array(
        [
            (-0.02724184495907, -0.09193776339301, 0.03745407347487, 0.3852792638388),
            (0.05746708334044, -0.007228835093501, 0.1221630017744, 0.07800634067561),
            (-0.01811551183212, -0.08281143026606, 0.04658040660182, 0.5610818242682),
            (0.07188204982261, 0.007186131388675, 0.1365779682566, 0.03159783406273),
            (0.05018345376842, -0.01451246466552, 0.1148793722024, 0.1196007899373),
            (-0.0430102565413, -0.1077061749752, 0.02168566189264, 0.17787843343),
        ]
    )
    effects, freedom = fit_seeds(made, scores)
    assert freedom == 16
    numbers = [(each.value, each.low, each.high, each.p) for each in effects]
    np.testing.assert_allclose(np.array(numbers, float), expected, rtol=1e-9)


@pytest.mark.filterwarnings("error")
def test_seeds_fit_of_runs_that_repeat_exactly_has_no_spread() -> None:
    made, rows = design()
    effects, _ = fit_seeds(made, [[0.5 + 0.25 * (row["f"] == "true")] * 2 for row in rows])
    assert effects[0].value == pytest.approx(0.25)
    assert effects[0].low == pytest.approx(effects[0].high)


def test_seeds_fit_takes_higher_interactions_as_error_without_repeats() -> None:
    made, _ = design()
    scores = [[float(score)] for score in np.random.default_rng(0).random(8)]
    fit, freedom = fit_seeds(made, scores)
    assert freedom == 1  # 8 runs, a mean, 3 effects, 3 interactions
    effects = [codes @ np.array(scores)[:, 0] for _, codes in made.effects()]
    assert [each.value for each in fit] == pytest.approx(effects)


def test_seeds_fit_has_no_interval_where_no_run_is_left() -> None:
    factors = FACTORS[:1]
    made = full_design(["a", "b"], [{"f": "false"}, {"f": "true"}], factors)
    ((effect,), freedom) = fit_seeds(made, [[0.5], [0.6]])
    assert freedom == 0
    assert effect.value == pytest.approx(0.1)
    assert effect.low is effect.p is None


def test_effects_of_unequal_numbers_of_seeds_are_those_of_cell_means() -> None:
    made, rows = design()
    generator = np.random.default_rng(1)
    scores = [list(generator.random(1 + at % 3)) for at in range(len(rows))]
    means = np.array([np.mean(each) for each in scores])
    fit, _ = fit_seeds(made, scores)
    assert [each.value for each in fit] == pytest.approx(
        [codes @ means for _, codes in made.effects()]
    )


def test_missing_cell_is_named() -> None:
    rows = cells()
    del rows[3]
    with pytest.raises(ConfigError, match="filter=false, months=true, flips=flips"):
        full_design([f"row{at}" for at in range(7)], rows, FACTORS)


def test_two_rows_in_a_cell_are_refused() -> None:
    with pytest.raises(ConfigError, match="row1 and again are the same cell"):
        full_design(["row0", "row1", "again"], [*cells()[:2], cells()[1]], FACTORS)


def test_a_network_against_another_is_not_called_satellite() -> None:
    for pair, name in ((("unet", "utt"), "satellite"), (("unet", "my_net"), "model.name")):
        (factor,) = find_factors([{"model.name": each} for each in pair])
        assert (factor.name, factor.low, factor.high) == (name, *pair)


def test_published_factors_that_vary_are_analysed() -> None:
    plain = {"s2_preproc.monthly": "false", "aug.geometry": "none", "model.name": "utt"}
    rows = [plain, plain | {"s2_preproc.monthly": "true"}, plain | {"aug.geometry": "flips"}]
    assert [one.name for one in find_factors(rows)] == ["monthly averages", "augmentation"]


def test_levels_of_another_option_are_in_order_of_appearance() -> None:
    (factor,) = find_factors([{"loss.name": "focal"}, {"loss.name": "dice"}], ["loss.name"])
    assert (factor.low, factor.high) == ("focal", "dice")
    (factor,) = find_factors([{"x": "true"}, {"x": "false"}], ["x"])
    assert (factor.low, factor.high) == ("false", "true")


@pytest.mark.parametrize(
    ("values", "message"), [(["1"], "not 1"), (["1", "2", "3"], "not 1, 2, 3"), ([""], "nothing")]
)
def test_factor_without_two_levels_is_refused(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_factors([{"key": value} for value in values], ["key"])


def test_no_factor_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no factor varies"):
        find_factors([{"aug.geometry": "none"}] * 2)
