from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flair2_exp.errors import TrackingError
from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.run import Run, open_run
from flair2_exp.tracking.store import Store, local_uri, open_store
from flair2_exp.tracking.tags import Tag
from tests.tracking.conftest import http_answer, serving


def open_and_run(folder: str, number: int, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    store = open_store(local_uri(folder))
    pending = Path(folder) / f"pending-{number}"
    with open_run(store, "one for all", f"run {number}", pending, tags={}) as run:
        run.log_params({"number": number})
        for epoch in range(5):
            run.log_metrics({"train/loss": float(epoch)}, epoch)
            run.flush()


def test_six_processes_make_one_store_at_once_and_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    # Each a process of its own, out of one that has MLflow imported already but nothing opened.
    context.set_forkserver_preload(["mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"])
    barrier = context.Barrier(6)
    processes = [
        context.Process(target=open_and_run, args=(str(tmp_path), number, barrier))
        for number in range(6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        count = "SELECT count(*) FROM"
        assert database.execute(f"{count} experiments WHERE name='one for all'").fetchone() == (1,)
        assert database.execute(f"{count} runs WHERE status='FINISHED'").fetchone() == (6,)
        assert database.execute(f"{count} metrics").fetchone() == (30,)
        assert database.execute(f"{count} params").fetchone() == (6,)
    assert not list(tmp_path.glob("pending-*"))


def test_a_process_killed_while_making_the_database_leaves_none_behind(tmp_path: Path) -> None:
    # Half a migration, as MLflow leaves it, and the file that merely connecting makes.
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db.making")) as half:
        half.execute("CREATE TABLE _alembic_tmp_experiments (name TEXT)")
    (tmp_path / "mlflow.db").touch()
    store = open_store(local_uri(tmp_path))
    assert store.ensure_experiment("flair2")
    assert not list(tmp_path.glob("*.making*"))


@pytest.mark.slow
def test_whenever_the_making_is_killed_the_next_process_makes_it(tmp_path: Path) -> None:
    code = (
        "import sys, mlflow.tracking\n"
        "from flair2_exp.tracking.store import local_uri, open_store\n"
        "print('ready', flush=True)\n"
        "open_store(local_uri(sys.argv[1]))\n"
    )
    for tenths in (2, 5, 8, 11):
        command = [sys.executable, "-c", code, str(tmp_path)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(tenths / 10)
        child.kill()
        child.wait()
    assert open_store(local_uri(tmp_path)).ensure_experiment("flair2")


def test_an_experiment_is_made_once_and_restored_where_it_was_deleted(store: Store) -> None:
    first = store.ensure_experiment("made/once")
    assert store.ensure_experiment("made/once") == first
    store.call("deleting", lambda client: client.delete_experiment(first))
    assert store.ensure_experiment("made/once") == first
    experiment = store.call("reading", lambda client: client.get_experiment(first))
    assert experiment.lifecycle_stage == "active"
    assert store.folder is not None
    assert experiment.artifact_location == (store.folder / "artifacts" / "made_once").as_uri()


def test_a_file_system_without_locks_is_no_obstacle(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert open_store(store.uri).ensure_experiment("without locks")


def test_the_check_of_a_server_shows_what_mlflow_would_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import requests

    options: dict[str, object] = {}

    def get(url: str, **given: object) -> None:
        options.update(given)
        raise requests.exceptions.Timeout

    monkeypatch.setattr(requests, "get", get)
    for name in ("TOKEN", "USERNAME", "PASSWORD", "SERVER_CERT_PATH", "CLIENT_CERT_PATH"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", name.lower())
    with pytest.raises(TrackingError, match="no answer within 2 s"):
        open_store("https://host:1", timeout=2)
    assert options["headers"] == {"Authorization": "Bearer token"}
    assert options["auth"] == ("username", "password")
    assert (options["verify"], options["cert"]) == ("server_cert_path", "client_cert_path")


def test_runs_are_found_by_tags_also_with_quotes(
    store: Store, start: Callable[..., Run], request: pytest.FixtureRequest
) -> None:
    experiment = store.ensure_experiment(request.node.nodeid)
    for row in ("it's", "a \"quoted\" 'one'"):
        runs = [start(tags={Tag.ROW: row, Tag.SEED: seed}) for seed in (1, 2, 2)]
        for run in runs:
            run.finish()
        assert store.find_run(experiment, {Tag.ROW: row, Tag.SEED: "1"}) == runs[0].run_id
        assert store.find_run(experiment, {Tag.ROW: row}) == runs[2].run_id  # the newest
    assert store.find_run(experiment, {Tag.ROW: "none"}) is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "neither a sqlite database nor a server"),
        ("file:///somewhere/mlruns", "neither.*\n.*sqlite:////"),
        ("postgresql://me:pw@host/db", r"postgresql://\*\*\*@host/db is neither"),
        ("sqlite://", "names no database"),
        ("sqlite:///:memory:", "names no database"),
    ],
)
def test_an_address_that_keeps_no_runs_is_refused(uri: str, message: str) -> None:
    with pytest.raises(TrackingError, match=message) as caught:
        open_store(uri)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["100 %25 of a?b=c#d", 'it\'s "a" {donnée};&'])
def test_a_folder_of_any_name_holds_a_store_and_its_artifacts(tmp_path: Path, name: str) -> None:
    store = open_store(local_uri(tmp_path / name))
    with open_run(store, "flair2", "run", tmp_path / name / "unsent", tags={}) as run:
        run.log_text("here", "notes/a.txt")
    assert name in str(store)
    (path,) = (tmp_path / name).rglob("notes/a.txt")
    assert path.read_text("utf-8") == "here"
    assert [each.name for each in tmp_path.iterdir()] == [name]
    loaded = store.call("reading", lambda client: client.download_artifacts(run.run_id, "notes"))
    assert Path(loaded, "a.txt").read_text("utf-8") == "here"


@pytest.mark.parametrize("table", ["anything (a)", "experiments (id, name)", "studies (study_id)"])
def test_another_programs_database_stays_as_it_is(tmp_path: Path, table: str) -> None:
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE TABLE {table}")
    before = path.read_bytes()
    with pytest.raises(TrackingError, match="and stays as it is") as refusal:
        open_store(local_uri(tmp_path))
    assert len(str(refusal.value).splitlines()) == 2
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("folder", ["file", "/proc/flair2"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    reason = "Not a directory" if folder == "file" else ""
    with pytest.raises(TrackingError, match=rf"cannot be written.*{reason}.*\n.*paths\.mlflow"):
        open_store(local_uri(tmp_path / folder))


def test_a_file_that_is_not_a_database_is_refused_at_once_and_left_alone(tmp_path: Path) -> None:
    content = b"this is a text, not a database" * 100
    (tmp_path / "mlflow.db").write_bytes(content)
    begin = time.monotonic()
    with pytest.raises(TrackingError, match="not a SQLite database"):
        open_store(local_uri(tmp_path))
    assert time.monotonic() - begin < 5
    assert (tmp_path / "mlflow.db").read_bytes() == content


def test_a_database_of_another_mlflow_is_refused_with_its_fix(tmp_path: Path, store: Store) -> None:
    assert store.folder is not None
    source = sqlite3.connect(store.folder / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as copy:
        source.backup(copy)
        copy.execute("UPDATE alembic_version SET version_num='0123456789ab'")
    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        open_store(local_uri(tmp_path))


ERROR_500 = http_answer("500 Internal Server Error", b'{"error_code": "INTERNAL_ERROR"}')
WEB_PAGE = http_answer("200 OK", b"<html>Sign in</html>", "text/html")
NOT_FOUND = http_answer("404 Not Found", b"nothing here", "text/plain")
GARBAGE = b"SSH-2.0-OpenSSH_9.6\r\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "no answer within 0.5 s"),
        (ERROR_500, "status 500"),
        (WEB_PAGE, "not an MLflow server"),
        (NOT_FOUND, "status 404"),
        (GARBAGE, "does not answer as expected"),
    ],
)
def test_a_server_that_does_not_answer_as_mlflow_is_refused_in_time(
    answer: bytes | None, message: str
) -> None:
    with serving(answer) as address:
        uri = address.replace("//", "//somebody:hidden@")
        begin = time.monotonic()
        with pytest.raises(TrackingError, match=message) as caught:
            open_store(uri, timeout=0.5)
    assert time.monotonic() - begin < 5
    assert len(str(caught.value).splitlines()) == 2
    assert "hidden" not in str(caught.value)
    assert "tracking=local" in str(caught.value)


def test_a_port_where_nobody_listens_is_refused() -> None:
    with serving(b"") as address:
        pass
    with pytest.raises(TrackingError, match="connection refused"):
        open_store(address)


def test_a_server_that_wants_a_login_passes_the_check_and_fails_in_one_line() -> None:
    with serving(http_answer("401 Unauthorized", b"no", "text/plain")) as address:
        store = open_store(address.replace("//", "//me:pw@"), timeout=2)
        with pytest.raises(
            TrackingError, match=r"\*\*\*@.*making the experiment 'x'.*401"
        ) as caught:
            store.ensure_experiment("x")
    assert "pw" not in str(caught.value)


def test_time_limits_are_only_set_during_a_call_and_yield_to_the_users(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    assert store.call("looking", lambda client: os.environ[name]) == "8"
    assert name not in os.environ
    monkeypatch.setenv(name, "77")
    assert store.call("looking", lambda client: os.environ[name]) == "77"
    assert os.environ[name] == "77"


def test_a_run_that_ends_while_the_dead_are_looked_for_stays_as_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(local_uri(tmp_path))  # of its own: all of its open runs are taken for dead
    run = open_run(store, "flair2", "it", tmp_path / "pending", tags={})

    def ends_meanwhile(writer: WriterProcess, *, shared_store: bool) -> bool:
        run.finish()
        return True

    monkeypatch.setattr(WriterProcess, "has_ended", ends_meanwhile)
    assert store.close_dead_runs() == []
    ended = store.call("x", lambda client: client.get_run(run.run_id))
    assert ended.info.status == "FINISHED"


def test_only_runs_of_ended_processes_of_this_machine_are_closed(
    store: Store, start: Callable[..., Run]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    gone = {**WriterProcess.this().tags(), Tag.PID: str(process.pid)}
    process.wait()
    dead, elsewhere, mine, foreign = start(), start(), start(), start()
    store.call("x", lambda c: c.log_metric(dead.run_id, "loss", 1.0, timestamp=4_000_000_000_000))
    dead.set_tags(gone)
    elsewhere.set_tags({**gone, Tag.HOST: "another"})
    store.call("x", lambda client: client.delete_tag(foreign.run_id, Tag.PROCESS))
    assert store.close_dead_runs() == [dead.run_id]
    assert store.close_dead_runs() == []
    closed = store.call("x", lambda client: client.get_run(dead.run_id))
    assert closed.info.status == "KILLED"
    assert closed.info.end_time == 4_000_000_000_000  # its last sign of life
    assert f"process {process.pid} was killed" in closed.data.tags[Tag.ENDED]
    for run in (elsewhere, mine, foreign):
        info = store.call("x", lambda client, run=run: client.get_run(run.run_id)).info
        assert info.status == "RUNNING"
        run.finish()


def test_of_two_processes_that_close_a_run_in_one_moment_neither_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(local_uri(tmp_path))
    run = open_run(store, "flair2", "it", tmp_path / "pending", tags={})
    monkeypatch.setattr(WriterProcess, "has_ended", lambda *_, **__: True)

    def refused(*_: object) -> None:  # as SQLite does, where another writes the same row
        raise MlflowException("UNIQUE constraint failed: tags.key, tags.run_uuid")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_tag", refused)
        assert store.close_dead_runs() == []
    assert store.close_dead_runs() == [run.run_id]


def test_a_run_that_its_folder_knows_to_have_ended_is_closed_as_it_ended(
    store: Store, start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, killed = start(), start()
    ends = {finished.run_id: "FINISHED", killed.run_id: ""}
    monkeypatch.setattr(store, "recorded", lambda run_id, tags: ends.get(run_id, ""))
    monkeypatch.setattr(WriterProcess, "has_ended", lambda *_, **__: True)
    assert {*ends} <= {*store.close_dead_runs()}
    for run, status in ((finished, "FINISHED"), (killed, "KILLED")):
        kept = store.call("x", lambda client, run=run: client.get_run(run.run_id))
        assert kept.info.status == status


def test_a_locked_database_is_called_that(store: Store) -> None:
    def locked(client: object) -> None:
        raise RuntimeError("(raised as a result of Query-invoked autoflush)\ndatabase is locked")

    with pytest.raises(TrackingError, match="failed at waiting: database is locked"):
        store.call("waiting", locked)
