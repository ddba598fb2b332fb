from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flair2_exp.score import confusion_matrix, iou, mean_iou, miou

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
