"""The FLAIR #2 score: per-class IoU and their mean, from summed confusion counts.

Pure functions over integer arrays, NumPy only, so that reports compute scores without torch. A
confusion matrix has the truth along its rows and the prediction along its columns; leading
dimensions (patches, areas, resamples) pass through. The score of a data set is that of the *summed*
matrix, not the mean of its patches' scores (FLAIR #2's published code, flair2 §2).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

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


class Convention(StrEnum):
    """What "mIoU" means: four publications on FLAIR data mean four things by it.

    All are computed from the summed counts of a test set, rows truth, columns prediction. The
    *scored* classes are the first ones (FLAIR #2: twelve); "other" is all that follows, taken as
    one class.
    """

    CHALLENGE = "FLAIR #2 challenge"
    """IoU = TP / (TP + FP + FN) of the scored classes, over all pixels: a scored class predicted
    where the truth is "other" is a false positive. Mean over the scored classes, but for those
    absent from truth and prediction alike. Source: the published code of FLAIR #2."""
    CORRECTED = "other pixels dropped"
    """As `CHALLENGE`, without the pixels whose truth is the last class ("other"): they are not
    labelled as anything, so nothing predicted there is wrong. No publication uses it; it is what
    `metric.other_pixels=drop` scores."""
    FLAIR_HUB = "FLAIR-HUB"
    """Rows and columns of "other" are dropped: pixels count where truth and prediction are both
    scored classes, so that "other" predicted on a scored class is not a miss. Mean over all twelve;
    an absent class counts 0. Source: the data set FLAIR-HUB."""
    MAESTRO = "MAESTRO"
    """Pixels whose truth is "other" are dropped (rows); "other" predicted on a scored class stays a
    miss. Mean over the scored classes that are present in the truth. Source: the paper MAESTRO."""
    GEO_BENCH = "GEO-Bench-2"
    """As `CHALLENGE`, with "other" as a thirteenth class that is scored like the others. Source:
    the benchmark GEO-Bench-2."""


PUBLISHED: Final = (
    Convention.CHALLENGE, Convention.FLAIR_HUB, Convention.MAESTRO, Convention.GEO_BENCH
)  # fmt: skip
"""The four conventions that publications use."""


def convention_of(other_pixels: str) -> Convention:
    """Return the convention of a run's own score, by its `metric.other_pixels`."""
    return Convention.CHALLENGE if other_pixels == "keep" else Convention.CORRECTED


def score(
    convention: Convention,
    confusion: npt.NDArray[np.integer],
    *,
    other_kept: bool,
    scored: int = SCORED,
) -> FloatArray | None:
    """Return the mean IoU of a convention.

    Args:
        convention: Of `Convention`, which has the definitions.
        confusion: (..., C, C) counts, rows truth; the last class is "other".
        other_kept: Whether the counts hold the pixels whose truth is "other"
            (`metric.other_pixels=keep`).
        scored: The number of classes that count, the first ones.

    Returns:
        (...) float64 in 0..1, NaN where no class is left to average; None where these counts do not
        hold what the convention needs.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    if convention is Convention.CORRECTED:
        kept = counts.copy()
        kept[..., max(scored, kept.shape[-1] - 1) :, :] = 0.0  # none where every class is scored
        return miou(kept, scored)
    if convention is Convention.FLAIR_HUB:
        per_class = iou(counts[..., :scored, :scored])
        return np.asarray(np.nan_to_num(per_class).mean(axis=-1))
    if convention is Convention.MAESTRO:
        kept = counts.copy()
        kept[..., scored:, :] = 0.0
        present = kept.sum(axis=-1) > 0
        return mean_iou(np.where(present, iou(kept), np.nan), scored)
    if not other_kept:
        return None
    if convention is Convention.CHALLENGE:
        return miou(counts, scored)
    return miou(_with_other_as_one(counts, scored), scored + 1)


def _with_other_as_one(counts: FloatArray, scored: int) -> FloatArray:
    """Return (..., C, C) counts as (..., scored + 1, scored + 1), the other classes merged."""
    starts = np.arange(min(scored + 1, counts.shape[-1]))  # the last one takes all that follow
    return np.add.reduceat(np.add.reduceat(counts, starts, axis=-1), starts, axis=-2)


def most_frequent_class_miou(confusion: npt.NDArray[np.int64], scored: int = SCORED) -> float:
    """Return the score of predicting the most frequent scored class of the truth everywhere.

    Args:
        confusion: (C, C) counts, rows truth.
        scored: The number of classes that count, the first ones.
    """
    truth = confusion.sum(axis=1)
    constant = np.zeros_like(confusion)
    constant[:, int(truth[:scored].argmax())] = truth
    return float(miou(constant, scored))
