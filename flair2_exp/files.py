"""Files that appear whole: written beside their place, then moved into it.

A process that is killed while it writes leaves the file as it was, and that is what others read
meanwhile; of several processes that write one file, the last one wins. This protects against the
end of a process, not against a loss of power: nothing waits for the disk.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LONGEST_NAME: Final = 255
"""Bytes that file systems take for the name of one file or folder."""

_LONGEST_PATH: Final = 3800  # bytes; the system takes 4095, with the names that a run adds


def unusable(path: str, *, look: bool = True) -> str:
    """Return why no file or folder can have a path, or why what is there is neither.

    Args:
        path: Relative or absolute.
        look: Whether what is there counts; else the name alone does.

    Returns:
        A reason that follows a colon; empty where nothing speaks against the path.
    """
    if has_control_characters(path):
        return "the name holds a line break or another control character"
    longest = max((_bytes(part) for part in path.split("/")), default=0)
    if longest > LONGEST_NAME:
        return f"a name of {longest} bytes, where file systems take {LONGEST_NAME}"
    if _bytes(path) > _LONGEST_PATH:
        return f"a path of {_bytes(path)} bytes, where at most {_LONGEST_PATH} can be used"
    if not look:
        return ""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # not there, or not to be seen: whoever opens it says so
        return ""
    # To read a FIFO or a device may take for ever; what is written to a device is gone.
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "this is not a file or a folder"


def nearest_existing(path: Path) -> Path:
    """Return a path, or the nearest of its parents that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def has_control_characters(text: str) -> bool:
    """Return whether a text holds line breaks, escapes or other characters that are not shown."""
    return any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in text)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


_FRESH: Final = re.compile(r"\..+\.[0-9a-f]{8}")


def half_written(folder: Path) -> list[Path]:
    """Return the files below a folder that killed processes left half written (`replacing`)."""
    return sorted(
        path for path in folder.rglob(".*.*") if _FRESH.fullmatch(path.name) and path.is_file()
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under another name, which becomes `path` at the end of the context.

    Args:
        path: The file; its folder is made where it is missing. An earlier file stays untouched
            where the context is left by an exception.

    Yields:
        The path to write to: hidden, in the same folder, and another one for every caller, also on
        other machines. Its suffix is not that of `path`, so that no search for such files finds
        what a killed process left: a library that goes by the suffix needs an open file or a
        format.

    Raises:
        OSError: The folder cannot be made, or the file cannot be moved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one step; its folder is made where it is missing.

    Raises:
        OSError: It cannot be written; one that was there is as it was.
    """
    with replacing(path) as fresh:
        fresh.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text in one step, as UTF-8 whatever the locale, its line ends as they are.

    The parts of file names that are not text, which Python keeps as lone surrogates, are escaped.

    Raises:
        OSError: As `write_bytes`.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))
