"""Tiles cover a raster, and their weights add up to one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair2_exp.errors import UsageError
from flair2_exp.inference.tiling import ONE, Axis, Join, default_overlap, mirrored, units


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    patch = draw(st.integers(1, 40))
    overlap = draw(st.integers(0, patch // 2))
    join: Join = draw(st.sampled_from(("blend", "crop")))
    return Axis(draw(st.integers(1, 300)), patch, overlap, join)


@given(axes())
def test_the_weights_of_every_pixel_sum_to_one(axis: Axis) -> None:
    sums = np.zeros(axis.size, np.int64)
    for tile in range(axis.count):
        weights = axis.weights(tile)
        assert (weights >= 0).all()
        inside = axis.inside(tile)
        assert 0 <= inside.start < inside.stop <= axis.patch
        sums[axis.begin(tile) : axis.end(tile)] += weights
        assert np.array_equal(
            axis.pixels(tile)[inside], np.arange(axis.begin(tile), axis.end(tile))
        )
    assert (sums == ONE).all()
    begins = [axis.begin(tile) for tile in range(axis.count + 1)]
    assert begins == sorted({*begins})
    assert (begins[0], begins[-1]) == (0, axis.size)


@given(axes().filter(lambda axis: axis.join == "crop"))
def test_a_cropped_pixel_is_of_the_tile_whose_centre_is_nearest(axis: Axis) -> None:
    centres = np.array([t * axis.stride + axis.patch / 2 for t in range(axis.count)])
    for tile in range(axis.count):
        for pixel in (axis.begin(tile), axis.end(tile) - 1):
            distances = np.abs(centres - pixel - 0.5)
            assert distances[tile] <= distances.min() + 1


@given(st.integers(1, 30), st.integers(0, 90))
def test_pixels_beyond_the_end_are_mirrored_as_numpy_does(size: int, beyond: int) -> None:
    values = np.arange(size)
    reference = np.pad(values, (0, beyond), mode="reflect" if size > 1 else "edge")
    assert np.array_equal(mirrored(np.arange(size + beyond), size), reference)


@given(axes(), axes(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_units_hold_every_tile_once(rows: Axis, columns: Axis, size: tuple[int, int]) -> None:
    tiles = [(r, c) for unit in units(rows, columns, size) for r in unit.rows for c in unit.columns]
    assert len(tiles) == len({*tiles}) == rows.count * columns.count


def test_exact_sums_fit_into_a_double() -> None:
    from flair2_exp.inference.joining import STEPS

    assert ONE * ONE * STEPS < 2**53


@pytest.mark.parametrize("overlap", [-1, 33])
def test_an_overlap_of_more_than_half_a_patch_is_refused(overlap: int) -> None:
    with pytest.raises(UsageError, match=f"overlap {overlap}: expected 0 to 32 pixels"):
        Axis(100, 64, overlap)


def test_the_default_overlap_is_an_eighth_and_even() -> None:
    assert [default_overlap(patch) for patch in (512, 128, 64, 20, 4)] == [64, 16, 8, 2, 0]
