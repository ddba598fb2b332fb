from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from flair2_exp.report import statistics
from flair2_exp.report.statistics import RowCounts
from flair2_exp.score import miou
from tests.report.made_runs import make_arrays
from tests.report.synthetic_world import CLASSES, World

DIFFERENCE = np.array([[-1.0, 1.0]])


def plain_scores(hits: np.ndarray, marks: np.ndarray, weights: np.ndarray) -> list[float]:
    """MIoU and IoU by class of one run, with loops."""
    ious = []
    for one in range(hits.shape[1]):
        hit = sum(w * h for w, h in zip(weights, hits[:, one], strict=True))
        mark = sum(w * m for w, m in zip(weights, marks[:, one], strict=True))
        ious.append(hit / (mark - hit) if mark > 0 else float("nan"))
    present = [iou for iou in ious if iou == iou]
    return [sum(present) / len(present), *ious]


def world(seed: int = 0, areas: int = 10, seeds: int = 1, **options: object) -> list[RowCounts]:
    return World(**options).draw(np.random.default_rng(seed), areas, seeds)  # type: ignore[arg-type]


def test_areas_are_summed_as_a_loop_sums_them() -> None:
    arrays = make_arrays(areas=5, patches=3)
    order = np.random.default_rng(0).permutation(15)
    names, totals = statistics.sum_by_area(arrays["areas"][order], arrays["confusion"][order])
    assert list(names) == sorted(set(arrays["areas"]))
    for name, total in zip(names, totals, strict=True):
        expected = np.zeros((13, 13), dtype=np.int64)
        for area, confusion in zip(arrays["areas"], arrays["confusion"], strict=True):
            if area == name:
                expected += confusion
        np.testing.assert_array_equal(total, expected)


def test_areas_do_not_overflow_the_patches_integers() -> None:
    confusion = np.full((3, 13, 13), 2**31 - 1, dtype=np.int32)
    _, totals = statistics.sum_by_area(np.array(["a", "a", "a"]), confusion)
    assert totals.dtype == np.int64
    assert totals[0, 0, 0] == 3 * (2**31 - 1)


def test_scores_are_those_of_the_summed_confusion_matrix() -> None:
    arrays = make_arrays()
    _, totals = statistics.sum_by_area(arrays["areas"], arrays["confusion"])
    (scores,) = statistics.scores([statistics.row_counts("a", [totals])])
    assert scores[0, 0] == pytest.approx(float(miou(arrays["confusion"].sum(axis=0))), abs=1e-12)


def test_predictions_on_other_pixels_are_false_positives() -> None:
    confusion = np.zeros((1, 13, 13), dtype=np.int64)
    confusion[0, 0, 0] = 6
    confusion[0, 12, 0] = 2  # true "other", predicted building
    (scores,) = statistics.scores([statistics.row_counts("a", [confusion])])
    assert scores[0, 0] == pytest.approx(6 / 8)


def test_linearised_error_is_that_of_numerical_derivatives() -> None:
    rows = world(areas=9)
    areas = 9

    def slope(row: RowCounts, area: int) -> np.ndarray:
        step = 1e-5 * np.eye(areas)[area]
        up, down = (plain_scores(row.hits[0], row.marks[0], 1 + sign * step) for sign in (1, -1))
        return np.subtract(up, down) / 2e-5

    slopes = [np.array([slope(row, area) for area in range(areas)]) for row in rows]
    expected = np.sqrt(areas / (areas - 1) * ((slopes[1] - slopes[0]) ** 2).sum(axis=0))
    estimate = statistics.estimate(rows, DIFFERENCE, resamples=200).error[0]
    np.testing.assert_allclose(estimate, expected, rtol=1e-5)


def test_error_agrees_with_scipys_paired_bootstrap() -> None:
    rows = world(areas=60, mixture=3.0)

    def difference(drawn: np.ndarray) -> float:
        sums = [(row.hits[0][drawn].sum(axis=0), row.marks[0][drawn].sum(axis=0)) for row in rows]
        one, other = (hits / (marks - hits) for hits, marks in sums)
        return float((other - one).mean())

    scipys = scipy.stats.bootstrap(
        (np.arange(60),), difference, vectorized=False, n_resamples=2000, method="percentile",
        rng=np.random.default_rng(1),
    )  # fmt: skip
    weights = next(statistics.draw_areas(60, 2000, 0, 2000))
    means = statistics.resampled_means(rows, weights)
    ours = means[:, 1, 0] - means[:, 0, 0]
    assert ours.std() == pytest.approx(scipys.standard_error, rel=0.06)
    interval = np.quantile(ours, [0.025, 0.975])
    np.testing.assert_allclose(
        interval, scipys.confidence_interval, atol=0.2 * scipys.standard_error
    )
    estimate = statistics.estimate(rows, DIFFERENCE, resamples=200)
    assert estimate.error[0, 0] == pytest.approx(scipys.standard_error, rel=0.1)


def test_interval_and_p_are_those_of_a_plain_loop() -> None:
    rows, resamples, areas = world(seed=5, areas=7), 150, 7
    weights = next(statistics.draw_areas(areas, resamples, 3, resamples))

    def difference_and_error(drawn: np.ndarray) -> tuple[float, float]:
        scores = [plain_scores(row.hits[0], row.marks[0], drawn)[0] for row in rows]
        variance = 0.0
        for area in range(areas):
            slope = 0.0
            for sign, row in zip((-1, 1), rows, strict=True):
                hits, marks = row.hits[0], row.marks[0]
                for one in range(CLASSES):
                    hit, mark = drawn @ hits[:, one], drawn @ marks[:, one]
                    iou = hit / (mark - hit)
                    moved = (1 + iou) * hits[area, one] - iou * marks[area, one]
                    slope += sign / CLASSES * moved / (mark - hit)
            variance += drawn[area] * slope**2
        return scores[1] - scores[0], (areas / (areas - 1) * variance) ** 0.5

    value, error = difference_and_error(np.ones(areas))
    drawn = []
    for one in weights:
        moved, its_error = difference_and_error(one)
        drawn.append(abs(moved - value) / its_error)
    quantile = sorted(drawn)[int(np.ceil(0.95 * (resamples + 1))) - 1]
    estimate = statistics.estimate(rows, DIFFERENCE, resamples=resamples, seed=3)
    assert estimate.value[0, 0] == pytest.approx(value, abs=1e-12)
    assert estimate.low[0, 0] == pytest.approx(value - quantile * error, rel=1e-5)
    assert estimate.high[0, 0] == pytest.approx(value + quantile * error, rel=1e-5)
    exceeding = sum(each >= abs(value) / error for each in drawn)
    assert estimate.p[0, 0] == pytest.approx((1 + exceeding) / (1 + resamples))


def equal_areas(values: list[float], areas: int = 20) -> RowCounts:
    """A row whose runs have these mIoUs, the same in each area: all luck is the seeds'."""
    hits = np.array([[[100.0 * value / (1 + value)] * 2] * areas for value in values])
    return RowCounts("a", hits, np.full_like(hits, 100.0))


@pytest.mark.parametrize("values", [[0.5, 0.52], [0.5, 0.51, 0.54], [0.5, 0.52, 0.53, 0.5, 0.55]])
def test_where_seeds_alone_vary_the_interval_is_students(values: list[float]) -> None:
    estimate = statistics.estimate([equal_areas(values)], np.eye(1), resamples=20_000)
    students = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    width = estimate.high[0, 0] - estimate.low[0, 0]
    assert width == pytest.approx(students.high - students.low, rel=0.08)
    assert estimate.value[0, 0] == pytest.approx(np.mean(values))


def test_p_is_students_where_seeds_alone_vary() -> None:
    values = [0.5, 0.51, 0.56, 0.53]
    other = RowCounts("b", equal_areas([0.5]).hits, equal_areas([0.5]).marks)
    estimate = statistics.estimate([other, equal_areas(values)], DIFFERENCE, resamples=20_000)
    assert estimate.p[0, 0] == pytest.approx(scipy.stats.ttest_1samp(values, 0.5).pvalue, abs=0.01)


@cache
def truth(luck: float) -> np.ndarray:
    """The true scores of a world with this spread of seeds."""
    return World(luck=(luck, luck)).truth()


def coverage(areas: int, seeds: int, luck: float, worlds: int) -> np.ndarray:
    """How often the interval holds the truth: (two rows and their difference, mIoU and classes)."""
    made, contrasts = World(luck=(luck, luck)), np.concatenate([np.eye(2), DIFFERENCE])
    wanted = contrasts @ truth(luck)
    covered = np.zeros(wanted.shape)
    for at in range(worlds):
        rows = made.draw(np.random.default_rng([at, areas, seeds]), areas, seeds)
        estimate = statistics.estimate(rows, contrasts, resamples=199, seed=at)
        covered += (estimate.low <= wanted) & (wanted <= estimate.high)
    return covered / worlds


@pytest.mark.parametrize(("areas", "seeds", "luck"), [(8, 3, 0.05), (30, 2, 0.1), (100, 1, 0.0)])
def test_interval_covers_the_truth_in_92_to_98_of_100_worlds(
    areas: int, seeds: int, luck: float
) -> None:
    share = coverage(areas, seeds, luck, worlds=500)[:, 0]
    assert share.min() >= 0.92
    assert share.max() <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("areas", "luck"), [(20, 0.02), (20, 0.1), (60, 0.05)])
def test_interval_of_five_seeds_covers_the_truth_in_93_to_97_of_100_worlds(
    areas: int, luck: float
) -> None:
    # 1500 worlds: three standard errors of a share of 95 % are 1.7 %.
    share = coverage(areas, 5, luck, worlds=1500)
    assert share[:, 0].min() >= 0.93
    assert share[:, 0].max() <= 0.97
    # Of classes: a rare one is in few areas, and few areas tell their own spread badly.
    assert share[:, 1:].min() >= (0.90 if areas < 30 else 0.92)
    assert share[:, 1:].max() <= 0.98


def test_p_is_small_in_no_more_than_5_of_100_worlds_without_a_difference() -> None:
    made = World(skills=(1.0, 1.0), luck=(0.05, 0.05))
    small = 0
    for at in range(300):
        rows = made.draw(np.random.default_rng([at, 77]), 30, 3)
        small += statistics.estimate(rows, DIFFERENCE, resamples=199, seed=at).p[0, 0] < 0.05
    assert small / 300 <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


def test_a_difference_that_is_there_is_found() -> None:
    made = World(skills=(1.0, 1.4), luck=(0.02, 0.02))
    rows = made.draw(np.random.default_rng(0), 60, 3)
    estimate = statistics.estimate(rows, DIFFERENCE, resamples=999)
    assert estimate.p[0, 0] < 0.01
    assert estimate.low[0, 0] > 0


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), areas=st.integers(2, 12), seeds=st.integers(1, 4))
def test_identical_rows_differ_by_nothing(seed: int, areas: int, seeds: int) -> None:
    row = world(seed, areas, seeds)[0]
    twin = RowCounts("twin", row.hits.copy(), row.marks.copy())
    estimate = statistics.estimate([row, twin], DIFFERENCE, resamples=100, seed=seed)
    assert estimate.value[0, 0] == 0
    assert estimate.p[0, 0] >= 0.5
    assert estimate.low[0, 0] <= 0 <= estimate.high[0, 0]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), areas=st.integers(3, 12), seeds=st.integers(1, 4))
def test_swapped_rows_swap_signs_exactly(seed: int, areas: int, seeds: int) -> None:
    one, other = world(seed, areas, seeds)
    estimate = statistics.estimate([one, other], DIFFERENCE, resamples=100, seed=seed)
    swapped = statistics.estimate([other, one], DIFFERENCE, resamples=100, seed=seed)
    np.testing.assert_array_equal(estimate.value, -swapped.value)
    np.testing.assert_allclose(estimate.low, -swapped.high, rtol=1e-9)
    np.testing.assert_array_equal(estimate.p, swapped.p)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([2.0, 16.0, 1024.0]))
def test_the_size_of_a_pixel_does_not_matter(seed: int, factor: float) -> None:
    rows = world(seed, 6, 2)
    scaled = [RowCounts(row.name, row.hits * factor, row.marks * factor) for row in rows]
    estimate = statistics.estimate(rows, DIFFERENCE, resamples=100)
    other = statistics.estimate(scaled, DIFFERENCE, resamples=100)
    np.testing.assert_allclose(estimate.high, other.high, rtol=1e-9)
    np.testing.assert_array_equal(estimate.p, other.p)


def test_a_further_row_leaves_a_difference_as_it_was() -> None:
    rows = World(skills=(1.0, 1.2, 1.1), luck=(0.1,) * 3).draw(np.random.default_rng(4), 20, 3)
    two = statistics.estimate(rows[:2], DIFFERENCE, resamples=200)
    three = statistics.estimate(rows, np.array([[-1.0, 1.0, 0.0]]), resamples=200)
    np.testing.assert_allclose(two.high, three.high, rtol=1e-9)
    np.testing.assert_array_equal(two.p, three.p)


def without_class_2(row: RowCounts, first: int) -> RowCounts:
    """The row without the class in its areas from `first` on."""
    hits, marks = row.hits.copy(), row.marks.copy()
    hits[:, first:, 2] = marks[:, first:, 2] = 0
    return RowCounts("a", hits, marks)


def test_a_class_that_is_nowhere_is_left_out() -> None:
    row = without_class_2(world(areas=8)[0], 0)
    estimate = statistics.estimate([row], np.eye(1), resamples=100)
    others = [each for each in range(CLASSES) if each != 2]
    assert np.isnan(estimate.value[0, 3])
    assert np.isnan(estimate.p[0, 3])
    assert estimate.value[0, 0] == pytest.approx(estimate.value[0, 1:][others].mean())
    assert np.isfinite(estimate.low[0, 0])


def test_of_a_class_in_one_area_alone_no_interval_is_given() -> None:
    row = without_class_2(world(areas=8)[0], 1)
    estimate = statistics.estimate([row], np.eye(1), resamples=100)
    assert np.isfinite(estimate.value[0, 3])
    assert np.isnan(estimate.low[0, 3])


def test_with_one_seed_the_spread_over_seeds_is_marked_unknown() -> None:
    many, one = world(seeds=3)[0], world(seeds=1)[1]
    contrasts = np.concatenate([np.eye(2), DIFFERENCE])
    estimate = statistics.estimate([many, one], contrasts, resamples=100)
    assert list(estimate.seeds_known) == [True, False, False]


def test_one_area_gives_no_interval() -> None:
    estimate = statistics.estimate(world(areas=1), DIFFERENCE, resamples=100)
    assert np.isfinite(estimate.value).all()
    assert np.isnan(estimate.low).all()
    assert np.isnan(estimate.p).all()


def test_rows_of_different_areas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[4, 5\]"):
        statistics.estimate([world(areas=4)[0], world(areas=5)[1]], DIFFERENCE)


def test_pooled_error_is_the_same_in_a_balanced_contrast_and_surer() -> None:
    rows = World(skills=(1.0,) * 8, luck=(0.2,) * 8).draw(np.random.default_rng(0), 40, 2)
    contrast = np.array([[-0.25, 0.25] * 4])
    own = statistics.estimate(rows, contrast, resamples=999)
    pooled = statistics.estimate(rows, contrast, resamples=999, pooled=True)
    np.testing.assert_allclose(pooled.error, own.error, rtol=1e-9)
    assert pooled.high[0, 0] - pooled.low[0, 0] < own.high[0, 0] - own.low[0, 0]


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=12))
def test_holm_is_its_definition(values: list[float]) -> None:
    tested = sorted(value for value in values if value == value)
    expected = []
    for value in values:
        smaller = [len(tested) - tested.index(each) for each in tested if each <= value]
        steps = [k * each for k, each in zip(smaller, tested, strict=False)]
        expected.append(min(1.0, max(steps)) if steps else float("nan"))
    np.testing.assert_allclose(statistics.holm(np.array(values)), expected)


def test_holm_is_statsmodels_holm() -> None:
    p = np.array([0.03, 0.001, 0.2, 0.2, 0.04, 1.0, 0.0])
    expected = [0.15, 0.006, 0.6, 0.6, 0.16, 1.0, 0.0]  # statsmodels 0.14's multipletests
    np.testing.assert_allclose(statistics.holm(p), expected)


def test_pairs_have_the_baseline_behind_the_minus() -> None:
    pairs, contrasts = statistics.pair_contrasts(3, 1)
    assert pairs == [(0, 1), (2, 0), (2, 1)]
    assert contrasts.tolist() == [[1, -1, 0], [-1, 0, 1], [0, -1, 1]]
    assert statistics.pair_contrasts(3, 1, against_all=False)[0] == [(0, 1), (2, 1)]
