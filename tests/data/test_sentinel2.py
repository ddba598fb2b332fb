"""Preprocessing of the series against the golden vectors, a plain loop, and at every edge."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flair2_exp.config.data import S2PreprocConfig
from flair2_exp.data import sentinel2
from tests.golden_vectors import golden


def product(day: str) -> str:
    return f"S2A_MSIL2A_{day}T104431_N0211_R008_T32UMD_{day}T115449"


def dates(*days: str) -> sentinel2.Dates:
    return sentinel2.acquisition_dates([product(day) for day in days])


WHOLE = (slice(0, 4), slice(0, 4))


def flat_frames(values: Iterable[int]) -> NDArray[np.uint16]:
    """(T, 10, 4, 4) frames of one value each."""
    return np.array([np.full((10, 4, 4), value) for value in values], dtype=np.uint16)


def reference(**options: bool) -> S2PreprocConfig:
    baseline = S2PreprocConfig(cover="sum", scale="reference", days="reference")
    return dataclasses.replace(baseline, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def area() -> dict[str, Any]:
    vectors = golden("s2_preproc")
    arrays: dict[str, Any] = {name: vectors[name] for name in vectors.files}
    arrays["dates"] = sentinel2.acquisition_dates(str(arrays["products"]).splitlines())
    shape = arrays["data"].shape[2:]
    size = arrays["crop_data"].shape[-1]
    arrays["window"] = sentinel2.crop_window(arrays["centroid"].tolist(), size, shape)
    return arrays


def prepared(area: dict[str, Any], **options: bool) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Series and days in the baseline's way."""
    chosen = reference(**options)
    series = sentinel2.preprocess(
        area["data"], area["masks"], area["dates"], area["window"], chosen
    )
    return series.frames.astype(np.float32) / sentinel2.divisor(chosen), series.days


def test_crop_agrees_with_the_baseline(area: dict[str, Any]) -> None:
    rows, columns = area["window"]
    assert np.array_equal(area["data"][:, :, rows, columns], area["crop_data"])
    assert np.array_equal(area["masks"][:, :, rows, columns], area["crop_masks"])


def test_filter_keeps_the_acquisitions_that_the_baseline_keeps(area: dict[str, Any]) -> None:
    share = sentinel2.covered_share(area["crop_masks"], 60, "sum")
    keep, covered = sentinel2.select(share, 0.5, "error")
    assert np.flatnonzero(keep).tolist() == area["keep"].tolist()
    assert not covered


@pytest.mark.parametrize(("name", "keeps"), [("raw", False), ("cloudfree", True)])
def test_series_agree_with_the_baseline(area: dict[str, Any], name: str, keeps: bool) -> None:
    frames, days = prepared(area, cloud_filter=keeps)
    assert days.tolist() == area[f"{name}_dates"].tolist()
    means = frames.mean(axis=(2, 3), dtype=np.float64)
    np.testing.assert_allclose(means, area[f"{name}_out_mean"], rtol=1e-6)


@pytest.mark.parametrize(("name", "keeps"), [("monthly", False), ("monthly_cloudfree", True)])
def test_monthly_means_agree_with_the_baseline(
    area: dict[str, Any], name: str, keeps: bool
) -> None:
    frames, days = prepared(area, cloud_filter=keeps, monthly=True)
    assert days.tolist() == area[f"{name}_dates"].tolist()
    np.testing.assert_allclose(frames, area[f"{name}_out"], rtol=1e-6)
    assert frames.dtype == np.float32


def test_raw_day_offsets_agree_with_the_baseline(area: dict[str, Any]) -> None:
    offsets = sentinel2.day_offsets(area["dates"], "reference")
    assert offsets.tolist() == area["raw_days"].tolist()


# The quirks, each in both settings.


def test_cover_sum_counts_a_pixel_twice_that_is_snow_and_cloud() -> None:
    masks = np.zeros((1, 2, 10, 10), dtype=np.uint8)
    masks[0, :, :3] = 80  # 30 of 100 pixels are both
    assert sentinel2.covered_share(masks, 60, "union").tolist() == [0.3]
    assert sentinel2.covered_share(masks, 60, "sum").tolist() == [0.6]
    assert sentinel2.select(np.array([0.3]), 0.5, "error")[0].tolist() == [True]
    assert sentinel2.select(np.array([0.6]), 0.5, "clearest")[1]


def test_a_pixel_counts_from_the_threshold_on_and_half_covered_is_too_much() -> None:
    masks = np.zeros((2, 2, 10, 10), dtype=np.uint8)
    masks[0, 0, :5], masks[1, 1, :5] = 60, 59
    share = sentinel2.covered_share(masks, 60)
    assert share.tolist() == [0.5, 0.0]
    assert sentinel2.select(share, 0.5, "error")[0].tolist() == [False, True]


@pytest.mark.parametrize(
    ("monthly", "scale", "expected"),
    [
        (False, "reference", 65_535),
        (True, "reference", 1),
        (False, "reflectance", 10_000),
        (True, "reflectance", 10_000),
    ],
)
def test_scale_of_the_baseline_changes_with_monthly_means(
    monthly: bool, scale: Literal["reference", "reflectance"], expected: float
) -> None:
    assert sentinel2.divisor(S2PreprocConfig(monthly=monthly, scale=scale)) == expected


def test_leap_years_count_their_own_days_or_are_read_as_common_years() -> None:
    days = dates("20200228", "20200229", "20200301", "20201231", "20190301")
    assert sentinel2.day_offsets(days, "day_of_year").tolist() == [76, 75, 74, -231, 75]
    assert sentinel2.day_offsets(days, "reference").tolist() == [76, 76, 75, -230, 75]


@given(st.dates(datetime.date(2015, 1, 1), datetime.date(2030, 12, 31)))
def test_day_offsets_agree_with_the_calendar(day: datetime.date) -> None:
    given_date = np.array([day], dtype="datetime64[D]")
    (offset,) = sentinel2.day_offsets(given_date, "day_of_year")
    assert offset == 135 - day.timetuple().tm_yday
    (offset,) = sentinel2.day_offsets(given_date, "reference")
    if (day.month, day.day) != (2, 29):
        assert offset == (datetime.date(2021, 5, 15) - day.replace(year=2021)).days


# Edges.


def mean_by_hand(
    data: NDArray[np.uint16], masks: NDArray[np.uint8], days: sentinel2.Dates, cover: str
) -> dict[int, NDArray[np.float64]]:
    """Monthly cloud-free means in plain loops, by month."""
    months: dict[int, list[NDArray[np.uint16]]] = {}
    for frame, (snow, cloud), day in zip(data, masks, days.tolist(), strict=True):
        both = sum(s >= 60 and c >= 60 for s, c in zip(snow.flat, cloud.flat, strict=True))
        either = sum(s >= 60 or c >= 60 for s, c in zip(snow.flat, cloud.flat, strict=True))
        if (either + (both if cover == "sum" else 0)) / snow.size < 0.5:
            months.setdefault(day.month, []).append(frame)
    return {m: np.mean(np.array(f, dtype=np.float64), axis=0) for m, f in sorted(months.items())}


@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from(["union", "sum"]))
def test_monthly_cloudfree_agrees_with_plain_loops(
    seed: int, count: int, cover: Literal["union", "sum"]
) -> None:
    random = np.random.default_rng(seed)
    data = random.integers(0, 65_536, (count, 10, 6, 6)).astype(np.uint16)
    masks = random.integers(0, 101, (count, 2, 6, 6)).astype(np.uint8)
    masks[:, :, random.random((6, 6)) < random.random()] = 0
    days = np.datetime64("2021-01-01") + random.integers(0, 365, count)
    expected = mean_by_hand(data[:, :, 1:5, 2:6], masks[:, :, 1:5, 2:6], days, cover)
    options = S2PreprocConfig(cloud_filter=True, monthly=True, cover=cover)
    window = (slice(1, 5), slice(2, 6))
    series = sentinel2.preprocess(data, masks, days, window, options)
    assert series.covered == (not expected)
    if expected:
        np.testing.assert_allclose(series.frames, np.stack(list(expected.values())), rtol=1e-6)
        middles = [datetime.date(2021, month, 15) for month in expected]
        assert series.days.tolist() == [(datetime.date(2021, 5, 15) - m).days for m in middles]


@pytest.mark.parametrize(
    ("days", "by_date", "means"),
    [
        (["20210612", "20210103", "20210930", "20210104"], [2, 4, 1, 3], [3, 1, 3]),
        (["20210301", "20210101", "20210301"], [2, 1, 3], [2, 2]),  # of one day: the file's order
        (["20201220", "20210105", "20211220"], [1, 2, 3], [2, 2]),  # over two years
    ],
)
def test_products_in_any_order_give_the_series_by_date_and_its_means_by_month(
    days: list[str], by_date: list[int], means: list[float]
) -> None:
    data = flat_frames(range(1, 1 + len(days)))
    series = sentinel2.preprocess(data, None, dates(*days), WHOLE, S2PreprocConfig())
    assert series.frames[:, 0, 0, 0].tolist() == by_date
    options = S2PreprocConfig(monthly=True)
    monthly = sentinel2.preprocess(data, None, dates(*days), WHOLE, options)
    assert monthly.frames[:, 0, 0, 0].tolist() == means
    if len(days) == 4:
        assert series.days.tolist() == [132, 131, -28, -138]
        assert monthly.days.tolist() == [120, -31, -123]


def test_a_single_acquisition_is_a_series_and_its_own_mean() -> None:
    data = np.full((1, 10, 4, 4), 1234, dtype=np.uint16)
    masks = np.zeros((1, 2, 4, 4), dtype=np.uint8)
    options = S2PreprocConfig(cloud_filter=True, monthly=True)
    series = sentinel2.preprocess(data, masks, dates("20200229"), WHOLE, options)
    assert series.frames.shape == (1, 10, 4, 4)
    assert (series.frames == 1234).all()
    assert series.days.tolist() == [89]


def test_a_wholly_covered_series_keeps_its_clearest_acquisitions_or_is_refused() -> None:
    data = flat_frames(range(3))
    masks = np.zeros((3, 2, 4, 4), dtype=np.uint8)
    masks[0, 1] = 99
    masks[1:, 1, :3] = 99
    days = dates("20210101", "20210201", "20210301")
    options = S2PreprocConfig(cloud_filter=True)
    series = sentinel2.preprocess(data, masks, days, WHOLE, options)
    assert series.covered
    assert series.frames[:, 0, 0, 0].tolist() == [1, 2]
    strict = S2PreprocConfig(cloud_filter=True, on_empty="error")
    with pytest.raises(ValueError, match=r"at least 75% of each of the 3 .*=clearest"):
        sentinel2.preprocess(data, masks, days, WHOLE, strict)


def test_a_crop_may_touch_the_border_and_not_leave_the_area() -> None:
    assert sentinel2.crop_window((4, 12), 8, (20, 16)) == (slice(0, 8), slice(8, 16))
    for centroid in ((3, 8), (8, 3), (17, 8), (8, 13)):
        with pytest.raises(ValueError, match=r"a crop of 8 pixels .* leaves the area's 20 x 16"):
            sentinel2.crop_window(centroid, 8, (20, 16))


@pytest.mark.parametrize("name", ["", "S2A_MSIL2A_", product("2021012"), product("20210230")])
def test_a_product_without_a_date_is_refused(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (numpy words the impossible date)
        sentinel2.acquisition_dates([product("20210101"), name])


def test_means_are_exact_beyond_what_float32_sums_exactly() -> None:
    frames = np.full((300, 1, 2, 2), 65_535, dtype=np.uint16)
    frames[0] = 65_534
    means, days = sentinel2.monthly_means(frames, np.full(300, np.datetime64("2021-07-01")))
    assert days.tolist() == [-61]  # from 15 July
    assert (means == np.float32(np.float64(65_535 * 300 - 1) / 300)).all()


def test_means_of_unsorted_months_are_refused() -> None:
    with pytest.raises(ValueError, match="sorted by calendar month"):
        sentinel2.monthly_means(np.zeros((2, 1, 2, 2), np.uint16), dates("20210301", "20210201"))
