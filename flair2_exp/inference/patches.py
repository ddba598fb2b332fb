"""Patches as arrays: what is predicted of, and what is predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flair2_exp.data import sentinel2
from flair2_exp.errors import DataError
from flair2_exp.nomenclature import SATELLITE_BANDS, Nomenclature

if TYPE_CHECKING:
    from flair2_exp.config.data import S2PreprocConfig


@dataclass(frozen=True)
class Acquisitions:
    """A satellite series about a patch, before any preprocessing.

    Raises:
        DataError: The arrays do not go together, or are not what they should be.
    """

    frames: NDArray[np.uint16]
    """(T, 10, S, S) reflectances × 10,000, T ≥ 1, the patch at the centre."""
    dates: NDArray[np.datetime64]
    """(T,) in any order."""
    probabilities: NDArray[np.uint8] | None = None
    """(T, 2, S, S) snow and cloud, per cent; None where nobody knows them."""

    def __post_init__(self) -> None:
        frames, shape = self.frames, self.frames.shape
        if frames.ndim != 4 or not len(frames) or shape[1] != len(SATELLITE_BANDS):
            raise DataError(
                f"series of shape {shape}: expected (dates, {len(SATELLITE_BANDS)}, S, S), the "
                f"bands {', '.join(SATELLITE_BANDS)}."
            )
        if frames.dtype != np.uint16:
            raise DataError(f"series of {frames.dtype}: expected uint16, reflectance × 10,000.")
        if len(self.dates) != len(frames):
            raise DataError(f"{len(self.dates)} dates of {len(frames)} acquisitions.")
        clouds = self.probabilities
        if clouds is not None and (
            clouds.shape != (len(frames), 2, *shape[2:]) or clouds.dtype != np.uint8
        ):
            raise DataError(
                f"snow and cloud probabilities {clouds.shape} {clouds.dtype}: expected "
                f"{(len(frames), 2, *shape[2:])} uint8, per cent."
            )

    def preprocessed(self, options: S2PreprocConfig) -> sentinel2.Series:
        """Return the series as a run with these options is trained on it.

        Raises:
            DataError: It has fewer pixels on a side, or an odd number more; lacks the probabilities
                that the filter needs; or nothing of it is clear enough and the options refuse that.
        """
        size, (height, width) = options.size, self.frames.shape[2:]
        if height != width or height < size or (height - size) % 2:
            raise DataError(
                f"series of {height} x {width} pixels: the run reads {size} x {size} of 10 m about "
                "each patch, the middle of what is given."
            )
        if options.cloud_filter and self.probabilities is None:
            raise DataError(
                "the run leaves out covered acquisitions (s2_preproc.cloud_filter), and the series "
                "has no snow and cloud probabilities: give them."
            )
        middle = sentinel2.crop_window((height // 2, width // 2), size, (height, width))
        dates = self.dates.astype("datetime64[D]")
        try:
            return sentinel2.preprocess(self.frames, self.probabilities, dates, middle, options)
        except ValueError as error:
            raise DataError(f"{error}.") from None


@dataclass(frozen=True)
class Tile:
    """What is predicted at once: a square of the run's patch size."""

    image: NDArray[Any] | None = None
    """(C, H, W) of the predictor's `bands`, in the files' type; None for satellite alone."""
    series: Acquisitions | sentinel2.Series | None = None
    """Acquisitions as they were made, or preprocessed as the run was trained."""
    metadata: NDArray[np.float32] | None = None
    """(45,), encoded."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a patch."""

    classes: NDArray[np.uint8]
    """(H, W) class indices, positions in `nomenclature.classes`."""
    probabilities: NDArray[np.float32]
    """(C, H, W) in 0..1; over the classes they sum to 1."""
    nomenclature: Nomenclature

    @property
    def confidence(self) -> NDArray[np.float32]:
        """(H, W) probability of the predicted class, in 0..1."""
        highest: NDArray[np.float32] = self.probabilities.max(axis=0)
        return highest


@dataclass(frozen=True)
class SplitPatch:
    """A predicted patch of the run's own data."""

    patch: int
    """Position in the data's index."""
    patch_id: str
    area: str
    truth: NDArray[np.uint8]
    """(H, W) class indices."""
    prediction: Prediction
