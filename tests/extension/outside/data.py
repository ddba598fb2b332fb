"""A data source, written from the page "Your own data" alone."""

import numpy as np

from flair2_exp.data.source import DataSource, Patches, Sample
from flair2_exp.nomenclature import LandCover, Nomenclature


class Stripes(DataSource):
    """Images of stripes: dark ones are of one class, bright ones of another, the rest of none."""

    patch_size = 32
    bands = ("red", "green", "blue", "thermal")
    nomenclature = Nomenclature(
        (
            LandCover(0, "dark", "#202060"),
            LandCover(1, "bright", "#e0e060"),
            LandCover(9, "unknown", "#000000"),
        ),
        scored=2,
    )

    def __init__(self, seed: int = 0, patches_per_area: int = 4) -> None:
        self.seed = seed
        parts = ["train"] * 3 + ["validation"] * 2 + ["test"] * 4
        names = [f"R{number}/A{number}" for number in range(len(parts))]
        area = np.repeat(np.arange(len(parts), dtype=np.int32), patches_per_area)
        self.index = Patches(
            ids=np.array([f"stripes_{number:03d}" for number in range(len(area))]),
            area_names=np.array(names),
            area=area,
            part=np.array(parts)[area],
        )

    def read(self, patch: int) -> Sample:
        generator = np.random.default_rng([self.seed, patch])
        size = self.patch_size
        label = np.repeat(generator.integers(0, 3, size // 4), 4)[:, None].repeat(size, 1)
        shades = np.array([60, 190, 125])[label]
        image = np.stack([shades + generator.normal(0, 30, label.shape) for _ in self.bands])
        return Sample(label=label.astype(np.uint8), image=np.clip(image, 0, 255).astype(np.uint8))
