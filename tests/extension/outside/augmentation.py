"""An augmentation, written from the page "Choosing a recipe" alone."""

import dataclasses

import numpy as np

from flair2_exp.data.augment import Augmentation
from flair2_exp.data.source import Sample


class Shift(Augmentation):
    """Ours, then all bands brighter or darker by some steps."""

    steps: int = 3

    def __init__(self, options, optical, steps: int = 3) -> None:  # noqa: ANN001
        super().__init__(options, optical)
        self.steps = steps

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        sample = super().__call__(sample, generator)
        step = generator.integers(-self.steps, self.steps + 1)
        image = np.clip(sample.image.astype(np.int16) + step, 0, 255).astype(np.uint8)
        return dataclasses.replace(sample, image=image)
