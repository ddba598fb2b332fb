"""The score against the golden vectors: the published baseline's own figures."""

from __future__ import annotations

import numpy as np

from flair2_exp.nomenclature import SCORED, class_indices
from flair2_exp.training.metrics import confusion_matrix, iou, miou
from tests.golden_vectors import golden


def test_class_mapping_and_score_agree_with_the_baseline() -> None:
    vectors = golden("metrics")
    truth = np.array(class_indices(13), dtype=np.uint8)[vectors["masks_1_to_19"]]
    predictions = vectors["predictions_0_to_12"]
    summed = sum(
        confusion_matrix(one, other, 13) for one, other in zip(truth, predictions, strict=True)
    )
    assert np.array_equal(summed, confusion_matrix(truth, predictions, 13))
    np.testing.assert_allclose(iou(np.asarray(summed))[:SCORED], vectors["iou_12"], rtol=1e-6)
    np.testing.assert_allclose(miou(np.asarray(summed)), vectors["miou"], rtol=1e-6)


def test_leaving_other_out_is_another_score() -> None:
    vectors = golden("metrics")
    truth = np.array(class_indices(13), dtype=np.uint8)[vectors["masks_1_to_19"]]
    kept = confusion_matrix(truth, vectors["predictions_0_to_12"], 13)
    dropped = confusion_matrix(truth, vectors["predictions_0_to_12"], 13, drop_truth=12)
    assert kept[12].sum() > 0
    assert dropped[12].sum() == 0
    # Predictions on pixels of "other" count as false positives in the baseline only.
    assert (iou(dropped)[:SCORED] >= iou(kept)[:SCORED]).all()
    assert miou(dropped) > miou(kept)
