"""Against a real MLflow server on the loopback, behind a wire that can be cut and tied up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flair2_exp.errors import TrackingError
from flair2_exp.report.store import read_mlflow
from flair2_exp.tracking.run import open_run
from flair2_exp.tracking.store import local_uri, open_store
from tests.report.test_store import Store as Kept
from tests.report.test_store import assert_same_runs, one_by_one
from tests.tracking.conftest import http_answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Wire:
    """Passes connections on to a port; `mode` may be "through", "silent" or "error"."""

    def __init__(self, port: int) -> None:
        self.mode = "through"
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self, mode: str) -> None:
        """From now on `mode`; connections that clients keep open end here."""
        self.mode = mode
        for each in self._connections:
            each.close()
        self._connections.clear()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self._connections.append(connection)
            if self.mode == "through":
                target = socket.create_connection(("127.0.0.1", self._target))
                self._connections.append(target)
                for ends in ((connection, target), (target, connection)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()
            elif self.mode == "error":
                connection.recv(65536)
                connection.sendall(http_answer("500 Internal Server Error", b"{}"))
                connection.close()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    port = free_port()
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(port), "--workers", "1"),
                *("--backend-store-uri", local_uri(tmp_path)),
                *("--artifacts-destination", str(tmp_path / "artifacts")),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,  # a group of its own, to be ended with its workers
        )
        try:
            wire = Wire(port)
            deadline = time.monotonic() + 150  # 10 s where nothing else runs
            while True:
                try:
                    open_store(f"http://127.0.0.1:{port}", timeout=1)
                    break
                except TrackingError:
                    assert server.poll() is None, (tmp_path / "server.log").read_text()
                    assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                    time.sleep(0.25)
            yield wire
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.slow
def test_a_run_on_a_server_survives_its_silence_and_its_errors(
    wire: Wire, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flair2_exp.tracking.outbox._FIRST_PAUSE", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    store = open_store(f"http://me:hunter2@127.0.0.1:{wire.port}", timeout=5)
    pending = tmp_path / "pending"
    run = open_run(store, "over the wire", "a run", pending, tags={})
    run.log_params({"model": {"name": "utt"}})
    run.log_text("before", "texts/before.txt")

    store.timeout = 1
    for epoch, mode in enumerate(("silent", "error")):
        wire.cut(mode)
        begin = time.monotonic()
        run.log_metrics({"train/loss": 1.0 - epoch}, epoch)
        run.flush()
        run.log_text("meanwhile", f"texts/{mode}.txt")
        assert time.monotonic() - begin < 10  # two requests of a second each
        assert pending.exists()

    wire.cut("through")
    store.timeout = 5
    run.finish()
    kept = store.call("reading", lambda client: client.get_run(run.run_id))
    files = store.call("reading", lambda client: client.list_artifacts(run.run_id, "texts"))
    curve = store.call("reading", lambda c: c.get_metric_history(run.run_id, "train/loss"))
    assert kept.info.status == "FINISHED"
    assert kept.data.params == {"model.name": "utt"}
    assert sorted(Path(file.path).stem for file in files) == ["before", "error", "silent"]
    assert sorted((metric.step, metric.value) for metric in curve) == [(0, 1.0), (1, 0.0)]
    assert not pending.exists()
    assert "hunter2" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_runs_on_a_server_are_read_as_each_by_itself(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path, f"http://127.0.0.1:{wire.port}")
    ids = [kept.run("served", "unet", seed) for seed in range(3)]
    bare = kept.run("served", "unet", 3, counts="none")
    found = read_mlflow(kept.uri, sweep="served")
    assert [run.record.run_id for run in found.runs] == ids
    assert_same_runs(found.runs, one_by_one(kept, found.runs))
    assert [(each.seed, each.state) for each in found.absent] == [(3, "damaged")]
    assert bare in found.absent[0].reason
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = open_store(kept.uri, timeout=2)
    wire.cut("error")
    with pytest.raises(TrackingError, match="failed at reading runs"):
        store.call_each("reading runs", lambda client, run: client.get_run(run), ids)
