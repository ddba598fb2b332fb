"""A data source of a user's own: written from the docstring of `DataSource`, and nothing else.

Three bands that no file holds, series, metadata, four classes of which three are scored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import DataGroups
from flair2_exp.data.source import DataSource, Patches, Sample
from flair2_exp.nomenclature import LandCover, Nomenclature


class MadeUp(DataSource):
    """Patches drawn from their number."""

    bands = ("green", "swir", "dem")
    has = frozenset({"aerial", "satellite", "metadata"})
    patch_size = 64
    image_type = np.dtype(np.float32)
    nomenclature = Nomenclature(
        (
            LandCover(0, "rock", "#888888"),
            LandCover(1, "ice", "#aaddff"),
            LandCover(2, "moss", "#227722"),
            LandCover(3, "unclear", "#000000"),
        ),
        scored=3,
    )

    def __init__(self, groups: DataGroups, areas: int = 6, seed: int = 0) -> None:
        self._super_patch = groups.s2_preproc.size
        self._seed = seed
        part = ["train"] * (areas - 4) + ["validation", "validation", "test", "test"]
        self.index = Patches(
            ids=np.array([f"p{number}" for number in range(2 * areas)]),
            area_names=np.array([f"island{area % 2}/bay{area}" for area in range(areas)]),
            area=np.repeat(np.arange(areas, dtype=np.int32), 2),
            part=np.repeat(part, 2),
        )

    def read(self, patch: int) -> Sample:
        random = np.random.default_rng([self._seed, patch])
        label = np.kron(random.integers(0, 4, (8, 8)), np.ones((8, 8), int)).astype(np.uint8)
        image = random.normal(label, 0.1, (3, 64, 64)).astype(np.float32)
        size = self._super_patch
        frames = random.integers(1, 9000, (3, 10, size, size)).astype(np.uint16)
        return Sample(label, image, frames, np.array([10, 120, 240]))

    def metadata(self, patches: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.repeat(patches[:, None] / 100, 45, axis=1).astype(np.float32)


class Shapeless(MadeUp):
    """One whose images are not what it says."""

    image_type = np.dtype(np.uint8)


class Nameless(DataSource):
    """One that forgets its classes."""

    bands = ("green",)

    def __init__(self) -> None:
        self.index = MadeUp(DataGroups()).index
        self.patch_size = 64

    def read(self, patch: int) -> Sample:
        raise NotImplementedError
