from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flair2_exp.score import (
    PUBLISHED,
    Convention,
    confusion_matrix,
    convention_of,
    iou,
    mean_iou,
    miou,
    score,
)

PAIRS = st.integers(1, 60).flatmap(
    lambda size: st.tuples(
        arrays.arrays(np.uint8, size, elements=st.integers(0, 12)),
        arrays.arrays(np.uint8, size, elements=st.integers(0, 12)),
    )
)


@given(PAIRS)
def test_counts_agree_with_a_plain_loop(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    expected = np.zeros((13, 13), dtype=np.int64)
    for t, p in zip(truth, prediction, strict=True):
        expected[t, p] += 1
    assert (confusion_matrix(truth, prediction, 13) == expected).all()
    expected[12] = 0
    assert (confusion_matrix(truth, prediction, 13, drop_truth=12) == expected).all()


@given(PAIRS)
def test_iou_agrees_with_torchmetrics(pair: tuple[np.ndarray, np.ndarray]) -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index

    truth, prediction = (torch.from_numpy(each).long() for each in pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = multiclass_jaccard_index(prediction, truth, 13, average="none").numpy()
    ours = iou(confusion_matrix(*pair, 13))
    present = ~np.isnan(ours)
    np.testing.assert_allclose(ours[present], expected[present], rtol=1e-6)
    assert (expected[~present] == 0).all()


def test_a_class_absent_from_truth_and_prediction_is_left_out_of_the_mean() -> None:
    confusion = np.zeros((13, 13), dtype=np.int64)
    confusion[0, 0], confusion[1, 0] = 3, 1
    assert iou(confusion)[0] == pytest.approx(3 / 4)
    assert iou(confusion)[1] == 0  # in the truth, never found
    assert np.isnan(iou(confusion)[2:]).all()
    assert miou(confusion) == pytest.approx(3 / 8)


def test_other_never_enters_the_mean_but_its_pixels_may_be_false_positives() -> None:
    truth, prediction = np.array([0, 0, 12, 12]), np.array([0, 0, 0, 12])
    assert miou(confusion_matrix(truth, prediction, 13)) == pytest.approx(2 / 3)
    assert miou(confusion_matrix(truth, prediction, 13, drop_truth=12)) == 1.0


def test_the_score_is_that_of_the_summed_matrix_not_the_mean_of_scores() -> None:
    patches = np.zeros((2, 13, 13), dtype=np.int64)
    patches[0, 0, 0], patches[1, 0, 0], patches[1, 0, 1] = 10, 1, 9
    assert miou(patches.sum(0)) == pytest.approx((11 / 20 + 0) / 2)
    assert miou(patches).mean() != pytest.approx(float(miou(patches.sum(0))))


def test_leading_dimensions_pass_through() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (4, 3, 13, 13))
    each = np.array([[miou(matrix) for matrix in row] for row in counts])
    np.testing.assert_allclose(miou(counts), each)
    np.testing.assert_allclose(mean_iou(iou(counts)), each)


def test_nothing_scored_gives_nan_rather_than_a_score() -> None:
    assert np.isnan(miou(np.zeros((13, 13))))


@pytest.mark.parametrize("bad", [np.array([13]), np.array([-1])])
def test_an_index_outside_the_classes_is_refused(bad: np.ndarray) -> None:
    for pair in ((bad, np.array([0])), (np.array([0]), bad)):
        with pytest.raises(ValueError, match=r"0\.\.12"):
            confusion_matrix(*pair, 13)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(np.zeros(2, int), np.zeros(3, int), 13)


def by_pixels(convention: Convention, truth: list[int], prediction: list[int]) -> float:
    """mIoU by the words of each convention, pixel by pixel; 12 and above are "other"."""
    pixels = [(min(t, 12), min(p, 12)) for t, p in zip(truth, prediction, strict=True)]
    if convention in (Convention.CORRECTED, Convention.MAESTRO):
        pixels = [(t, p) for t, p in pixels if t != 12]
    if convention is Convention.FLAIR_HUB:
        pixels = [(t, p) for t, p in pixels if 12 not in (t, p)]
    values = []
    for one in range(13 if convention is Convention.GEO_BENCH else 12):
        both = sum(t == one and p == one for t, p in pixels)
        either = sum(one in (t, p) for t, p in pixels)
        there = sum(t == one for t, p in pixels)
        if convention is Convention.FLAIR_HUB and not either:
            values.append(0.0)
        elif there if convention is Convention.MAESTRO else either:
            values.append(both / either)
    return sum(values) / len(values) if values else float("nan")


def labels(classes: int) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Tiny label arrays in which classes are often absent, and "other" is not."""
    one = st.one_of(st.integers(0, classes - 1), st.sampled_from([0, 1, 12, classes - 1]))
    return st.lists(st.tuples(one, one), min_size=1, max_size=25).map(
        lambda pairs: (np.array([t for t, _ in pairs]), np.array([p for _, p in pairs]))
    )


@pytest.mark.parametrize("convention", Convention)
@given(pair=labels(13))
def test_each_convention_agrees_with_its_words_pixel_by_pixel(
    convention: Convention, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    expected = by_pixels(convention, *(each.tolist() for each in pair))
    kept = score(convention, confusion_matrix(*pair, 13), other_kept=True)
    np.testing.assert_allclose(kept, expected, rtol=1e-12)
    dropped = score(convention, confusion_matrix(*pair, 13, drop_truth=12), other_kept=False)
    if convention in (Convention.CHALLENGE, Convention.GEO_BENCH):
        assert dropped is None  # the pixels of "other" are lost
    else:
        np.testing.assert_allclose(dropped, expected, rtol=1e-12)


@pytest.mark.parametrize("convention", PUBLISHED)
@given(pair=labels(19))
def test_all_classes_after_the_twelfth_are_other(
    convention: Convention, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    expected = by_pixels(convention, *(each.tolist() for each in pair))
    kept = score(convention, confusion_matrix(*pair, 19), other_kept=True)
    np.testing.assert_allclose(kept, expected, rtol=1e-12)


def test_the_four_conventions_are_four_numbers() -> None:
    """Half of a class is called "other", "other" is called it, and one class is predicted alone."""
    truth = np.array([0, 0, 0, 0, 1, 1, 12, 12, 12])
    prediction = np.array([0, 0, 12, 2, 1, 1, 0, 12, 12])
    counts = confusion_matrix(truth, prediction, 13)
    scores = [score(each, counts, other_kept=True) for each in PUBLISHED]
    assert scores == pytest.approx([
        (2 / 5 + 1 + 0) / 3,            # the false positive of class 0; class 2 is predicted
        (2 / 3 + 1 + 0) / 12,           # without the pixel called "other"; ten classes absent
        (2 / 4 + 1) / 2,                # classes 0 and 1 are in the truth
        (2 / 5 + 1 + 0 + 2 / 4) / 4,    # "other" has 2 hits, 1 miss, 1 false positive
    ])  # fmt: skip


@pytest.mark.parametrize("other_pixels", ["keep", "drop"])
def test_a_runs_own_convention_is_the_score_that_it_logs(other_pixels: str) -> None:
    generator = np.random.default_rng(0)
    truth, prediction = generator.integers(0, 13, (2, 500))
    drop = 12 if other_pixels == "drop" else None
    counts = confusion_matrix(truth, prediction, 13, drop_truth=drop)
    own = score(convention_of(other_pixels), counts, other_kept=drop is None)
    assert own == miou(counts)
    patches = np.stack([counts, 2 * counts, counts.T])
    for each in Convention:
        values = score(each, patches, other_kept=True)
        assert values is not None
        assert values.shape == (3,)
        assert values[0] == pytest.approx(values[1])
