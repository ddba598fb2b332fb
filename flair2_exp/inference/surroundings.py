"""What the tiles of a map have beside their image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Acquisitions


class Surroundings(Protocol):
    """What a tile has beside its image."""

    def of(self, x: float, y: float) -> tuple[Acquisitions | None, NDArray[np.float32] | None]:
        """Return a tile's acquisitions and its encoded metadata; None of what is not read."""
        ...
