"""The golden vectors: inputs and outputs of the published baseline (see tests/golden/README.md)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile


def golden_dir() -> Path:
    """The folder of the vectors: FLAIR2_GOLDEN_DIR, or the copies that the tests carry."""
    return Path(os.environ.get("FLAIR2_GOLDEN_DIR") or Path(__file__).parent / "golden")


def golden(name: str) -> NpzFile:
    """The arrays of one file, as `golden("fusion")`; a missing file fails the test."""
    archive = np.load(golden_dir() / f"{name}.npz", allow_pickle=False)
    assert isinstance(archive, NpzFile)
    return archive
