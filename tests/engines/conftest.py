"""A SLURM for the tests of its engine: of small scripts, and a real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.clients import Clients


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    """SLURM's clients as scripts, on the path."""
    made = Clients(tmp_path / "clients")
    monkeypatch.setenv("PATH", made.path())
    return made


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real SLURM: the one that SLURM_CONF names, or one that FLAIR2_SLURM_SH starts.

    It has a partition `low`, whose jobs are queued again where one of `high` needs their place, and
    a node with four GPUs.
    """
    if os.environ.get("SLURM_CONF") and _answers():
        yield
        return
    program = os.environ.get("FLAIR2_SLURM_SH")
    if not program:
        pytest.skip("no SLURM: SLURM_CONF names none that answers, FLAIR2_SLURM_SH starts none")
    environment = {**os.environ, "SLURM_ROOT": str(tmp_path_factory.mktemp("slurm"))}
    started = subprocess.run(
        [program, "start"], env=environment, capture_output=True, text=True, timeout=250
    )
    assert started.returncode == 0, started.stderr
    conf = started.stdout.rpartition("export SLURM_CONF=")[2].split()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", conf)
        yield
    subprocess.run([program, "stop"], env=environment, check=False, timeout=60)


def _answers() -> bool:
    if shutil.which("sinfo") is None:
        return False
    try:
        return subprocess.run(["sinfo"], capture_output=True, timeout=15).returncode == 0
    except subprocess.TimeoutExpired:
        return False
