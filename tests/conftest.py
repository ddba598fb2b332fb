"""Shared by all tests: one torch thread a worker, and a small sample data set made once."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator

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

# As the entry point does: looking for garbage among all that torch and MLflow import takes long.
gc.set_threshold(50_000, 20, 50)

# These machines are shared: how long one example takes says nothing.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _registered_schema() -> None:
    register()


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
