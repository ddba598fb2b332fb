"""One local store for all tests of a session (making one takes seconds), an experiment a test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from flair2_exp.tracking.run import Run, open_run
from flair2_exp.tracking.store import Store, local_uri, open_store

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun


@pytest.fixture(scope="module", autouse=True)
def _made_once() -> None:
    """Stores are what these tests make."""


@pytest.fixture(scope="module", autouse=True)
def _plain_figures() -> None:
    """Figures are what some of these tests look at."""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A local store, in a folder whose name needs quoting in addresses."""
    return open_store(local_uri(tmp_path_factory.mktemp("a store #1, é")))


@pytest.fixture
def experiment(store: Store, request: pytest.FixtureRequest) -> str:
    return store.ensure_experiment(request.node.nodeid)


@pytest.fixture
def start(store: Store, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Run]:
    """Starts a run in the test's experiment, or resumes one."""

    def start(name: str = "a run", **options: Any) -> Run:
        options = {"pending": tmp_path / "pending", "tags": {}, **options}
        return open_run(store, request.node.nodeid, name, **options)

    return start


def read(run: Run) -> MlflowRun:
    assert run.store is not None
    return run.store.call("reading", lambda client: client.get_run(run.run_id))


def curve(run: Run, name: str) -> list[tuple[int, float]]:
    assert run.store is not None
    history = run.store.call("reading", lambda c: c.get_metric_history(run.run_id, name))
    return sorted((metric.step, metric.value) for metric in history)


def artifact(run: Run, path: str) -> str:
    return (Path(unquote(urlsplit(read(run).info.artifact_uri).path)) / path).read_text()


@contextmanager
def serving(answer: bytes | None) -> Iterator[str]:
    """A server on the loopback that gives every request one answer, or never any; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            if answer is not None:
                connection.recv(65536)
                connection.sendall(answer)
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # else the waiting thread keeps it open
        listener.close()
        for connection in connections:
            connection.close()


def http_answer(status: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
