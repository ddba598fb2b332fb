"""Servers on loopback, and transfers that hardly wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flair2_exp.data.download import transfer
from tests.data.download.servers import Server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "WAIT", 0.001)
    monkeypatch.setattr(transfer, "TRIES", 3)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()
