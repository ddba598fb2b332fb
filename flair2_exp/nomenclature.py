"""The classes of FLAIR #2: their values in the masks, names and colours, and the scored subset.

Masks hold the values 1..19. The published code trains 13 classes: 1..12 as they are, with 13..19
merged into "other". Class indices count from 0: index = value - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class LandCover:
    """One land-cover class: its value in the masks (1..19), its name and its colour (#rrggbb)."""

    value: int
    name: str
    colour: str


CLASSES_19: Final[tuple[LandCover, ...]] = (
    LandCover(1, "building", "#db0e9a"),
    LandCover(2, "pervious surface", "#938e7b"),
    LandCover(3, "impervious surface", "#f80c00"),
    LandCover(4, "bare soil", "#a97101"),
    LandCover(5, "water", "#1553ae"),
    LandCover(6, "coniferous", "#194a26"),
    LandCover(7, "deciduous", "#46e483"),
    LandCover(8, "brushwood", "#f3a60d"),
    LandCover(9, "vineyard", "#660082"),
    LandCover(10, "herbaceous vegetation", "#55ff00"),
    LandCover(11, "agricultural land", "#fff30d"),
    LandCover(12, "plowed land", "#e4df7c"),
    LandCover(13, "swimming pool", "#3de6eb"),
    LandCover(14, "snow", "#ffffff"),
    LandCover(15, "clear cut", "#8ab3a0"),
    LandCover(16, "mixed", "#6b714f"),
    LandCover(17, "ligneous", "#c5dc42"),
    LandCover(18, "greenhouse", "#9999ff"),
    LandCover(19, "other", "#000000"),
)
"""All classes of the masks, by value."""

CLASSES_13: Final[tuple[LandCover, ...]] = (
    *CLASSES_19[:12],
    LandCover(13, "other", "#000000"),
)
"""The published code's classes: the first twelve, and "other" for 13..19."""

SCORED: Final[int] = 12
"""The score is the mean IoU of the first twelve classes; "other" and what it merges never count."""

SATELLITE_BANDS: Final[tuple[str, ...]] = (
    "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12",
)  # fmt: skip
"""The ten Sentinel-2 bands of a series, in the order of the arrays."""

METADATA_VALUES: Final[int] = 45
"""Length of a patch's encoded metadata."""

AERIAL_BANDS: Final[tuple[str, ...]] = ("red", "green", "blue", "nir", "elevation")
"""The five bands of an aerial patch, in the order of the files."""


def classes(count: int) -> tuple[LandCover, ...]:
    """Return the classes of the 13-class or of the 19-class nomenclature.

    Args:
        count: 13 (the published code's) or 19 (every value of the masks by itself).

    Raises:
        ValueError: `count` is neither.
    """
    if count == 13:
        return CLASSES_13
    if count == 19:
        return CLASSES_19
    raise ValueError(f"there are nomenclatures of 13 and 19 classes, not of {count}")
