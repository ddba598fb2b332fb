"""Predictions of overlapping tiles added up to classes, tile by tile, with little in memory.

Probabilities and weights are whole numbers whose sums float64 holds exactly: the order of tiles and
the division into units leave no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flair2_exp.inference.rasters import NODATA, PROBABILITY_STEPS, Layer
from flair2_exp.inference.tiling import ONE, Axis, Unit

STEPS: Final = 2**30
"""Probabilities are rounded to parts of it: finer than float32 has them but for the smallest."""


class Joiner:
    """The sums of one unit.

    Tiles come row by row, from left to right. Each is given the sums that it shares with the tiles
    before it, which the joiner keeps: to the left, and above.

    Args:
        rows: Of the tiling.
        columns: Of the tiling.
        unit: Whose tiles come, with those before it that share pixels with it.
        classes: How many there are.
        layers: What is made of the sums.
        device: Where probabilities are.
    """

    def __init__(
        self,
        rows: Axis,
        columns: Axis,
        unit: Unit,
        classes: int,
        layers: Sequence[Layer],
        device: torch.device,
    ) -> None:
        self._rows, self._columns, self._layers = rows, columns, layers
        self._first = columns.begin(unit.columns.start)
        stop = unit.columns.stop
        width = columns.end(stop - 1) - self._first if stop > unit.columns.start else 0
        shape = (classes, rows.shared, width)
        self._above = torch.zeros(shape, dtype=torch.float64, device=device)
        self._left: Tensor | None = None

    def skip(self, column: int) -> None:
        """Pass over a tile without data: nothing that it shares is part of the map."""
        left = self._columns.begin(column) - self._first
        right = self._columns.begin(column + 1) - self._first
        self._above[:, :, left:right] = 0
        self._left = None

    def add(self, row: int, column: int, probabilities: Tensor) -> NDArray[np.uint8]:
        """Add a tile; return the layers' bands, (bands, h, w), of the pixels that are complete.

        Args:
            row: Of the tile.
            column: Of the tile.
            probabilities: (C, patch, patch) float32.

        Returns:
            Those from its own beginning to that of the tiles to the right and below.
        """
        rows, columns = self._rows, self._columns
        height, width = (
            axis.begin(tile + 1) - axis.begin(tile)
            for axis, tile in ((rows, row), (columns, column))
        )
        own = probabilities[:, rows.inside(row), columns.inside(column)]
        if not rows.shared:
            return self._bands(own)
        top = min(rows.shared, height) if row else 0
        left = min(columns.shared, width) if column else 0
        sums = self._sums(
            own, rows.weights(row), columns.weights(column), (top, height), (left, width)
        )
        self._take(sums, columns.begin(column) - self._first)
        self._keep(sums, columns.begin(column) - self._first, height, width)
        # What no other tile has a say in is taken as it is: that saves most of the work.
        made = np.empty((sum(each.bands for each in self._layers), height, width), np.uint8)
        whole = STEPS * ONE * ONE
        made[:, :top] = self._bands(sums[:, :top, :width] / whole)
        made[:, top:, :left] = self._bands(sums[:, top:height, :left] / whole)
        made[:, top:, left:] = self._bands(own[:, top:height, left:width])
        return made

    def _sums(
        self,
        own: Tensor,
        down: NDArray[np.int64],
        across: NDArray[np.int64],
        rows: tuple[int, int],
        columns: tuple[int, int],
    ) -> Tensor:
        """Return a tile's weighted probabilities where others have a say; elsewhere zeros.

        Args:
            own: Of the tile, (C, h, w).
            down: The weights of its rows.
            across: The weights of its columns.
            rows: The ends of those shared with the tiles above, and the first of those below.
            columns: Likewise, left and right.
        """
        sums = torch.zeros(own.shape, dtype=torch.float64, device=own.device)
        every = slice(None)
        for part in (
            (every, slice(0, rows[0]), every),
            (every, slice(rows[1], None), every),
            (every, slice(rows[0], rows[1]), slice(0, columns[0])),
            (every, slice(rows[0], rows[1]), slice(columns[1], None)),
        ):
            values = own[part].double().mul_(STEPS).round_()
            values *= self._weights(down[part[1]], sums)[:, None]
            sums[part] = values * self._weights(across[part[2]], sums)
        return sums

    def _take(self, sums: Tensor, left: int) -> None:
        """Add what the tiles before have left; above the shared columns it is in the left sums."""
        shared = 0
        if self._left is not None:
            shared = self._left.shape[2]
            sums[:, :, :shared] += self._left
        above = self._above[:, :, left + shared : left + sums.shape[2]]
        sums[:, : self._above.shape[1], shared:] += above[:, : sums.shape[1]]

    def _keep(self, sums: Tensor, left: int, height: int, width: int) -> None:
        """Keep what the tiles below and to the right share with this one."""
        below = sums[:, height:, :width]
        self._above[:, :, left : left + width] = 0
        self._above[:, : below.shape[1], left : left + width] = below
        self._left = sums[:, :, width:].clone()

    def end_row(self) -> None:
        """End a row of tiles."""
        self._left = None

    @staticmethod
    def _weights(values: NDArray[np.int64], sums: Tensor) -> Tensor:
        return torch.from_numpy(values).to(sums)

    def _bands(self, probabilities: Tensor) -> NDArray[np.uint8]:
        """Return the layers' bands of complete probabilities (C, h, w)."""
        highest, classes = probabilities.max(dim=0)
        made = []
        for layer in self._layers:
            if layer.kind == "classes":
                made.append(classes[None].to(torch.uint8))
                continue
            chosen = highest[None]
            if layer.kind == "probabilities":
                chosen = probabilities[layer.positions]
            # In single precision, as the network gave what one tile alone has predicted.
            made.append((chosen.float() * PROBABILITY_STEPS).round().to(torch.uint8))
        return torch.cat(made).cpu().numpy()


def empty_bands(layers: Sequence[Layer], height: int, width: int) -> NDArray[np.uint8]:
    """Return the layers' bands, (bands, h, w), where nothing is mapped."""
    return np.full((sum(each.bands for each in layers), height, width), NODATA, np.uint8)
