"""Augmentation as one joint transform: a landmark painted into every modality stays one place."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flair2_exp.config.data import AugConfig
from flair2_exp.config.fields import hints
from flair2_exp.data.augment import (
    GEOMETRIES,
    Augmentation,
    Geometry,
    Sample,
    build_augmentation,
    change_photometry,
    draw_geometry,
)
from flair2_exp.errors import ConfigError

PATCH, SUPER = 128, 40
OPTICAL = (True, True, True, True, False)


def painted(row: float, column: float) -> Sample:
    """A sample with a landmark, at a place in metres from the centre (down, right).

    A patch of 128 px covers 102.4 m, a super-patch of 40 px 400 m about the same centre.
    """

    def spot(size: int, metres: float, radius: float) -> NDArray[np.bool_]:
        places = (np.arange(size) - (size - 1) / 2) * metres
        return np.asarray(np.hypot(places[:, None] - row, places[None] - column) < radius)

    near, far = spot(PATCH, 0.8, 8), spot(SUPER, 10.0, 15)
    return Sample(
        label=np.where(near, 7, 2).astype(np.uint8),
        image=np.broadcast_to(np.where(near, 200, 20), (5, PATCH, PATCH)).astype(np.uint8),
        frames=np.broadcast_to(np.where(far, 9000, 100), (3, 10, SUPER, SUPER)).astype(np.uint16),
        days=np.array([3, 2, 1]),
    )


def centre(marked: NDArray[np.bool_], metres: float) -> NDArray[np.float64]:
    """Where the landmark is: its mean row and column, in metres from the array's centre."""
    offset = np.argwhere(marked).mean(axis=0) - (np.array(marked.shape) - 1) / 2
    return np.asarray(offset * metres, dtype=np.float64)


def places(sample: Sample) -> dict[str, NDArray[np.float64]]:
    assert sample.image is not None
    assert sample.frames is not None
    target = sample.label if sample.satellite_label is None else sample.satellite_label
    return {
        "image": centre(sample.image[0] > 110, 0.8),
        "label": centre(sample.label == 7, 0.8),
        "series": centre(sample.frames[1, 4] > 4500, 10.0),
        "satellite_label": centre(target == 7, 0.8),
    }


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("geometry", ["flips", "d4"])
@given(seed=st.integers(0, 2**32))
def test_a_landmark_moves_to_the_same_place_in_every_modality(
    geometry: Literal["flips", "d4"], seed: int
) -> None:
    options = AugConfig(geometry=geometry, probability=0.7)
    after = places(Augmentation(options, OPTICAL)(painted(20.0, -35.0), generator(seed)))
    for name, place in after.items():
        # The series' pixels are 10 m wide.
        np.testing.assert_allclose(place, after["image"], atol=5 if name == "series" else 0.5)


@given(seed=st.integers(0, 2**32))
def test_a_landmark_is_enlarged_to_the_same_place_in_every_modality(seed: int) -> None:
    options = AugConfig(geometry="d4", zoom=0.25)
    before = painted(20.0, -30.0)
    drawn = draw_geometry(generator(seed), options)
    after = places(Augmentation(options, OPTICAL)(before, generator(seed)))
    expected = np.hypot(20, 30) * drawn.zoom
    for name, place in after.items():
        assert np.hypot(*place) == pytest.approx(expected, abs=5 if name == "series" else 0.8)
        np.testing.assert_allclose(place, after["image"], atol=5 if name == "series" else 0.8)


@given(seed=st.integers(0, 2**32))
def test_without_satellite_the_series_and_its_target_stay_where_they_are(seed: int) -> None:
    options = AugConfig(geometry="d4", satellite=False, zoom=0.2)
    before = painted(20.0, -30.0)
    after = Augmentation(options, OPTICAL)(before, generator(seed))
    assert np.array_equal(after.frames, before.frames)  # type: ignore[arg-type]
    assert after.satellite_label is before.label
    followed = Augmentation(AugConfig(geometry="d4", zoom=0.2), OPTICAL)(before, generator(seed))
    assert followed.satellite_label is None
    assert np.array_equal(followed.label, after.label)
    assert followed.image is not None
    assert after.image is not None
    assert np.array_equal(followed.image, after.image)


def test_without_satellite_the_landmark_of_the_image_leaves_that_of_the_series() -> None:
    options = AugConfig(geometry="flips", probability=1.0, satellite=False)
    distances = []
    for seed in range(8):
        after = places(Augmentation(options, OPTICAL)(painted(20.0, -35.0), generator(seed)))
        assert np.allclose(after["image"], after["label"], atol=0.5)
        distances.append(np.hypot(*(after["image"] - after["series"])))
    assert max(distances) > 50


def symmetries(array: NDArray[Any]) -> list[bytes]:
    """The eight symmetries of a square, by numpy's own names."""
    turned = [np.rot90(array, turns) for turns in range(4)]
    return [one.tobytes() for one in (*turned, *(np.fliplr(other) for other in turned))]


@given(
    vertical=st.booleans(),
    horizontal=st.booleans(),
    turns=st.integers(0, 3),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
)
def test_a_symmetry_is_flips_first_then_quarter_turns(
    vertical: bool, horizontal: bool, turns: int, dtype: str
) -> None:
    array = generator(3).integers(0, 65_536, (2, 6, 6)).astype(dtype)
    flipped = np.flip(array, 1) if vertical else array
    flipped = np.flip(flipped, 2) if horizontal else flipped
    moved = Geometry(vertical, horizontal, turns).apply(array)
    assert moved.dtype == array.dtype
    assert np.array_equal(moved, np.rot90(flipped, turns, axes=(1, 2)))


def drawn_symmetries(options: AugConfig, count: int) -> NDArray[np.float64]:
    array = np.arange(9, dtype=np.uint8).reshape(3, 3)
    all_of_them = symmetries(array)
    counts = np.zeros(8)
    for seed in range(count):
        moved = draw_geometry(generator(seed), options).apply(array)
        counts[all_of_them.index(np.ascontiguousarray(moved).tobytes())] += 1
    return counts


def test_d4_draws_the_eight_symmetries_uniformly() -> None:
    counts = drawn_symmetries(AugConfig(geometry="d4"), 4000)
    # 500 each; five standard deviations of a binomial are 105.
    assert np.abs(counts - 500).max() < 105


def test_flips_draws_each_step_with_its_probability() -> None:
    drawn = [draw_geometry(generator(s), AugConfig(geometry="flips")) for s in range(4000)]
    assert sum(one.vertical for one in drawn) == pytest.approx(2000, abs=160)
    assert sum(one.horizontal for one in drawn) == pytest.approx(2000, abs=160)
    # Half are turned, by 0 to 3 quarters: an eighth by each of one, two and three.
    for turns in (1, 2, 3):
        assert sum(one.turns == turns for one in drawn) == pytest.approx(500, abs=105)
    never = AugConfig(geometry="flips", probability=0.0)
    assert draw_geometry(generator(0), never) == Geometry()


def test_a_whole_enlargement_repeats_labels_and_keeps_types() -> None:
    label = np.arange(16, dtype=np.uint8).reshape(4, 4)
    enlarged = Geometry(zoom=2.0).apply(label, labels=True)
    assert enlarged.tolist() == np.repeat(np.repeat(label[1:3, 1:3], 2, 0), 2, 1).tolist()
    frames = np.full((2, 10, 4, 4), 65_535, dtype=np.uint16)
    assert np.array_equal(Geometry(zoom=1.3).apply(frames), frames)
    means = np.full((2, 10, 4, 4), 0.125, dtype=np.float32)
    result = Geometry(zoom=1.3).apply(means)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, means)


def image(seed: int = 0) -> NDArray[np.uint8]:
    return generator(seed).integers(0, 256, (5, 32, 32)).astype(np.uint8)


@given(seed=st.integers(0, 2**32))
def test_photometry_changes_the_optical_bands_alike_and_never_the_elevation(seed: int) -> None:
    options = AugConfig(brightness=0.2, contrast=0.2, gamma=0.2)
    before = np.stack([image()[0]] * 5)
    after = change_photometry(before, generator(seed), options, OPTICAL)
    assert after.dtype == np.uint8
    assert np.array_equal(after[4], before[4])
    for band in range(1, 4):
        assert np.array_equal(after[band], after[0])
    order = np.argsort(before[0].ravel(), kind="stable")
    assert (np.diff(after[0].ravel()[order].astype(int)) >= 0).all()  # monotonous


def test_brightness_scales_within_its_limits_and_the_input_is_left_alone() -> None:
    before = np.full((5, 4, 4), 100, dtype=np.uint8)
    options = AugConfig(brightness=0.3)
    values = {
        int(change_photometry(before, generator(s), options, OPTICAL)[0, 0, 0]) for s in range(200)
    }
    assert 70 <= min(values) < 75
    assert 125 < max(values) <= 130
    assert (before == 100).all()


def test_noise_has_its_spread() -> None:
    before = np.full((5, 64, 64), 128, dtype=np.uint8)
    after = change_photometry(before, generator(1), AugConfig(noise=0.05), OPTICAL)
    difference = after.astype(float) - before
    assert np.std(difference[:4]) == pytest.approx(255 * 0.05, rel=0.03)
    assert abs(difference[:4].mean()) < 0.5
    assert not difference[4].any()
    assert not np.array_equal(difference[0], difference[1])


def test_no_photometry_gives_the_image_itself() -> None:
    one = image()
    assert change_photometry(one, generator(0), AugConfig(geometry="d4"), OPTICAL) is one
    bright = AugConfig(brightness=0.5)
    assert change_photometry(one, generator(0), bright, (False,) * 5) is one


@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_dates_leave_together_with_their_frames_and_one_always_stays(seed: int, count: int) -> None:
    frames = np.arange(count, dtype=np.uint16)[:, None, None, None] * np.ones(
        (1, 10, 4, 4), np.uint16
    )
    before = Sample(label=np.zeros((4, 4), np.uint8), frames=frames, days=np.arange(count))
    options = AugConfig(drop_dates=0.8)
    after = Augmentation(options, OPTICAL)(before, generator(seed))
    assert after.frames is not None
    assert after.days is not None
    assert 1 <= len(after.days) <= count
    assert after.frames[:, 0, 0, 0].tolist() == after.days.tolist()
    assert (np.diff(after.days) > 0).all()


def test_dates_leave_at_their_rate() -> None:
    days = np.arange(50)
    frames = np.zeros((50, 10, 2, 2), np.uint16)
    sample = Sample(label=np.zeros((2, 2), np.uint8), frames=frames, days=days)
    options = AugConfig(drop_dates=0.3)
    left = [len(Augmentation(options, OPTICAL)(sample, generator(s)).days) for s in range(100)]  # type: ignore[arg-type]
    assert np.mean(left) == pytest.approx(35, abs=1.7)  # five standard errors


@pytest.mark.parametrize(
    ("options", "active"),
    [
        (AugConfig(), False),
        (AugConfig(satellite=False), False),
        (AugConfig(geometry="flips"), True),
        (AugConfig(noise=0.1), True),
        (AugConfig(drop_dates=0.1), True),
    ],
)
def test_options_know_whether_they_change_anything(options: AugConfig, active: bool) -> None:
    assert options.active is active


def test_every_word_of_the_config_has_its_geometry() -> None:
    assert set(GEOMETRIES) == set(get_args(hints(AugConfig)["geometry"]))


class Inverted(Augmentation):
    """Ours, and then the optical bands inverted with a probability."""

    def __init__(self, options: AugConfig, optical: tuple[bool, ...], rate: float) -> None:
        super().__init__(options, optical)
        self.rate = rate

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        result = super().__call__(sample, generator)
        if result.image is not None and generator.random() < self.rate:
            keeps = ~np.array(self.optical)[:, None, None]
            result.image = np.where(keeps, result.image, 255 - result.image)
        return result


BANDS = ("red", "green", "blue", "nir", "elevation")


def test_an_augmentation_of_ones_own_extends_ours() -> None:
    options = AugConfig(geometry="d4", _target_=f"{__name__}.Inverted", options={"rate": 1})
    before = painted(20.0, -30.0)
    ours = Augmentation(options, OPTICAL)(before, generator(3)).image
    own = build_augmentation(options, BANDS)(before, generator(3)).image
    assert ours is not None
    assert own is not None
    assert np.array_equal(own[:4], 255 - ours[:4])
    assert np.array_equal(own[4], ours[4])
    assert AugConfig(_target_=f"{__name__}.Inverted").active


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("subprocess.Popen", {"args": "true"}, r"aug\._target_=\S+: not such a class"),
        ("flair2_exp.data.augment.Nope", {}, r"aug\._target_=\S+Nope: .* has no Nope"),
        (f"{__name__}.Inverted", {"rat": 1}, r"aug\.options\.rat: .*did you mean rate\?"),
    ],
)
def test_what_is_not_an_augmentation_or_not_its_option_is_refused(
    target: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_augmentation(AugConfig(_target_=target, options=options), BANDS)
