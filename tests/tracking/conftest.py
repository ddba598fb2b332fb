"""One local store for all tests of a session (making one takes seconds), an experiment a test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flair2_exp.tracking import Store, TrackedRun, local_uri, open_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A local store, in a folder whose name needs quoting in addresses."""
    return open_store(local_uri(tmp_path_factory.mktemp("a store #1, é")))


@pytest.fixture
def experiment(store: Store, request: pytest.FixtureRequest) -> str:
    return store.ensure_experiment(request.node.nodeid)


@pytest.fixture
def start(store: Store, experiment: str, tmp_path: Path) -> Callable[..., TrackedRun]:
    """Starts a run in the test's experiment."""

    def start(**options: object) -> TrackedRun:
        wanted = {"name": "a run", "pending": tmp_path / "pending", **options}
        return TrackedRun.start(store, experiment, **wanted)  # type: ignore[arg-type]

    return start


@contextmanager
def serving(answer: bytes | None) -> Iterator[str]:
    """A server on the loopback that gives every request one answer, or never any; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
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
        for connection in held:
            connection.close()


def http_answer(status: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
