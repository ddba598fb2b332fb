"""The FLAIR #2 score: per-class IoU and their mean, from summed confusion counts.

Pure functions over integer arrays, NumPy only, so that reports compute scores without torch. A
confusion matrix has the truth along its rows and the prediction along its columns; leading
dimensions (patches, areas, resamples) pass through. The score of a data set is that of the *summed*
matrix, not the mean of its patches' scores (FLAIR #2's published code, flair2 §2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flair2_exp.nomenclature import SCORED

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.float64]


def confusion_matrix(
    truth: IntArray, prediction: IntArray, classes: int, *, drop_truth: int | None = None
) -> npt.NDArray[np.int64]:
    """Count the pixels of each pair of true and predicted class.

    Args:
        truth: Class indices 0..classes-1, any shape, any integer type.
        prediction: Class indices of the same shape.
        classes: Number of classes C.
        drop_truth: A class whose true pixels are left out (`metric.other_pixels=drop`); None keeps
            them all, as the published score does.

    Returns:
        (C, C) int64, rows truth, columns prediction.

    Raises:
        ValueError: The shapes differ, or an index lies outside 0..C-1.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    # 16 bits hold the pair index of up to 181 classes and halve the traffic of the usual int64.
    pair = truth.astype(np.uint16)
    pair *= np.uint16(classes)
    pair += prediction.astype(np.uint16, copy=False)
    if truth.size and (
        int(truth.max()) >= classes
        or int(prediction.max()) >= classes
        or int(truth.min()) < 0
        or int(prediction.min()) < 0
    ):
        raise ValueError(f"class indices must lie in 0..{classes - 1}")
    counts = np.bincount(pair.ravel(), minlength=classes * classes).reshape(classes, classes)
    if drop_truth is not None:
        counts[drop_truth] = 0
    return counts.astype(np.int64, copy=False)


def iou(confusion: npt.NDArray[np.integer | np.floating]) -> FloatArray:
    """Return the IoU of each class: TP / (TP + FP + FN).

    Args:
        confusion: (..., C, C) counts, rows truth, columns prediction.

    Returns:
        (..., C) float64 in 0..1; NaN for a class absent from truth and prediction alike.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    return iou_from_sums(hits, counts.sum(axis=-1), counts.sum(axis=-2))


def iou_from_sums(
    hits: npt.ArrayLike, truth: npt.ArrayLike, prediction: npt.ArrayLike
) -> FloatArray:
    """Return the IoU from each class's hits, true pixels and predicted pixels, all (..., C).

    Returns:
        (..., C) float64 in 0..1; NaN where a class has neither true nor predicted pixels.
    """
    hits = np.asarray(hits, dtype=np.float64)
    union = np.asarray(truth, dtype=np.float64) + np.asarray(prediction, dtype=np.float64) - hits
    result = np.full(np.broadcast_shapes(hits.shape, union.shape), np.nan)
    np.divide(hits, union, out=result, where=union > 0)
    return result


def mean_iou(per_class: npt.NDArray[np.floating], scored: int = SCORED) -> FloatArray:
    """Return the mean over the first `scored` classes of (..., C) IoUs, NaN left out.

    Returns:
        (...) float64; NaN where every scored class is absent.
    """
    return known_mean(np.asarray(per_class, dtype=np.float64)[..., :scored], -1)


def known_mean(values: FloatArray, axis: int) -> FloatArray:
    """Return the mean along an axis without NaN; NaN (and no warning) where nothing is left."""
    present = ~np.isnan(values)
    count = present.sum(axis=axis)
    total = np.where(present, values, 0.0).sum(axis=axis)
    mean: FloatArray = np.full(np.shape(total), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def miou(confusion: npt.NDArray[np.integer | np.floating], scored: int = SCORED) -> FloatArray:
    """Return the FLAIR #2 score of (..., C, C) counts: mean IoU of the first `scored` classes."""
    return mean_iou(iou(confusion), scored)


def most_frequent_class_miou(confusion: npt.NDArray[np.int64]) -> float:
    """Return the score of predicting the most frequent scored class of the truth everywhere.

    Args:
        confusion: (C, C) counts, rows truth.
    """
    truth = confusion.sum(axis=1)
    constant = np.zeros_like(confusion)
    constant[:, int(truth[:SCORED].argmax())] = truth
    return float(miou(constant))
