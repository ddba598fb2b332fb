from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols

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
        found = {name: codes @ np.array(score)[list(made.rows)] for name, codes in made.effects()}
        assert found["filter"] == pytest.approx(0.02 + 0.01 / 2)
        assert found["months"] == pytest.approx(0.01 / 2)
        assert found["flips"] == pytest.approx(0.03)
        assert found["filter × months"] == pytest.approx(0.01 / 2)
        assert found["months × flips"] == pytest.approx(0, abs=1e-12)


def test_seeds_fit_agrees_with_statsmodels_formula() -> None:
    made, rows = design()
    generator = np.random.default_rng(0)
    scores = [list(0.5 + 0.1 * generator.standard_normal(3)) for _ in rows]
    table = pd.DataFrame(
        [row | {"y": score} for row, of_row in zip(rows, scores, strict=True) for score in of_row]
    )
    for name, high in (("f", "true"), ("m", "true"), ("a", "flips")):
        table[name] = np.where(table[name] == high, 0.5, -0.5)
    expected = ols("y ~ f * m * a", table).fit()
    found = fit_seeds(made, scores)
    assert found.freedom == expected.df_resid == 16
    for at, name in enumerate(["f", "m", "a", "f:m", "f:a", "m:a"]):
        # An interaction here is half the difference of effects; half-unit codes make it whole.
        scale = 2.0 if ":" in name else 1.0
        low, high = expected.conf_int().loc[name]
        assert found.value[at] == pytest.approx(expected.params[name] / scale)
        assert found.low[at] == pytest.approx(low / scale)
        assert found.high[at] == pytest.approx(high / scale)
        assert found.p[at] == pytest.approx(expected.pvalues[name])


def test_seeds_fit_takes_higher_interactions_as_error_without_repeats() -> None:
    made, _ = design()
    scores = [[float(score)] for score in np.random.default_rng(0).random(8)]
    found = fit_seeds(made, scores)
    assert found.freedom == 1  # 8 runs, a mean, 3 effects, 3 interactions
    effects = [codes @ np.array(scores)[:, 0] for _, codes in made.effects()]
    np.testing.assert_allclose(found.value, effects)


def test_seeds_fit_has_no_interval_where_no_run_is_left() -> None:
    factors = FACTORS[:1]
    made = full_design(["a", "b"], [{"f": "false"}, {"f": "true"}], factors)
    found = fit_seeds(made, [[0.5], [0.6]])
    assert found.value == pytest.approx([0.1])
    assert np.isnan(found.low).all()


def test_effects_of_unequal_numbers_of_seeds_are_those_of_cell_means() -> None:
    made, rows = design()
    generator = np.random.default_rng(1)
    scores = [list(generator.random(1 + at % 3)) for at in range(len(rows))]
    means = np.array([np.mean(each) for each in scores])
    np.testing.assert_allclose(
        fit_seeds(made, scores).value, [codes @ means for _, codes in made.effects()]
    )


def test_missing_cell_is_named() -> None:
    rows = cells()
    del rows[3]
    with pytest.raises(ConfigError, match="filter=false, months=true, flips=flips"):
        full_design([f"row{at}" for at in range(7)], rows, FACTORS)


def test_two_rows_in_a_cell_are_refused() -> None:
    with pytest.raises(ConfigError, match="row1 and again are the same cell"):
        full_design(["row0", "row1", "again"], [*cells()[:2], cells()[1]], FACTORS)


def test_known_factors_that_vary_are_found() -> None:
    plain = {"s2_preproc.monthly": "false", "aug.geometry": "none", "model.name": "utt"}
    rows = [plain, plain | {"s2_preproc.monthly": "true"}, plain | {"aug.geometry": "flips"}]
    assert [one.name for one in find_factors(rows)] == ["monthly averages", "augmentation"]


def test_levels_of_another_option_are_in_order_of_appearance() -> None:
    (factor,) = find_factors([{"loss.name": "focal"}, {"loss.name": "dice"}], ["loss.name"])
    assert (factor.low, factor.high) == ("focal", "dice")
    (factor,) = find_factors([{"x": "true"}, {"x": "false"}], ["x"])
    assert (factor.low, factor.high) == ("false", "true")


@pytest.mark.parametrize(
    ("values", "told"), [(["1"], "not 1"), (["1", "2", "3"], "not 1, 2, 3"), ([""], "nothing")]
)
def test_factor_without_two_levels_is_refused(values: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find_factors([{"key": value} for value in values], ["key"])


def test_no_factor_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no factor varies"):
        find_factors([{"aug.geometry": "none"}] * 2)
