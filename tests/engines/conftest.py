"""A SLURM for the tests of its engine: of small scripts, and a real one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.clients import Clients
from tests.engines.cluster import missing, start, stop


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    """SLURM's clients as scripts, on the path."""
    made = Clients(tmp_path / "clients")
    monkeypatch.setenv("PATH", made.path())
    return made


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real SLURM: the one that SLURM_CONF names, or one of the tests' own.

    It has a partition `low`, whose jobs are queued again where one of `high` needs their place, and
    a node with four GPUs.
    """
    if os.environ.get("SLURM_CONF") and _answers():
        yield
        return
    if reason := missing():
        pytest.skip(f"no SLURM: {reason}")
    root = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", "")  # which `start` sets
        try:
            start(root)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            stop(root)
            pytest.skip(f"no SLURM: it does not start here: {error}")
        yield
    stop(root)


def _answers() -> bool:
    try:
        return subprocess.run(["sinfo"], capture_output=True, timeout=15).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture
def slurm(cluster: None) -> Callable[..., str]:
    """Call one of a real SLURM's clients; what it printed.

    It may wait, as scancel does for a job that is about to be queued again: then "".
    """

    def call(*words: str) -> str:
        try:
            return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout
        except subprocess.TimeoutExpired:
            return ""

    return call
