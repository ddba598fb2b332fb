"""Shared by the tests of sweeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flair2_exp.report import write
from flair2_exp.sweeps import ablation
from flair2_exp.tracking.store import Store, local_uri, open_store
from tests.sweeps.made import MadeSweep


@pytest.fixture(scope="module", autouse=True)
def _plain_reports() -> Iterator[None]:
    """Let reports hold figures that are drawn and not rendered, which takes most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "image", lambda figure, kind: kind.encode())
        yield


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeSweep:
    """A sweep whose jobs train nothing, so that whether they could is not asked."""
    monkeypatch.setattr(ablation, "require_feasible", lambda *_, **__: None)
    return MadeSweep(tmp_path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A local store where runs expect it: in `mlruns` of their root."""
    return open_store(local_uri(tmp_path_factory.mktemp("tracked") / "mlruns"))


@pytest.fixture
def root(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of that store, where the user stands; its `outputs` and `multirun` are empty."""
    assert store.folder is not None
    folder = store.folder.parent
    for name in ("outputs", "multirun"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    monkeypatch.setenv("FLAIR2_EXP_ROOT", str(folder))
    return folder
