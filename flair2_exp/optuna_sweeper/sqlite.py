"""SQLite databases by their place, and whose they are; looking at one writes nothing.

SQLAlchemy's address of a database is not its path: which signs of a path it takes as they are has
changed between its versions (from 2.1 on `%20` is a blank, `?` begins options in all of them). Here
`sqlite:///PATH` is read as it is typed, and `address` says it in the words of the version at hand.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Set
from pathlib import Path
from typing import Final

PREFIX: Final = "sqlite:///"
_SMALLEST: Final = 512
"""Bytes of SQLite's smallest page: it takes a shorter file for an empty one."""
_OPTIONS: Final = re.compile(r"\?[^/?=]+=[^/?]*\Z")
"""What stands behind a path; a folder's name may hold a question mark, too."""


def path_of(url: str) -> Path | None:
    """Return the absolute path of the database that `sqlite:///PATH` names, with options or not.

    None where it names none: another scheme, no path, a database in memory.
    """
    text = _OPTIONS.sub("", url.partition(":///")[2])
    is_file = re.match(r"sqlite(\+\w+)?:///", url) and text and not text.startswith(":memory:")
    return Path(text).absolute() if is_file else None


def address(url: str) -> str:
    """Return the address by which SQLAlchemy finds the database that `sqlite:///PATH` names.

    Raises:
        ValueError: It has no address, in the version of SQLAlchemy that is installed.
    """
    from sqlalchemy.engine import make_url

    path, options = path_of(url), _OPTIONS.search(url)
    scheme, text = url.partition(":")[0], str(path)
    for named in (text, text.replace("%", "%25").replace("?", "%3F")):
        full = f"{scheme}:///{named}{options[0] if options else ''}"
        if path is not None and make_url(full).database == text:
            return full
    raise ValueError(f"{url} has no address")


def foreign(path: Path, table: str, columns: Set[str]) -> str:
    """Return what is at a path where a database of a known kind is to be, in words.

    Args:
        path: The database's.
        table: A table that each of its kind has.
        columns: What that table has at least.

    Returns:
        As `a folder` or `a database with other tables`; empty where the database is of this kind,
        or is yet to be made: there is no file, or an empty one.

    Raises:
        OSError: It cannot be read.
    """
    if not path.exists():
        return ""
    if not path.is_file():
        return "a folder" if path.is_dir() else "a device or a pipe"
    size = path.stat().st_size
    if size < _SMALLEST:
        return "not a SQLite database" if size else ""
    # Not by reading its head: to close a file of one's own frees the locks that this process has on
    # it, those of SQLite's other connections included, and another process would then remove the
    # log that they write to.
    log = Path(f"{path}-wal")  # what its writer has not moved into the database yet
    # Without a log no other file is looked at; else SQLite would leave an empty log beside it.
    mode = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True)) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            any_table = tables.fetchone() is not None
            present = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            return "not a SQLite database"
        raise OSError(f"{path} cannot be read: {error}") from error
    return "a database with other tables" if any_table and not columns <= present else ""
