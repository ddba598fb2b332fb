"""The counts that a tested run leaves, read, checked and summed by area.

A report never reads images again: all its scores come from these counts.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair2_exp.errors import DataError
from flair2_exp.nomenclature import LandCover, Nomenclature
from flair2_exp.report.statistics import Integers, sum_by_area


@dataclass(frozen=True)
class Counts:
    """Confusion counts of a run's test set."""

    areas: tuple[str, ...]
    """(A,) names, sorted."""
    confusion: Integers
    """(A, C, C) pixels, rows truth, columns prediction."""
    nomenclature: Nomenclature
    patches: int
    """Number of test patches."""
    test_set: str
    """Hash of the patches' names and of their true pixels of the scored classes: equal for runs
    that were tested on the same patches with the same labels."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""
        return self.nomenclature.names


def read_counts(path: Path) -> Counts:
    """Read the counts of each patch and sum them by area.

    Args:
        path: NumPy archive: `patch_ids` (N,), `areas` (N,), `confusion` (N, C, C),
            `classes` (C,) and, but for runs of old, `colours` (C,) and `scored`.

    Raises:
        DataError: The file is missing, damaged, incomplete or inconsistent.
    """
    fix = "Test the run again (train=false)."
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = ("patch_ids", "areas", "confusion", "classes")
            patch_ids, areas, confusion, classes = (stored[name] for name in names)
            nomenclature = _nomenclature(classes, stored)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {fix}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}). {fix}") from None
    problem = _problem(patch_ids, areas, confusion, len(classes))
    if problem:
        raise DataError(f"{path} is inconsistent ({problem}). {fix}")
    by_area, summed = sum_by_area(areas, confusion)
    return Counts(
        areas=tuple(map(str, by_area)),
        confusion=summed,
        nomenclature=nomenclature,
        patches=len(patch_ids),
        test_set=_test_set(patch_ids, confusion, nomenclature),
    )


def _nomenclature(names: NDArray[Any], stored: Mapping[str, NDArray[Any]]) -> Nomenclature:
    """Return the classes that a run recorded; of FLAIR #2 where it recorded their names alone."""
    if "colours" not in stored:
        return Nomenclature.of_names(names.tolist())
    pairs = zip(names.tolist(), stored["colours"].tolist(), strict=True)
    classes = (LandCover(value, *pair) for value, pair in enumerate(pairs))
    return Nomenclature(tuple(classes), int(stored["scored"]))


def _problem(
    patch_ids: NDArray[Any], areas: NDArray[Any], confusion: NDArray[Any], classes: int
) -> str:
    """Return what contradicts itself in the counts; empty where nothing does."""
    if confusion.shape != (len(patch_ids), classes, classes) or len(areas) != len(patch_ids):
        return (
            f"{len(patch_ids)} patches, {len(areas)} areas and {classes} classes, "
            f"but counts of shape {confusion.shape}"
        )
    if not len(patch_ids):
        return "no patch"
    if not np.issubdtype(confusion.dtype, np.integer) or confusion.min() < 0:
        return "counts must be whole numbers from 0 on"
    if len(np.unique(patch_ids)) != len(patch_ids):
        return "a patch is counted twice"
    return ""


def _test_set(patch_ids: NDArray[Any], confusion: NDArray[Any], nomenclature: Nomenclature) -> str:
    """Hash names and true pixels; those of a last class that is not scored depend on the metric."""
    order = np.argsort(patch_ids)
    truth = confusion.sum(axis=2, dtype=np.int64)[
        order, : len(nomenclature.classes) - nomenclature.has_other
    ]
    digest = hashlib.sha256("\n".join(map(str, patch_ids[order])).encode())
    digest.update(np.ascontiguousarray(truth, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]
