"""What a network's inputs are normalised by: mean and standard deviation of each band.

The values are those of the data that a network is trained on, so its checkpoint holds them as plain
numbers: `plain` and `of_plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from torch import Tensor

from flair2_exp.config.fields import plain

IMAGENET: Final[Mapping[str, tuple[float, float]]] = {
    "red": (0.485, 0.229), "green": (0.456, 0.224), "blue": (0.406, 0.225),
}  # fmt: skip
"""Mean and standard deviation of ImageNet's images in 0..1, as torchvision and timm have them."""

UNKNOWN_BAND: Final = (0.5, 0.25)
"""For bands that ImageNet lacks: the middle of the range, and about the deviation of its bands."""

SMALLEST_STD: Final = 1e-6
"""A band that is the same everywhere becomes 0, not infinite."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each band, after scaling."""

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def applied(self, values: Tensor) -> Tensor:
        """Return (..., C, H, W) values minus the mean, over the deviation; in place."""
        mean, std = self._columns(values)
        return values.sub_(mean).div_(std)

    def undone(self, values: Tensor) -> Tensor:
        """Return what `applied` was given; not in place."""
        mean, std = self._columns(values)
        return values * std + mean

    def _columns(self, values: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            values.new_tensor(each)[:, None, None]
            for each in (self.mean, [max(each, SMALLEST_STD) for each in self.std])
        )
        return mean, std


@dataclass(frozen=True)
class Normalisation:
    """How the image and the series are normalised; None: not at all."""

    image: Moments | None = None
    series: Moments | None = None

    def plain(self) -> dict[str, Any]:
        """Return the values as numbers, strings, None, lists and dictionaries of them."""
        values: dict[str, Any] = plain(self)
        return values

    @classmethod
    def of_plain(cls, values: Mapping[str, Any] | None) -> Self:
        """Return what `plain` gave; nothing is normalised where there are no values."""
        made = {
            name: Moments(**{key: tuple(each) for key, each in moments.items()})
            for name, moments in (values or {}).items()
            if moments is not None
        }
        return cls(**made)

    def applied(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a scaled batch, normalised; its image and series may change in place.

        Frames that are padding stay zero.
        """
        return self._changed(batch, Moments.applied)

    def undone(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a normalised batch as it was scaled, for pictures."""
        return self._changed(batch, Moments.undone)

    def _changed(
        self, batch: Mapping[str, Any], change: Callable[[Moments, Tensor], Tensor]
    ) -> dict[str, Any]:
        changed = {}
        if self.image is not None and "image" in batch:
            changed["image"] = change(self.image, batch["image"])
        if self.series is not None and "series" in batch:
            padding = batch["padding"][:, :, None, None, None]
            changed["series"] = change(self.series, batch["series"]).masked_fill_(padding, 0)
        return {**batch, **changed}


def scaled(batch: Mapping[str, Any], *, image: float, series: float) -> dict[str, Any]:
    """Return a batch scaled where it is, on the device.

    Args:
        batch: In the files' own types.
        image: What images are divided by.
        series: What series are divided by; zero frames stay zero.

    Returns:
        The batch with `image` and `series` as float32, and `label` and `satellite_label` as int64.
    """
    changed: dict[str, Any] = {"label": batch["label"].long()}
    if "image" in batch:
        changed["image"] = batch["image"].float().div_(image)
    if "series" in batch:
        # A float32 series of a second call would be divided again; the loop calls this once.
        changed["series"] = batch["series"].float() / series
        other = batch.get("satellite_label")
        changed["satellite_label"] = changed["label"] if other is None else other.long()
    return {**batch, **changed}


def imagenet(bands: Sequence[str]) -> Moments:
    """Return ImageNet's values for red, green and blue, and `UNKNOWN_BAND` for others."""
    mean, std = zip(*(IMAGENET.get(band, UNKNOWN_BAND) for band in bands), strict=True)
    return Moments(tuple(bands), mean, std)
