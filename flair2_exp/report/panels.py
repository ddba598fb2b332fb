"""The same test patches as several rows predict them, from what a run of each has kept of them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.errors import FlairError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.report.results import Report, Row
from flair2_exp.report.runs import ScoredRun

PATCHES: Final = 3
ROWS: Final = 4
"""At most, so that a patch is wide enough to see the edge of a house."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Panel:
    """Test patches, and what rows predict there."""

    patches: tuple[str, ...]
    images: Sequence[Bytes]
    """(h, w, 3) red, green and blue of each patch, perhaps smaller than the masks."""
    truths: Sequence[Bytes]
    """(H, W) class indices of each patch."""
    predictions: Sequence[tuple[ScoredRun, Sequence[Bytes]]]
    """A run of each row, and its predictions as the truths."""


def panel_of(report: Report) -> Panel | None:
    """Return up to three patches that runs of the baseline and of the best rows have all kept.

    None where a row's runs have kept none, as those of old, or where their folders are elsewhere.
    """
    runs = [row.runs[0] for row in _rows(report)]
    chosen = [(run, kept) for run in runs if (kept := _read(run))]
    if not chosen:
        return None
    first = chosen[0][1]
    common = [at for at, patch in enumerate(first["patch_ids"].tolist())
              if all(patch in kept["patch_ids"] for _, kept in chosen)]  # fmt: skip
    if not common:
        return None
    spaced = np.linspace(0, len(common) - 1, min(PATCHES, len(common))).round().astype(int)
    places = [common[at] for at in spaced]
    names = first["patch_ids"][places].tolist()
    return Panel(
        patches=tuple(names),
        images=[first["images"][at] for at in places],
        truths=[first["truths"][at] for at in places],
        predictions=[
            (run, [kept["predictions"][kept["patch_ids"].tolist().index(name)] for name in names])
            for run, kept in chosen
        ],
    )


def _rows(report: Report) -> list[Row]:
    """Return the baseline and the best of the others."""
    base = report.row(report.baseline)
    others = [row for row in report.rows if row is not base]
    return [base, *sorted(others, key=lambda row: -(row.miou.value or 0.0))[: ROWS - 1]]


def _read(run: ScoredRun) -> dict[str, NDArray[Any]] | None:
    """Return the arrays that a run has kept (`lifecycle.results`); None where there are none.

    Its folder may be another run's by now.
    """
    if run.folder is None:
        return None
    folder = RunFolder(run.folder)
    try:
        record = RunRecord.read(folder)
        if record is None or record.run_id != run.record.run_id:
            return None
        with np.load(folder.panel, allow_pickle=False) as stored:
            names = ("patch_ids", "images", "truths", "predictions")
            arrays = {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, FlairError):
        return None
    fits = arrays["truths"].shape == arrays["predictions"].shape
    return arrays if fits and len({len(each) for each in arrays.values()}) == 1 else None
