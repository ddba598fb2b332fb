"""What a network's inputs are before they are scaled: kept with the network, for who uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from flair2_exp.config.data import MetadataConfig, S2PreprocConfig
from flair2_exp.config.fields import build, plain


@dataclass(frozen=True)
class Inputs:
    """Bands, type and scale of images; how series are preprocessed and metadata encoded."""

    bands: tuple[str, ...]
    """Of the image, in the order in which the network sees them."""
    image_type: str
    """`uint8`, `uint16` or `float32`."""
    scale: float
    """What images are divided by."""
    resolution: float | None
    """Of the image, metres per pixel; None where nobody knows it."""
    s2_preproc: S2PreprocConfig
    metadata: MetadataConfig

    @property
    def kind(self) -> np.dtype[Any]:
        """The type of images."""
        return np.dtype(self.image_type)

    def plain(self) -> dict[str, Any]:
        """Return the values as numbers, strings, None, lists and dictionaries of them."""
        values: dict[str, Any] = plain(self)
        return values

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return what `plain` gave."""
        groups = {"s2_preproc": S2PreprocConfig, "metadata": MetadataConfig}
        made: dict[str, Any] = {n: build(group, values[n]) for n, group in groups.items()}
        return cls(**{**values, **made, "bands": tuple(values["bands"])})
