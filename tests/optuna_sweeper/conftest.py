"""Hydra's own contract tests expect its defaults, whatever other tests of the process set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra.version import VersionBase


@pytest.fixture(autouse=True)
def _hydras_own_defaults() -> Iterator[None]:
    base = VersionBase.instance()
    fresh = object.__new__(VersionBase)  # it is a singleton, and 1.3 and 1.4 begin differently
    fresh.__init__()  # type: ignore[misc]
    before, base.version_base = base.version_base, fresh.version_base
    yield
    base.version_base = before
