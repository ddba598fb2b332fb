"""Looking at a SQLite database leaves it, and whoever has it open, as they are."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flair2_exp.optuna_sweeper.sqlite import foreign

_USE = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM runs').fetchall()"


def test_a_look_leaves_the_locks_of_an_open_connection_in_place(tmp_path: Path) -> None:
    path, log = tmp_path / "a.db", tmp_path / "a.db-wal"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE runs (id INTEGER)")
        assert foreign(path, "runs", {"id"}) == ""
        # Another process comes and goes; were it the last one, it would remove the log.
        subprocess.run([sys.executable, "-c", _USE, str(path)], check=True)
        assert log.exists()
        connection.execute("INSERT INTO runs VALUES (1)")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM runs").fetchall() == [(1,)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"", ""),
        (b"SQLite format 4\0" + bytes(1000), "not a SQLite database"),
        (b"x", "not a SQLite database"),
        (b"%PDF-1.7 " * 1000, "not a SQLite database"),
    ],
)
def test_a_file_that_is_no_database_is_recognised(
    content: bytes, answer: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    assert foreign(path, "runs", {"id"}) == answer
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_database_of_another_kind_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
        connection.commit()
    assert foreign(path, "runs", {"id"}) == "a database with other tables"
    assert foreign(path, "runs", {"name"}) == ""
    assert foreign(tmp_path, "runs", {"name"}) == "a folder"
    assert foreign(tmp_path / "absent", "runs", {"name"}) == ""
