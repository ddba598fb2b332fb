"""Files that appear whole: written beside their place, then moved into it.

A process that is killed while it writes leaves the file as it was, and that is what others read
meanwhile; of several processes that write one file, the last one wins. This protects against the
end of a process, not against a loss of power: nothing waits for the disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
