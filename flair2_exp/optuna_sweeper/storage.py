"""Where a study is kept: a journal file, SQLite or a database server.

A storage is named by one text: a path (a journal file, the default) or a database's URL. A URL
holds no password: PostgreSQL's own library reads `PGPASSWORD` or the file `PGPASSFILE`, for any
other database `OPTUNA_STORAGE_PASSWORD` is put in when connecting. So the name may stand in logs,
configs and tickets.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import optuna.exceptions
import sqlalchemy
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from . import sqlite
from .errors import SweepError

STORAGE_ERRORS: Final = (OptunaError, SQLAlchemyError, OSError)
"""What a storage raises that is away, or refuses."""
# Its own class came with Optuna 4.2; it is a RuntimeError, and was one before.
ALREADY_FINISHED: Final[type[Exception]] = getattr(
    optuna.exceptions, "UpdateFinishedTrialError", RuntimeError
)
"""What a storage raises when a finished trial is to be changed."""
PASSWORD_VARIABLE: Final = "OPTUNA_STORAGE_PASSWORD"
# Up to the last @ of the word, or the next one: SQLAlchemy takes a password with / ? and blanks,
# and one who forgot to quote an @ shall not find the rest in the log.
_PASSWORD: Final = re.compile(r"(://[^/@:\s]*):(?:\S*|[^@]*)@")
_SECRET_QUERY: Final = re.compile(
    r"([?&][^=&\s]*(?:password|passwd|pwd|token|secret)[^=&\s]*=)[^&\s]*", re.IGNORECASE
)
_HEAD: Final = b'{"op_code":'
"""How each record of a journal begins, also half a one."""
_RECORD: Final = re.compile(re.escape(_HEAD) + rb"\d")
_SQLITE_BUSY_SECONDS: Final = 60  # as long as a slow disk may keep another worker's write waiting
# Several workers that start together on an empty database create its tables at the same time; all
# but one fail and find them there the next time.
_ATTEMPTS: Final = 5

_open: dict[tuple[int, str], BaseStorage] = {}


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of a journal: the kernel's, so that it is free again when its owner is killed.

    Optuna's own lock files outlive a killed process, and every other worker then waits half a
    minute. Not for network file systems without working locks (NFS before version 4).
    """
    with open(f"{path}.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cut_half_record(path: str) -> None:
    """Cut off what a process that was killed in the middle of a write left at the journal's end.

    Whoever writes next would make the study unreadable.
    """
    with open(path, "rb+") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


class _Journal(JournalFileBackend):
    """A journal that waits for the disk once per trial, when its outcome is written.

    Optuna's own waits after every record, some ten times a trial. What a process has written
    outlives the process; only a machine that loses power may lose a trial that still ran.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records that no other process writes between."""
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        with locked(self._path):
            _cut_half_record(self._path)
            with open(self._path, "ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                if any("state" in log and TrialState(log["state"]).is_finished() for log in logs):
                    os.fsync(file.fileno())


def resolve(storage: str | None, folder: Path) -> str:
    """Return the storage's full name, an absolute path or a URL; None is a journal in the folder.

    Raises:
        SweepError: The URL holds a password.
    """
    if storage is None:
        return str((folder / "optuna.journal").absolute())
    if "://" not in storage:
        return str(Path(storage).expanduser().absolute())
    if _PASSWORD.search(storage) or _SECRET_QUERY.search(storage) or _has_password(storage):
        raise SweepError(
            f"storage {redact(storage)}: a password in a URL ends up in logs and configs. "
            f"Omit it; set PGPASSWORD or PGPASSFILE (PostgreSQL) or {PASSWORD_VARIABLE}."
        )
    if storage.startswith("sqlite"):
        return _absolute_sqlite(storage)
    return storage


def _has_password(storage: str) -> bool:
    """Return whether SQLAlchemy, which has its own idea of where a password ends, finds one."""
    try:
        return make_url(storage).password is not None
    except (ArgumentError, ValueError):  # a port that is not a number
        return False


def _absolute_sqlite(storage: str) -> str:
    """Return the URL with an absolute path: a job may run in a folder of its own."""
    path = sqlite.path_of(storage)
    if path is None:
        raise SweepError(
            f"storage {storage}: a database in memory is seen by no other process; "
            "expected sqlite:///file.db."
        )
    scheme, _, text = storage.partition(":///")
    return f"{scheme}:///{Path(text).absolute()}"


def redact(text: str) -> str:
    """Return `text` without what could be a password in a URL."""
    text = _PASSWORD.sub(r"\1:***@", text)
    return _SECRET_QUERY.sub(r"\1***", text)


def open_storage(name: str, timeout: float = 10.0) -> BaseStorage:
    """Open a storage by its full name; within one process each is opened once.

    Raises:
        SweepError: It does not answer in time, or refuses.
    """
    key = (os.getpid(), name)
    if key in _open:
        return _open[key]
    try:
        with errors_in_one_line(name):
            _open[key] = _connect(name, timeout)
    except (ValueError, KeyError, AssertionError, TypeError):  # what a foreign file leads Optuna to
        raise SweepError(
            f"storage {redact(name)} holds no studies. Give the path of a new file, or a database "
            "URL such as sqlite:///studies.db."
        ) from None
    except RuntimeError as error:  # tables of another version of Optuna
        raise SweepError(f"storage {redact(name)}: {explain(error)}") from None
    return _open[key]


def require_usable(name: str, timeout: float = 10.0) -> None:
    """Refuse a storage that is away, or is something else; write nothing.

    Raises:
        SweepError: It could not be opened, or what is there belongs to another program.
    """
    with errors_in_one_line(name):
        _require_own(name)
        if "://" in name and sqlite.path_of(name) is None:
            url = _driver_url(name)
            _within(timeout, name, lambda: _knock(url, _engine_options(url, timeout)))


def _require_own(name: str) -> None:
    if fault := _foreign(name):
        raise SweepError(
            f"storage {redact(name)} is {fault}, and stays as it is. Give the path of a new file, "
            "of a journal of Optuna's, or a database URL such as sqlite:///studies.db."
        )


def _connect(name: str, timeout: float) -> BaseStorage:
    _require_own(name)
    if "://" not in name:
        _within(timeout, name, lambda: Path(name).parent.mkdir(parents=True, exist_ok=True))
        return JournalStorage(_Journal(name))
    url = _driver_url(name)
    options = _engine_options(url, timeout)
    _within(timeout, name, lambda: _knock(url, options))
    return _database(url, options)


def _foreign(name: str) -> str:
    """Return what the storage's file is, in words, where it is not a storage; else an empty text.

    Looked at before anything is written: to a journal's end records are appended, half a record
    there is cut off, and a database gets tables.
    """
    if "://" not in name:
        return "" if _is_journal(Path(name)) else _kind_of(Path(name))
    path = sqlite.path_of(name)
    if path is None:
        return ""
    for _ in range(_ATTEMPTS):
        fault = sqlite.foreign(path, "studies", {"study_id", "study_name"})
        if not fault:
            break
        time.sleep(0.1)  # another worker may be making its tables
    return fault


def _kind_of(path: Path) -> str:
    if path.is_file():
        return "not a journal of Optuna's"
    return "a folder" if path.is_dir() else "a device or a pipe"


def _is_journal(path: Path) -> bool:
    """Return whether a path is that of a journal, whose last record may be half, or of a new one.

    Each record is a line, an object of JSON that begins with its code.
    """
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if not _HEAD.startswith(file.read(len(_HEAD))):  # whose first line may be very long
            return False
        file.seek(0)
        return all(_RECORD.match(line) or _HEAD.startswith(line) for line in file)


def _within(timeout: float, name: str, work: Callable[[], None]) -> None:
    """Do `work` in time; a database may keep a connection waiting past its own time-outs."""
    end: Future[None] = Future()

    def call() -> None:
        try:
            work()
            end.set_result(None)
        except BaseException as error:  # raised below, in the thread that waits
            end.set_exception(error)

    threading.Thread(target=call, daemon=True, name="storage").start()
    if end not in wait([end], timeout).done:
        raise SweepError(
            f"storage {redact(name)} does not answer within {timeout:g} s. Is the server running, "
            "and can this machine reach it?"
        )
    if error := end.exception():
        raise SweepError(f"storage {redact(name)}: {explain(error)}") from None


def explain(error: BaseException) -> str:
    """Return the root of a storage's error in one line, without passwords."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact(lines[0]) if lines else type(error).__name__


@contextmanager
def errors_in_one_line(name: str) -> Iterator[None]:
    """Make a `SweepError` of one line of whatever a storage raises in this context."""
    try:
        yield
    except STORAGE_ERRORS as error:
        raise SweepError(f"storage {redact(name)}: {explain(error)}") from None


def _engine_options(url: URL, timeout: float) -> dict[str, Any]:
    """Return what SQLAlchemy's engine is made with."""
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": _SQLITE_BUSY_SECONDS}
    elif url.get_backend_name() == "postgresql":
        # Whole seconds, at least 2 for libpq, and a host name may stand for two addresses.
        options["connect_args"] = {"connect_timeout": max(2, int(timeout / 2))}
    return options


def _knock(url: URL, options: dict[str, Any]) -> None:
    """Connect and go: making tables may take its time, behind other workers; answering may not."""
    engine = sqlalchemy.create_engine(url, **options)
    engine.connect().close()
    engine.dispose()


def _database(url: URL, options: dict[str, Any]) -> BaseStorage:
    text = url.render_as_string(hide_password=False)
    for attempt in range(_ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                storage = RDBStorage(text, engine_kwargs=options)
            break
        except (DBAPIError, StorageInternalError) as error:
            if attempt == _ATTEMPTS - 1 or not _is_creation_race(error):
                raise
            time.sleep(0.2 * (attempt + 1))
    if url.get_backend_name() == "sqlite":
        _serialise(storage.engine)
    return get_storage(storage)


def _is_creation_race(error: BaseException) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("already exists", "duplicate key", "unique", "locked"))


def _driver_url(name: str) -> URL:
    try:
        url = make_url(sqlite.address(name) if name.startswith("sqlite") else name)
        if url.drivername == "postgresql" and importlib.util.find_spec("psycopg"):
            url = url.set(drivername="postgresql+psycopg")
        url.get_dialect().import_dbapi()
    except ArgumentError:
        raise SweepError(
            f"storage {redact(name)} is not a database URL that SQLAlchemy knows; expected a path, "
            "sqlite:///file.db or postgresql://user@host/database."
        ) from None
    except ImportError as error:
        hint = " (pip install 'psycopg[binary]')" if "postgresql" in name else ""
        raise SweepError(
            f"storage {redact(name)}: its driver is not installed: {error}{hint}."
        ) from None
    password = os.environ.get(PASSWORD_VARIABLE)
    if password and url.get_backend_name() not in ("postgresql", "sqlite"):
        url = url.set(password=password)
    return url


def _serialise(engine: Engine) -> None:
    """Make every transaction of SQLite take the write lock at its start.

    By default it takes none until it writes, so two workers could read that a trial waits and both
    take it.
    """

    def connect(connection: DBAPIConnection, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        connection.cursor().execute("PRAGMA journal_mode=WAL")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()
    sqlalchemy.event.listen(engine, "connect", connect)
    sqlalchemy.event.listen(engine, "begin", begin)
