"""Shared by the tests of sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from flair2_exp.sweeps import ablation
from tests.sweeps.made import MadeSweep


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeSweep:
    """A sweep whose jobs train nothing, so that whether they could is not asked."""
    monkeypatch.setattr(ablation, "require_feasible", lambda *_, **__: None)
    return MadeSweep(tmp_path)
