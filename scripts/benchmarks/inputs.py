"""What the benchmarks of the models feed them: FLAIR #2's sizes, random values."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

BATCH: Final = 2
"""On a processor."""
PATCH: Final = 512
CLASSES: Final = 13
BANDS: Final = 5
Inputs = dict[str, Tensor]


def series_inputs(dates: int, *, real: int | None = None, batch: int = BATCH) -> Inputs:
    """A random series with `dates` dates, the first `real` of which (all by default) are real."""
    padding = torch.arange(dates).expand(batch, dates) >= (dates if real is None else real)
    series = torch.rand(batch, dates, 10, 40, 40)
    series[padding] = 0
    days = torch.linspace(-180, 180, dates).round().expand(batch, dates)
    return {"series": series, "days": days, "padding": padding}
