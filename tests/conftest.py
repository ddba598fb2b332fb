"""Shared by all tests: one torch thread a worker, and a small sample data set made once."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Two workers of pytest share two cores; threads on top would only fight over them. Set before torch
# is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks a hub; what tries is told at once rather than after its timeouts.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# In the background of a shell Ctrl-C is ignored, which the commands that tests interrupt inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from flair2_exp.cli.main import register
from flair2_exp.data.sample import tree
from flair2_exp.tracking import figures, store

# As the entry point does: looking for garbage among all that torch and MLflow import takes long.
gc.set_threshold(50_000, 20, 50)

# These machines are shared: how long one example takes says nothing. Each run draws other examples.
settings.register_profile("tests", deadline=None, max_examples=50)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _registered_schema() -> None:
    register()


@pytest.fixture(scope="session", autouse=True)
def _cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the session's own: no test reads or writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_leaking_log_handlers() -> Iterator[None]:
    """Hydra's handlers write to the stream of the test that made them, which is closed after it."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    for handler in [each for each in root.handlers if each not in before]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True)
def _no_leaking_tracking_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "FLAIR2_EXP_ROOT", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)


_ONCE: dict[Hashable, Path] = {}
"""What has been made in this process: a sample by its options, an empty database."""


@pytest.fixture(scope="module", autouse=True)
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let samples and empty databases of MLflow be copies of the first: each takes a second.

    Tests of their making have a fixture of this name that does nothing.
    """
    sample, database = tree._write_tree, store._make_database

    def once(key: Hashable, name: str, make: Callable[[Path], object]) -> Path:
        if key not in _ONCE:
            path = tmp_path_factory.mktemp("once") / name
            make(path)
            _ONCE[key] = path
        return _ONCE[key]

    def copy_sample(root: Path, options: Any) -> None:
        def make(path: Path) -> None:
            path.mkdir()
            sample(path, options)

        made = once(options, "sample", make)
        # Files as new as they would be: of old ones digests are kept.
        shutil.copytree(made, root, copy_function=shutil.copyfile, dirs_exist_ok=True)

    def copy_database(path: Path, timeout: float) -> None:
        made = once("database", "mlflow.db", lambda fresh: database(fresh, timeout))
        shutil.copyfile(made, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_write_tree", copy_sample)
        patch.setattr(store, "_make_database", copy_database)
        yield


@pytest.fixture(scope="module", autouse=True)
def _plain_figures() -> Iterator[None]:
    """Let runs write empty figures: drawing is a quarter of the smallest run's time.

    Tests of what is drawn have a fixture of this name that does nothing.
    """

    def empty(*_: object, **__: object) -> Any:
        from matplotlib.figure import Figure

        return Figure((1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "confusion", empty)
        patch.setattr(figures, "panel", empty)
        yield
