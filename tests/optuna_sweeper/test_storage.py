from __future__ import annotations

import contextlib
import gzip
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from flair2_exp.optuna_sweeper import SweepError, storage
from flair2_exp.optuna_sweeper.storage import locked, open_storage, redact, resolve

SECRET = "hunter2"
ODD_NAMES = ["100 %", "100%25", "a?b", "a?b=c", "a#b", "it's", 'a "b"', "données", "{x}", "a;b&c"]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{SECRET}@host/db",
        f"postgresql+psycopg://user:{SECRET}@host:5432/db",
        f"mysql://:{SECRET}@host/db",
        f"postgresql://host/db?user=a&password={SECRET}",
        f"postgresql://host/db?sslpassword={SECRET}",
        f"postgresql://me:se/{SECRET}@host/db",
        f"postgresql://me:se?{SECRET}@host/db",
        f"postgresql://me:se {SECRET}@host/db",
        f"postgresql://me:se@{SECRET}@host/db",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(SweepError, match="PGPASSFILE") as caught:
        resolve(url, tmp_path)
    assert SECRET not in str(caught.value)
    assert SECRET not in redact(f"cannot connect to {url} now")


@pytest.mark.parametrize("url", ["postgresql://user@host:5432/db", "postgresql://host/db?a=b"])
def test_a_url_without_password_stays_as_it_is(tmp_path: Path, url: str) -> None:
    assert resolve(url, tmp_path) == url == redact(url)


def test_paths_are_absolute_wherever_a_job_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(None, Path("sweep")) == str(tmp_path / "sweep" / "optuna.journal")
    assert resolve("a/b.journal", tmp_path / "sweep") == str(tmp_path / "a" / "b.journal")
    assert resolve("sqlite:///a.db", tmp_path / "sweep") == f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(SweepError, match="seen by no other process"):
        resolve("sqlite:///:memory:", tmp_path)


def test_a_server_that_does_not_answer_is_told_in_time() -> None:
    """It takes the connection and stays silent, which no refused connection shows."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"postgresql://me@127.0.0.1:{server.getsockname()[1]}/db"
        start = time.monotonic()
        with pytest.raises(SweepError) as caught:
            open_storage(url, timeout=1.0)
    assert time.monotonic() - start < 3
    assert len(str(caught.value).splitlines()) == 1
    assert url in str(caught.value)


def test_a_closed_port_is_told_in_one_line() -> None:
    pytest.importorskip("psycopg", reason="the extra `postgres`")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    with pytest.raises(SweepError, match=r"connection .*failed|refused") as caught:
        open_storage(f"postgresql://me@127.0.0.1:{port}/db")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nosuch://host/db", "not a database URL"),
        ("postgresql+nosuch://host/db", "not a database URL|not installed"),
        ("sqlite:////proc/nowhere/study.db", "unable to open"),
    ],
)
def test_a_wrong_url_is_told_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(SweepError, match=reason) as caught:
        open_storage(name)
    assert len(str(caught.value).splitlines()) == 1


RECORD = b'{"op_code":0,"worker_id":"a","study_name":"s","directions":[2]}\n'
FOREIGN = {
    "text": b"these are\nno records\n",
    "text of one line": b"no record",
    "blank line": b"\n",
    "binary": bytes(range(256)) * 9,
    "list": b"[1, 2, 3]\n",
    "one line of JSON": b'{"a": 1}',
    "other records": b'{"op_code":"add"}\n',
    "number": b"5",
    "csv": b"a,b\n1,2",
    "gz": gzip.compress(RECORD),
    "journal with a foreign line": RECORD + b"a note\n" + RECORD,
    "journal with a foreign end": RECORD + b"a note",
}


def _tree(folder: Path) -> dict[str, bytes | None]:
    """All paths below a folder, with the content of files."""
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def _refused_as_it_is(path: Path, folder: Path) -> None:
    """Neither as a journal nor as a database is this opened, and nothing is written."""
    before = _tree(folder)
    for name in (str(path), f"sqlite:///{path}"):
        with pytest.raises(SweepError, match="and stays as it is") as caught:
            open_storage(resolve(name, folder))
        assert len(str(caught.value).splitlines()) == 1
        assert _tree(folder) == before


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_a_storage_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    _refused_as_it_is(path, tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    _refused_as_it_is(link, tmp_path)


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
@pytest.mark.parametrize("table", ["anything (a)", "studies (id, name)"])
def test_another_programs_database_stays_as_it_is(
    tmp_path: Path, table: str, journal_mode: str
) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA journal_mode={journal_mode}")
        database.execute(f"CREATE TABLE {table}")
    _refused_as_it_is(path, tmp_path)


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    start = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/null"), Path("/dev/zero")):
        _refused_as_it_is(path, tmp_path)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("content", [b"", b'{"op', RECORD[:12], RECORD, RECORD + RECORD[:30]])
def test_a_journal_that_is_new_or_was_cut_is_opened(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    optuna.create_study(study_name="new", storage=open_storage(str(path)))
    assert path.read_bytes().startswith(RECORD if RECORD in content else b'{"op_code":0')


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_of_any_name_holds_a_study(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for text in (str(folder / "journal"), f"sqlite:///{folder}/study.db"):
        opened = open_storage(resolve(text, tmp_path))
        optuna.create_study(study_name="s", storage=opened)
    assert {"journal", "study.db"} <= set(os.listdir(folder))
    assert os.listdir(tmp_path) == [name]


def test_a_folder_without_rights_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SweepError, match=r"Not a directory|File exists") as caught:
        open_storage(str(tmp_path / "file" / "study.journal"))
    assert len(str(caught.value).splitlines()) == 1


def test_half_a_record_at_the_end_does_not_spoil_the_study(tmp_path: Path) -> None:
    name = str(tmp_path / "journal")
    study = optuna.create_study(study_name="s", storage=open_storage(name))
    study.add_trial(optuna.create_trial(value=1.0))
    with open(name, "ab") as file:
        file.write(b'{"op_code":4,"worker_id":"killed whi')
    storage._open.clear()
    study = optuna.load_study(study_name="s", storage=open_storage(name))
    study.add_trial(optuna.create_trial(value=2.0))
    # Optuna's own backend reads what is there now.
    read = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(name)))
    assert [trial.value for trial in read.trials] == [1.0, 2.0]


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.touch()
    code = (
        "import os, signal\n"
        "from flair2_exp.optuna_sweeper.storage import locked\n"
        f"with locked({str(path)!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    start = time.monotonic()
    with locked(str(path)):
        pass
    assert time.monotonic() - start < 1


def _append(name: str, count: int) -> None:
    study = optuna.load_study(study_name="s", storage=open_storage(name))
    for _ in range(count):
        study.add_trial(optuna.create_trial(value=float(os.getpid())))


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_processes_that_write_at_once_lose_nothing(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "study") if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=open_storage(name))
    context = multiprocessing.get_context("fork")  # a fork opens connections of its own
    processes = [context.Process(target=_append, args=(name, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    storage._open.clear()
    trials = optuna.load_study(study_name="s", storage=open_storage(name)).trials
    assert len(trials) == 60
    assert [trial.number for trial in trials] == list(range(60))
    assert {trial.value for trial in trials} == {float(p.pid or 0) for p in processes}
