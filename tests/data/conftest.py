"""Shared by the tests of the data: a small tree, and a cache directory of their own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.data.trees import Tree, write_tree


@pytest.fixture(scope="module", autouse=True)
def _made_once() -> None:
    """Samples are what these tests make."""


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def shared_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree that no test changes."""
    return write_tree(tmp_path_factory.mktemp("shared") / "tree")


@pytest.fixture
def own_tree(tmp_path: Path) -> Tree:
    """A tree to change."""
    return write_tree(tmp_path / "tree")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tree had been still for a while, so that what is known of it is kept."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_000_000_000)
