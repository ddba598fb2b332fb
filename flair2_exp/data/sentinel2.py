"""Satellite series: dates, crop, snow and cloud filter, monthly means, scale.

Pure functions over arrays, after the published FLAIR #2 baseline (Garioud et al., 2023); where the
baseline does what nobody would choose, an option of `S2PreprocConfig` switches between its way and
the corrected one. Frames are Sentinel-2 reflectances × 10,000 (uint16, ten bands); probabilities
are per cent, channel 0 snow and channel 1 cloud.

The edges, each with a test:

- Products need not be sorted: series are sorted by date, acquisitions of one day stay in the
  file's order. Two products of one day (or the same product twice) are two acquisitions.
- Where snow and cloud leave nothing, the clearest acquisition is kept (several where they tie), or
  the patch is refused.
- A series of one acquisition is a series; its monthly mean is that frame.
- A month without acquisitions is absent from the monthly means.
- A crop that leaves the array is refused; one that touches its border is not.
- A frame that is zero everywhere is an acquisition to filter and mean, and padding to a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import S2PreprocConfig
from flair2_exp.nomenclature import SATELLITE_BANDS

BANDS: Final = len(SATELLITE_BANDS)
"""Bands of a frame."""

REFERENCE_DAY: Final = 135
"""15 May, the 135th day of a common year: offsets are counted from here."""

Dates = NDArray[np.datetime64]
Frames = NDArray[np.uint16] | NDArray[np.float32]
Window = tuple[slice, slice]


class Series(NamedTuple):
    """A preprocessed series."""

    frames: Frames
    """(T, 10, size, size): uint16, or float32 for monthly means; unscaled."""
    days: NDArray[np.int64]
    """(T,) days from the frame to 15 May: positive before, negative after."""
    covered: bool
    """Whether the filter found nothing clear enough and kept the clearest instead."""


def acquisition_dates(products: Sequence[str]) -> Dates:
    """Read the dates of Sentinel-2 products from their names.

    Args:
        products: (T,) names like `S2A_MSIL2A_20190103T104431_…`: the date in characters 11..18.

    Raises:
        ValueError: A name has no date there, or one that no calendar has (30 February).
    """
    texts = [f"{name[11:15]}-{name[15:17]}-{name[17:19]}" for name in products]
    for name, text in zip(products, texts, strict=True):
        if not (len(text) == 10 and text.replace("-", "").isdecimal() and text.isascii()):
            raise ValueError(f"no date in characters 11 to 18 of product {name[:80]!r}")
    return np.array(texts, dtype="datetime64[D]")


def day_offsets(
    dates: Dates, days: Literal["day_of_year", "reference"] = "day_of_year"
) -> NDArray[np.int64]:
    """Return days from each date to 15 May, whatever the year: positive before, negative after.

    Args:
        dates: (T,) datetime64[D].
        days: `reference` reads each month and day as one of 2021, a common year (the baseline),
            and 29 February as the 28th (where the baseline stops). `day_of_year` counts through
            each date's own year, so after 28 February of a leap year offsets are one day lower.

    Returns:
        (T,) int64 in -231..134.
    """
    if days == "day_of_year":
        day_of_year = (dates - dates.astype("datetime64[Y]")).astype(np.int64) + 1
        return np.asarray(REFERENCE_DAY - day_of_year, dtype=np.int64)
    month = _months(dates)
    day = (dates - dates.astype("datetime64[M]")).astype(np.int64)
    day = np.where((month == 1) & (day == 28), 27, day)  # 29 February, both counted from 0
    return day_offsets(_day_of_2021(month, day))


def _months(dates: Dates) -> NDArray[np.int64]:
    """Return (T,) calendar months, 0..11."""
    return dates.astype("datetime64[M]").astype(np.int64) % 12


def _day_of_2021(month: NDArray[np.int64], day: NDArray[np.int64] | int) -> Dates:
    """Return (T,) dates of a common year; month and day are counted from 0."""
    first_days = np.datetime64("2021-01", "M") + month.astype("timedelta64[M]")
    days = np.asarray(day).astype("timedelta64[D]")
    return np.asarray(first_days.astype("datetime64[D]") + days)


def crop_window(centroid: Sequence[int], size: int, shape: Sequence[int]) -> Window:
    """Return the rows and columns of a super-patch in its area's arrays.

    Args:
        centroid: Row and column of the patch's centre.
        size: Pixels on a side, even.
        shape: Height and width of the area's arrays.

    Returns:
        Rows r − size/2 … r + size/2 − 1 and columns alike, as slices.

    Raises:
        ValueError: The crop leaves the array (which FLAIR #2 is not known to have).
    """
    row, column = (int(value) - size // 2 for value in centroid)
    height, width = (int(value) for value in shape)
    if row < 0 or column < 0 or row + size > height or column + size > width:
        raise ValueError(
            f"a crop of {size} pixels about row {centroid[0]}, column {centroid[1]} leaves "
            f"the area's {height} x {width} pixels"
        )
    return slice(row, row + size), slice(column, column + size)


def covered_share(
    probabilities: NDArray[np.uint8], threshold: int, cover: Literal["union", "sum"] = "union"
) -> NDArray[np.float64]:
    """Return the share of each acquisition's pixels that snow or cloud covers.

    Args:
        probabilities: (T, 2, H, W) per cent; channel 0 snow, channel 1 cloud.
        threshold: A pixel counts from this probability on.
        cover: `union` counts a pixel once; `sum` adds the two shares, so a pixel that is both
            counts twice (the baseline).

    Returns:
        (T,) in 0..1, or 0..2 for `sum`.
    """
    frames, _, height, width = probabilities.shape
    flags = (probabilities >= threshold).reshape(frames, 2, height * width)
    if cover == "union":
        counts = np.count_nonzero(flags[:, 0] | flags[:, 1], axis=1)
        return np.asarray(counts / (height * width), dtype=np.float64)
    shares = np.count_nonzero(flags, axis=2) / (height * width)
    return np.asarray(shares[:, 0] + shares[:, 1], dtype=np.float64)


def select(
    share: NDArray[np.float64], max_cover: float, on_empty: Literal["clearest", "error"]
) -> tuple[NDArray[np.bool_], bool]:
    """Choose the acquisitions that are clear enough.

    Args:
        share: (T,) covered shares.
        max_cover: The share from which an acquisition is left out.
        on_empty: What to do where none is.

    Returns:
        (T,) whether each acquisition is kept, and whether the clearest had to stand in.

    Raises:
        ValueError: None is clear enough and `on_empty` is `error`.
    """
    keep = share < max_cover
    if keep.any() or not len(share):
        return keep, False
    if on_empty == "error":
        raise ValueError(
            f"snow and cloud cover at least {share.min():.0%} of each of the {len(share)} "
            f"acquisitions, none less than {max_cover:.0%}: use s2_preproc.on_empty=clearest"
        )
    return share == share.min(), True


def monthly_means(
    frames: NDArray[np.uint16], dates: Dates
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the mean frame of each calendar month that has one.

    Sums of uint16 are exact in float32 up to 256 frames (2^24), so that a mean is off by one
    rounding at most; longer months are summed in float64.

    Args:
        frames: (T, bands, H, W), sorted by calendar month.
        dates: (T,) their dates.

    Returns:
        (M, bands, H, W) float32 means in the order of the months, and (M,) days from the 15th of
        each month to 15 May.

    Raises:
        ValueError: The frames are not sorted by calendar month.
    """
    months = _months(dates)
    if np.any(np.diff(months) < 0):
        raise ValueError("frames must be sorted by calendar month")
    present, starts, counts = np.unique(months, return_index=True, return_counts=True)
    means = np.empty((len(present), *frames.shape[1:]), dtype=np.float32)
    for mean, start, count in zip(means, starts.tolist(), counts.tolist(), strict=True):
        exact = np.float32 if count <= 256 else np.float64
        total = np.add.reduce(frames[start : start + count], axis=0, dtype=exact)
        np.divide(total, count, out=mean, casting="same_kind")
    return means, day_offsets(_day_of_2021(present, 14))


def preprocess(
    data: NDArray[np.uint16],
    probabilities: NDArray[np.uint8] | None,
    dates: Dates,
    window: Window,
    options: S2PreprocConfig,
) -> Series:
    """Make a super-patch's series from its area's arrays.

    The probabilities are looked at first, so that of memory-mapped `data` only the crop of the
    acquisitions that are kept is read.

    Args:
        data: (T, 10, H, W) the area's reflectances × 10,000.
        probabilities: (T, 2, H, W) snow and cloud; None only where nothing is filtered.
        dates: (T,) of the acquisitions, in the arrays' order.
        window: Rows and columns of the super-patch, from `crop_window`.
        options: Filter and monthly means.

    Returns:
        The series by date (by calendar month for monthly means), unscaled.

    Raises:
        ValueError: Nothing is clear enough, and the options refuse that.
    """
    rows, columns = window
    order = np.argsort(_months(dates) if options.monthly else dates, kind="stable")
    covered = False
    if options.cloud_filter:
        assert probabilities is not None, "the filter needs snow and cloud"
        crop = np.ascontiguousarray(probabilities[:, :, rows, columns])
        share = covered_share(crop, options.threshold, options.cover)
        keep, covered = select(share, options.max_cover, options.on_empty)
        order = order[keep[order]]
    kept: NDArray[np.uint16] = data[:, :, rows, columns][order]
    if options.monthly:
        return Series(*monthly_means(kept, dates[order]), covered)
    return Series(kept, day_offsets(dates[order], options.days), covered)


def divisor(options: S2PreprocConfig) -> float:
    """Return what frames are divided by: 10,000, or the baseline's 65,535 or nothing."""
    if options.scale == "reflectance":
        return 10_000.0
    return 1.0 if options.monthly else 65_535.0
