"""Hydra's own contract tests expect its defaults, whatever other tests of the process set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra.version import _UNSPECIFIED_, VersionBase


@pytest.fixture(autouse=True)
def _hydras_own_defaults() -> Iterator[None]:
    base = VersionBase.instance()
    before, base.version_base = base.version_base, _UNSPECIFIED_
    yield
    base.version_base = before
