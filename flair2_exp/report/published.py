"""The published FLAIR #2 results, and when they may stand beside ours.

Source: the leaderboard and the earlier table of means of the FLAIR #2 baseline (flair2 §2). The
leaderboard figures replaced the means and are each higher; they read as best runs, the means as
what a reproduction should reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flair2_exp.report.runs import ScoredRun
from flair2_exp.tracking.tags import Tag

DATASET: Final[str] = "flair2"
TEST_PATCHES: Final[int] = 16_050
OTHER_PIXELS: Final[str] = "keep"
"""The published score counts predictions on pixels of "other" as false positives."""

PODIUM: Final[tuple[float, ...]] = (0.6413, 0.6355, 0.6351)
"""The challenge's first three, for scale: stronger encoders, AdamW, ensembles."""


@dataclass(frozen=True)
class Published:
    """One published row: a single figure (None where there is none), and mean ± deviation."""

    name: str
    best: float | None
    mean: float
    deviation: float


_UNET: Final = {"model.name": "unet"}
_UTT: Final = {"model.name": "utt"}
_MONTHS: Final = {"s2_preproc.cloud_filter": "true", "s2_preproc.monthly": "true"}
_RAW: Final = {"s2_preproc.cloud_filter": "false", "s2_preproc.monthly": "false"}
_PLAIN: Final = {"aug.geometry": "none", "metadata.enabled": "false"}
_FLIPS: Final = {"aug.geometry": "flips", "metadata.enabled": "false"}
_BOTH: Final = {"aug.geometry": "flips", "metadata.enabled": "true"}

_TABLE: Final[tuple[tuple[dict[str, str], Published], ...]] = (
    (_UNET | _PLAIN, Published("U-Net", 0.5470, 0.5467, 0.0009)),
    (_UNET | _BOTH, Published("U-Net + metadata + augmentation", 0.5593, 0.5517, 0.0013)),
    (_UTT | _RAW | _PLAIN, Published("U-T&T", 0.5594, 0.5490, 0.0072)),
    (
        _UTT | _MONTHS | _PLAIN,
        Published("U-T&T + cloud filter + monthly averages", None, 0.5580, 0.0096),
    ),
    (
        _UTT | _MONTHS | _FLIPS,
        Published("U-T&T + cloud filter + monthly averages + augmentation", 0.5758, 0.5623, 0.0056),
    ),
)


def published_row(run: ScoredRun) -> Published | None:
    """Return the published row of a run's settings; None where it may not stand beside one.

    It may where the whole real test set was scored as the published code does.
    """
    test_set = (run.tag(Tag.DATASET), run.counts.patches, run.settings.get("metric.other_pixels"))
    if test_set != (DATASET, TEST_PATCHES, OTHER_PIXELS):
        return None
    if run.settings.get("model.encoder") != "resnet34":
        return None
    rows = (row for options, row in _TABLE if options.items() <= run.settings.items())
    return next(rows, None)
