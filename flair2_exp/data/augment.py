"""Augmentation of image, label, satellite series and satellite target as one joint transform.

Flips are torch's and quarter turns NumPy's, each in one go whatever the draw combines; the zoom is
torchvision's affine resampling about the centre. Image and series cover the same centre at their
own resolutions, so one transform moves a landmark to the same place in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from flair2_exp.config.data import AugConfig
from flair2_exp.data.readers import Image
from flair2_exp.data.source import Sample
from flair2_exp.registry import construct

AnyArray = TypeVar("AnyArray", bound=NDArray[Any])


@dataclass(frozen=True)
class Geometry:
    """One draw of the joint transform: flips first, then quarter turns, then the zoom."""

    vertical: bool = False
    horizontal: bool = False
    turns: int = 0
    """Quarter turns, counter-clockwise."""
    zoom: float = 1.0
    """Enlargement about the centre."""

    def apply(self, array: AnyArray, *, labels: bool = False) -> AnyArray:
        """Transform the last two axes, rows and columns, of a square array.

        Args:
            array: Of any type of the batches.
            labels: Whether the zoom takes the nearest value instead of a bilinear one.

        Returns:
            An array of the same shape and type: the given one where nothing changes.
        """
        half = self.turns % 4 in (2, 3)  # a half turn is both flips
        axes = [-2] * (self.vertical != half) + [-1] * (self.horizontal != half)
        moved = array
        if self.turns % 2:
            moved = _quarter_turn(array, axes)
        elif axes:
            moved = _flip(array, axes)
        return moved if self.zoom == 1 else _enlarge(moved, self.zoom, labels)


Moves = tuple[bool, bool, int]
"""Whether to flip vertically, horizontally, and by how many quarters to turn."""


def _no_moves(generator: np.random.Generator, options: AugConfig) -> Moves:
    return False, False, 0


def _flips(generator: np.random.Generator, options: AugConfig) -> Moves:
    """Draw as the baseline: each flip and a turn by 0 to 3 quarters, each with `probability`."""
    chances = generator.random(3) < options.probability
    return bool(chances[0]), bool(chances[1]), int(generator.integers(4)) if chances[2] else 0


def _d4(generator: np.random.Generator, options: AugConfig) -> Moves:
    """Draw one of the square's eight symmetries, uniformly."""
    return False, bool(generator.integers(2)), int(generator.integers(4))


GEOMETRIES: Final[dict[str, Callable[[np.random.Generator, AugConfig], Moves]]] = {
    "none": _no_moves,
    "flips": _flips,
    "d4": _d4,
}
"""The words of `aug.geometry`."""


def draw_geometry(generator: np.random.Generator, options: AugConfig) -> Geometry:
    """Draw a transform.

    Args:
        generator: The sample's own random numbers.
        options: Which moves to draw from, and how far to zoom.
    """
    moves = GEOMETRIES[options.geometry](generator, options)
    zoom = 1 + options.zoom * float(generator.random()) if options.zoom else 1.0
    return Geometry(*moves, zoom)


class SampleTransform:
    """What every augmentation is: it makes a new sample of one that was read.

    It is made once and called in every process that reads; a sample comes out the same in whichever
    of them, since all that is drawn comes from the generator given.
    """

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Return a new sample, which may share arrays with the given one.

        Args:
            sample: What was read; its arrays are not to be changed.
            generator: The sample's own random numbers, which depend on the run's seed, the epoch
                and the patch alone.
        """
        raise NotImplementedError


class Augmentation(SampleTransform):
    """The joint transform of image, label and series.

    Args:
        options: What to do. With `satellite=False` the geometry leaves series and satellite target
            as they are (the baseline's quirk `aug.satellite`).
        optical: For each band of the image whether it is a brightness; elevation is none and keeps
            its values.
    """

    def __init__(self, options: AugConfig, optical: tuple[bool, ...]) -> None:
        self.options = options
        self.optical = optical

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Return the sample augmented, which may share arrays with the given one."""
        options = self.options
        geometry = draw_geometry(generator, options)
        result = dataclasses.replace(sample, label=geometry.apply(sample.label, labels=True))
        if sample.image is not None:
            image = geometry.apply(sample.image)
            result.image = change_photometry(image, generator, options, self.optical)
        frames, days = sample.frames, sample.days
        if frames is not None and days is not None:
            if options.satellite:
                frames = geometry.apply(frames)
            else:
                result.satellite_label = sample.label
            if options.drop_dates:
                stay = draw_dates(len(days), generator, options.drop_dates)
                frames, days = frames[stay], days[stay]
            result.frames, result.days = frames, days
        return result


def build_augmentation(options: AugConfig, bands: Sequence[str]) -> SampleTransform:
    """Build the augmentation that a config names.

    Its constructor is given, by the names of its arguments, `options` (the `AugConfig`) and
    `optical` (for each band whether it is a brightness); its other arguments are `aug.options`.

    Raises:
        ConfigError: There is no such class, or it does not take its options.
    """
    optical = tuple(band != "elevation" for band in bands)
    return construct(
        SampleTransform,
        options._target_,
        "aug.options",
        given={"options": options, "optical": optical},
        options=options.options,
        target="aug._target_",
    )


def change_photometry(
    image: Image,
    generator: np.random.Generator,
    options: AugConfig,
    optical: tuple[bool, ...],
) -> Image:
    """Change brightness, contrast and gamma of the optical bands alike, then add noise to each.

    The three are one table of 256 values: contrast turns about mid-grey, so that it does not
    depend on the patch. torchvision's functions of these names want one or three bands.

    Args:
        image: (C, H, W).
        generator: The sample's own random numbers.
        options: The largest changes; all zero leaves the image as it is.
        optical: (C,) which bands are brightnesses.

    Returns:
        (C, H, W) uint8; a copy where anything changes.
    """
    bands = [band for band, is_optical in enumerate(optical) if is_optical]
    limits = (options.brightness, options.contrast, options.gamma)
    if not bands or not any((*limits, options.noise)):
        return image
    image = image.copy()
    if any(limits):
        brightness, contrast, gamma = 1 + np.array(limits) * generator.uniform(-1, 1, 3)
        grey = np.linspace(0, 1, 256) ** gamma * brightness
        grey = (grey - 0.5) * contrast + 0.5
        table = np.rint(grey.clip(0, 1) * 255).astype(np.uint8)
        for band in bands:
            image[band] = table[image[band]]
    if options.noise:
        spread = np.float32(255 * options.noise)
        for band in bands:
            noise = generator.standard_normal(image[band].shape, dtype=np.float32) * spread
            image[band] = np.rint(np.clip(image[band] + noise, 0, 255)).astype(np.uint8)
    return image


def draw_dates(count: int, generator: np.random.Generator, rate: float) -> NDArray[np.int64]:
    """Draw which of `count` frames stay, each leaving with probability `rate`; one always stays."""
    stay = np.flatnonzero(generator.random(count) >= rate)
    return stay if len(stay) else generator.integers(count, size=1)


def _flip(array: AnyArray, axes: list[int]) -> AnyArray:
    """Reverse some of the last two axes, in one go."""
    # The same bits by another name: torch 2.11 does not flip uint16.
    wide = array.dtype == np.uint16
    flipped = torch.from_numpy(array.view(np.int16) if wide else array).flip(axes).numpy()
    return flipped.view(np.uint16) if wide else flipped  # type: ignore[return-value]


_STRIP: Final = 32
"""Rows that a quarter turn reads at once. It reads them crosswise, and comes back to the same lines
of memory for each of their next columns: of so few rows the processor's cache still has them, which
takes a third of the time of a copy in one go for a patch of 512 pixels."""


def _quarter_turn(array: AnyArray, axes: list[int]) -> AnyArray:
    """Reverse some of the last two axes, then turn them by a quarter, counter-clockwise."""
    # A view, whose columns are the array's rows.
    turned = np.rot90(np.flip(array, tuple(axes)), axes=(-2, -1))
    moved = np.empty(turned.shape, dtype=array.dtype)
    for start in range(0, turned.shape[-1], _STRIP):
        columns = np.s_[..., start : start + _STRIP]
        moved[columns] = turned[columns]
    return moved  # type: ignore[return-value]


def _enlarge(array: AnyArray, factor: float, labels: bool) -> AnyArray:
    """Resample about the centre, size kept; unsigned integers are rounded."""
    flat = np.ascontiguousarray(array).reshape(-1, 1, *array.shape[-2:])
    mode = InterpolationMode.NEAREST if labels else InterpolationMode.BILINEAR
    # float32 holds every uint8 and uint16, and torch does not resample uint16.
    enlarged = functional.affine(
        torch.from_numpy(flat.astype(np.float32)),
        angle=0.0,
        translate=[0.0, 0.0],
        scale=factor,
        shear=[0.0, 0.0],
        interpolation=mode,
    ).numpy()
    if array.dtype.kind == "u":
        enlarged = np.rint(enlarged).astype(array.dtype)
    result: AnyArray = enlarged.reshape(array.shape)
    return result
