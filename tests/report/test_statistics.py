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
    one, other = (statistics.resampled(row, weights)[0] for row in rows)
    ours = other[:, 0] - one[:, 0]
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


@pytest.mark.thorough
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


PAIRS = statistics.pair_contrasts(4)[1]
ALL = slice(0, len(PAIRS))


def four_rows(
    seed: int = 0, areas: int = 8, skills: tuple[float, ...] = (1.0, 1.1, 1.3, 1.6)
) -> list[RowCounts]:
    luck = (0.05,) * 4
    return World(skills=skills, luck=luck).draw(np.random.default_rng(seed), areas, 3)


def test_joint_p_and_interval_are_those_of_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    drawn = np.abs(generator.standard_t(3, (150, 5, 1))).astype(np.float32)
    drawn[:, 3] *= 40  # one long tail must not take the others' share of the error
    observed = np.array([[0.5], [2.0], [4.0], [90.0], [3.0]])
    p, quantile = statistics._joint(drawn, observed, np.ones((5, 1), dtype=bool))

    def share(column: int, value: float, extra: int) -> float:
        return (sum(each >= value for each in drawn[:, column, 0]) + extra) / 151

    smallest = [min(share(at, drawn[r, at, 0], 0) for at in range(5)) for r in range(150)]
    for at in range(5):
        own = share(at, observed[at, 0], 1)
        assert p[at, 0] == pytest.approx((1 + sum(each <= own for each in smallest)) / 151)
    # The quantile is the least |t| beyond which p is below 5 %.
    for at in range(5):
        for value, rejected in ((quantile[at, 0], False), (quantile[at, 0] * 1.0001, True)):
            own = share(at, value, 1)
            joint = (1 + sum(each <= own for each in smallest)) / 151
            assert (joint < 0.05) == rejected


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), areas=st.integers(4, 12))
def test_joint_intervals_leave_out_0_exactly_where_p_is_below_5_per_cent(
    seed: int, areas: int
) -> None:
    estimate = statistics.estimate(four_rows(seed, areas), PAIRS, resamples=199, family=ALL)
    outside = (estimate.joint_low > 0) | (estimate.joint_high < 0)
    given_an_interval = np.isfinite(estimate.joint_low)
    np.testing.assert_array_equal(estimate.joint_p < 0.05, outside)
    assert (estimate.joint_p >= estimate.p)[given_an_interval].all()
    assert (estimate.joint_low <= estimate.low + 1e-12)[given_an_interval].all()
    assert (estimate.joint_high >= estimate.high - 1e-12)[given_an_interval].all()


def test_what_is_no_part_of_the_family_changes_nothing_in_it() -> None:
    rows, contrasts = four_rows(), np.concatenate([np.eye(4), PAIRS])
    alone = statistics.estimate(rows, PAIRS, resamples=200, family=ALL)
    both = statistics.estimate(rows, contrasts, resamples=200, family=slice(4, None))
    np.testing.assert_allclose(both.joint_high[4:], alone.joint_high, rtol=1e-9)
    assert np.isnan(both.joint_p[:4]).all()


def test_of_equal_rows_any_pair_is_called_different_in_at_most_5_of_100_worlds() -> None:
    wrong = 0
    for at in range(200):
        rows = four_rows(at, 12, skills=(1.0,) * 4)
        estimate = statistics.estimate(rows, PAIRS, resamples=199, seed=at, family=ALL)
        wrong += (estimate.joint_p[:, 0] < 0.05).any()
    assert wrong / 200 <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5


def in_domains(rows: list[RowCounts], each: int) -> list[RowCounts]:
    return [statistics.grouped(row, np.arange(row.areas) // each) for row in rows]


def test_grouped_counts_are_sums_of_areas() -> None:
    (row,) = world(areas=7)[:1]
    groups = np.array(["b", "a", "b", "c", "a", "a", "c"])
    summed = statistics.grouped(row, groups)
    for at, group in enumerate("abc"):
        expected = row.marks[:, groups == group].sum(axis=1)
        np.testing.assert_allclose(summed.marks[:, at], expected)
    np.testing.assert_allclose(statistics.scores([summed])[0], statistics.scores([row])[0])


@cache
def truth_in_domains(alike: float) -> np.ndarray:
    return World(alike=alike).truth(4)


def coverage_in_domains(domains: int, alike: float, worlds: int) -> tuple[np.ndarray, np.ndarray]:
    """How often intervals over areas, and over domains, of 19 areas hold the truth of mIoU: (2,).

    Of a row and of the difference of two, with three seeds.
    """
    made, contrasts = World(alike=alike, areas_per_domain=19), np.array([[1.0, 0.0], [-1.0, 1.0]])
    wanted = (contrasts @ truth_in_domains(alike))[:, 0]
    covered = np.zeros((2, 2))
    for at in range(worlds):
        rows = made.draw(np.random.default_rng([at, domains, 19]), 19 * domains, 3)
        for unit, counted in enumerate((rows, in_domains(rows, 19))):
            estimate = statistics.estimate(counted, contrasts, resamples=199, seed=at)
            covered[unit] += (estimate.low[:, 0] <= wanted) & (wanted <= estimate.high[:, 0])
    return covered[0] / worlds, covered[1] / worlds


def test_where_areas_of_a_domain_are_alike_the_domain_is_the_unit_that_covers() -> None:
    by_area, by_domain = coverage_in_domains(10, 0.5, worlds=150)
    assert by_area[0] < 0.7
    assert by_domain.min() >= 0.95 - 3 * (0.05 * 0.95 / 150) ** 0.5


@pytest.mark.thorough
@pytest.mark.parametrize("domains", [statistics.ENOUGH_DOMAINS, 10])
@pytest.mark.parametrize("alike", [0.0, 0.2, 0.5])
def test_intervals_over_enough_domains_cover_the_truth(domains: int, alike: float) -> None:
    _, by_domain = coverage_in_domains(domains, alike, worlds=300)
    assert by_domain.min() >= 0.95 - 3 * (0.05 * 0.95 / 300) ** 0.5


@pytest.mark.parametrize("alike", [0.0, 0.2, 0.5])
def test_the_correlation_within_domains_is_recovered(alike: float) -> None:
    generator = np.random.default_rng(0)
    groups = np.arange(400) // 10
    found = []
    for _ in range(20):
        common = generator.standard_normal(40).repeat(10)
        score = 0.5 + 0.05 * (
            alike**0.5 * common + (1 - alike) ** 0.5 * generator.standard_normal(400)
        )
        hits = np.stack([100 * score / (1 + score)] * 2, axis=-1)[None]
        row = RowCounts("a", hits, np.full_like(hits, 100.0))
        by_area, by_group = (
            statistics.unit_variance([each], np.eye(1))[0, 0]
            for each in (row, statistics.grouped(row, groups))
        )
        sizes = np.full(40, 10)
        found.append(float(statistics.correlation(by_area, by_group, sizes)))
    assert np.mean(found) == pytest.approx(alike, abs=0.05)


def test_pairs_have_the_baseline_behind_the_minus() -> None:
    pairs, contrasts = statistics.pair_contrasts(3, 1)
    assert pairs == [(0, 1), (2, 0), (2, 1)]
    assert contrasts.tolist() == [[1, -1, 0], [-1, 0, 1], [0, -1, 1]]
    assert statistics.pair_contrasts(3, 1, against_all=False)[0] == [(0, 1), (2, 1)]
