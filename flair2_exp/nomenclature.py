"""Nomenclatures: the classes of a data set with names and colours, and which of them are scored.

Those of FLAIR #2 stand here. Its masks hold the values 1..19; the published code trains 13 classes:
1..12 as they are, with 13..19 merged into "other". Class indices count from 0: index = value - 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self


@dataclass(frozen=True)
class LandCover:
    """One class: its value in the masks, its name and its colour (#rrggbb)."""

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
"""FLAIR #2's score is the mean IoU of the first twelve classes; "other" and what it merges never
count."""

MOST_CLASSES: Final = 181
"""A confusion matrix counts pairs of classes in 16 bits (`score.confusion_matrix`)."""

OTHER: Final = "other"
"""The name of pixels that are nothing in particular. `loss.class_weights.other` weighs them, and is
idle where a data set has no class of that name."""


@dataclass(frozen=True)
class Nomenclature:
    """The classes of a data set, by index: first those that are scored, then those that are not.

    Raises:
        ValueError: Fewer than 2 or more than 181 classes, none that is scored, two of one name or
            value, or a colour that is not `#rrggbb`; the message is a sentence.
    """

    classes: tuple[LandCover, ...]
    scored: int
    """How many of them are scored: the first ones."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= MOST_CLASSES:
            raise ValueError(f"{len(self.classes)} classes: expected 2 to {MOST_CLASSES}.")
        if not 1 <= self.scored <= len(self.classes):
            raise ValueError(
                f"{self.scored} of {len(self.classes)} classes are scored: expected 1 or more."
            )
        for what, values in (
            ("name", self.names),
            ("value", [each.value for each in self.classes]),
        ):
            twice = [each for each in values if list(values).count(each) > 1]
            if twice:
                raise ValueError(f"two classes have the {what} {twice[0]!r}: each needs its own.")
        for each in self.classes:
            if not each.name.strip():
                raise ValueError(f"the class of value {each.value} has no name.")
            if not re.fullmatch("#[0-9a-fA-F]{6}", each.colour):
                raise ValueError(
                    f"class {each.name!r}: colour {each.colour!r}; expected #rrggbb, as #db0e9a."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names."""
        return tuple(each.name for each in self.classes)

    @property
    def has_other(self) -> bool:
        """Whether the last class is not scored, so that `metric.other_pixels` can drop it."""
        return self.scored < len(self.classes)

    def plain(self) -> dict[str, Any]:
        """Return the nomenclature as numbers, strings, lists and dictionaries of them."""
        return {"classes": [asdict(each) for each in self.classes], "scored": self.scored}

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return the nomenclature that `plain` gave."""
        return cls(tuple(LandCover(**each) for each in values["classes"]), values["scored"])

    @classmethod
    def of_names(cls, names: Sequence[str]) -> Self:
        """Return that of a run that recorded the names alone, as runs on FLAIR #2 once did."""
        colours = {each.name: each.colour for each in CLASSES_19}
        classes = (
            LandCover(value, name, colours.get(name, "#888888"))
            for value, name in enumerate(names, start=1)
        )
        return cls(tuple(classes), min(SCORED, len(names)))


FLAIR_13: Final = Nomenclature(CLASSES_13, SCORED)
FLAIR_19: Final = Nomenclature(CLASSES_19, SCORED)

SATELLITE_BANDS: Final[tuple[str, ...]] = (
    "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12",
)  # fmt: skip
"""The ten Sentinel-2 bands of a series, in the order of the arrays."""

METADATA_VALUES: Final[int] = 45
"""Length of a patch's encoded metadata."""

AERIAL_BANDS: Final[tuple[str, ...]] = ("red", "green", "blue", "nir", "elevation")
"""The five bands of an aerial patch, in the order of the files."""


def flair(count: int) -> Nomenclature:
    """Return the 13-class or the 19-class nomenclature of FLAIR #2.

    Args:
        count: 13 (the published code's) or 19 (every value of the masks by itself).

    Raises:
        ValueError: `count` is neither.
    """
    if count == 13:
        return FLAIR_13
    if count == 19:
        return FLAIR_19
    raise ValueError(f"FLAIR #2 has nomenclatures of 13 and 19 classes, not of {count}")
