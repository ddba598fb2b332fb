"""Shared by the tests of runs: one place with one sample."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where experiments find the sample and write."""
    return tmp_path_factory.mktemp("experiments")
