"""How a raster is cut into overlapping tiles, and how their predictions are joined again.

Along each axis tiles start every `patch - overlap` pixels from the raster's first one; the last one
may reach beyond the end, where pixels are those of the other side of the edge. Along the overlap of
two neighbours their weights are whole numbers that add up to `ONE`:

    crop     all of it to the tile whose centre is nearer
    blend    a smooth ramp from the one to the other
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from flair2_exp.errors import UsageError

Join = Literal["blend", "crop"]

ONE: Final = 2**10
"""The sum of weights along an axis. Products of two, times probabilities as whole numbers (2**30),
stay below 2**53, so that float64 adds them up exactly, in whatever order."""

OVERLAP_SHARE: Final = 8
"""The default overlap is the patch size divided by this."""


@dataclass(frozen=True)
class Axis:
    """The tiles along one side of a raster.

    Raises:
        UsageError: The overlap is negative, or more than half a patch.
    """

    size: int
    """Pixels of the raster, 1 or more."""
    patch: int
    """Pixels of a tile."""
    overlap: int
    """Pixels that neighbouring tiles share."""
    join: Join = "blend"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.patch // 2:
            raise UsageError(
                f"overlap {self.overlap}: expected 0 to {self.patch // 2} pixels, half of the "
                f"{self.patch} that the network sees at once."
            )

    @property
    def stride(self) -> int:
        """Pixels from one tile to the next."""
        return self.patch - self.overlap

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return 1 + max(0, math.ceil((self.size - self.patch) / self.stride))

    @property
    def shared(self) -> int:
        """Pixels over which two neighbours are mixed."""
        return self.overlap if self.join == "blend" else 0

    def begin(self, tile: int) -> int:
        """Return the first pixel of the raster that a tile has a say in; `count`: the size."""
        if tile >= self.count:
            return self.size
        cut = self.overlap // 2 if self.join == "crop" and tile else 0
        return tile * self.stride + cut

    def end(self, tile: int) -> int:
        """Return the pixel after the last one that a tile has a say in."""
        return min(self.size, self.begin(tile + 1) + self.shared)

    def inside(self, tile: int) -> slice:
        """Return the tile's own pixels, from 0 to `patch`, that it has a say in."""
        start = tile * self.stride
        return slice(self.begin(tile) - start, self.end(tile) - start)

    def pixels(self, tile: int) -> NDArray[np.int64]:
        """Return which pixel of the raster each of a tile's is, (patch,), mirrored at the end."""
        return mirrored(np.arange(tile * self.stride, tile * self.stride + self.patch), self.size)

    def weights(self, tile: int) -> NDArray[np.int64]:
        """Return the weight of each pixel of `inside`, 0 to `ONE`; over the tiles they sum to it.

        The ramp is a squared sine, flat at both ends.
        """
        weights = np.full(self.end(tile) - self.begin(tile), ONE)
        steps = (np.arange(self.shared) + 0.5) / max(1, self.shared)
        ramp = np.rint(ONE * np.sin(np.pi / 2 * steps) ** 2).astype(np.int64)
        if tile:
            weights[: self.shared] = ramp[: len(weights)]
        if tile + 1 < self.count:
            weights[len(weights) - self.shared :] = ONE - ramp
        return weights


def mirrored(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return which of `size` pixels stands at each place, beyond the ends mirrored at the edge."""
    period = max(1, 2 * (size - 1))
    folded = np.abs(places) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros_like(places)


@dataclass(frozen=True)
class Unit:
    """Tiles that are predicted as one piece: rows and columns of the tiling."""

    rows: range
    columns: range

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.rows.start:06}-{self.columns.start:06}"


def units(rows: Axis, columns: Axis, size: tuple[int, int]) -> Iterator[Unit]:
    """Yield all tiles once, in units of at most `size` (rows, columns), row by row."""
    for top in range(0, rows.count, size[0]):
        for left in range(0, columns.count, size[1]):
            yield Unit(
                range(top, min(top + size[0], rows.count)),
                range(left, min(left + size[1], columns.count)),
            )


def default_overlap(patch: int) -> int:
    """Return the overlap of tiles where nobody names one, even."""
    return patch // OVERLAP_SHARE // 2 * 2
