"""What can be chosen about reading and preparing samples: frozen dataclasses of plain values.

The defaults are the corrected settings; `compat=reference` sets the published baseline's. Ranges
are checked where the config is (flair2_exp.config.schema).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SeriesOptions:
    """Preprocessing of the satellite series; names as in the config group `s2_preproc`."""

    filter: bool = False
    """Leave out acquisitions that snow and cloud cover too much."""
    monthly: bool = False
    """One mean frame per calendar month instead of the acquisitions."""
    size: int = 40
    """Pixels (10 m) on a side of the super-patch; even."""
    threshold: int = 60
    """Probability (per cent) from which a pixel counts as snow or cloud."""
    max_cover: float = 0.5
    """Share of covered pixels from which an acquisition is left out."""
    cover: Literal["union", "sum"] = "union"
    """`sum` counts a pixel twice that is both snow and cloud (the baseline)."""
    on_empty: Literal["clearest", "error"] = "clearest"
    """Where no acquisition is left: keep the clearest, or stop with the patch's name."""
    scale: Literal["reflectance", "reference"] = "reflectance"
    """`reflectance` divides by 10,000; `reference` by 65,535, and monthly means by nothing."""
    days: Literal["day_of_year", "reference"] = "day_of_year"
    """How a leap year's days are counted; see `sentinel2.day_offsets`."""

    def __post_init__(self) -> None:
        if self.size < 2 or self.size % 2:
            raise ValueError(f"a super-patch needs an even size, not {self.size}")


@dataclass(frozen=True)
class AugmentationOptions:
    """Augmentation of training samples; names as in the config group `aug`."""

    geometry: Literal["none", "flips", "d4"] = "none"
    """`flips`: vertical flip, horizontal flip, quarter turns, each with `probability` (the
    baseline's); `d4`: one of the square's eight symmetries, uniformly."""
    probability: float = 0.5
    satellite: bool = True
    """Whether series and satellite target get the same geometry as the aerial patch."""
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    """Largest relative change of each; the factor is uniform in 1 ± the value."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, as a share of the full scale."""
    zoom: float = 0.0
    """Largest relative enlargement about the patch's centre."""
    drop_dates: float = 0.0
    """Probability of each frame of a series to be left out; one always stays."""

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self.geometry != "none" or any(
            (self.brightness, self.contrast, self.gamma, self.noise, self.zoom, self.drop_dates)
        )


@dataclass(frozen=True)
class SplitOptions:
    """Which patches train, validate and test; names as in the config group `split`."""

    name: Literal["official", "reference", "file"] = "official"
    file: str | None = None
    """YAML with lists `train`, `validation`, `test` of domains, areas or patch ids."""
    train_fraction: float = 0.8
    seed: int = 2022


@dataclass(frozen=True)
class MetadataOptions:
    """Encoding of the aerial metadata."""

    month: Literal["cyclic", "reference"] = "cyclic"
    """`reference` is the baseline's angle, the same for every month."""
