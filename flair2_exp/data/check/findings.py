"""What a check says about a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, order=True)
class Finding:
    """One thing wrong with one file.

    Attributes:
        path: The file or folder.
        subject: The patch ("IMG_000001"), the area ("D004_2021/Z1_NN") or the part it belongs to.
        kind: What is wrong, as a stable word for programs, like `truncated-raster`.
        message: What is wrong, in words, with the offending value and what was expected.
        severity: `error`: a run that needs the file cannot use it. `warning`: worth knowing.
    """

    path: Path
    subject: str
    kind: str
    message: str
    severity: Severity = "error"


def file_problem(path: Path, subject: str) -> Finding | None:
    """Return what keeps a path from being a file with something in it; None where nothing does."""
    try:
        if path.is_symlink() and not path.exists():
            return Finding(path, subject, "broken-link", "a link to nowhere")
        if not path.exists():
            return Finding(path, subject, "missing-file", "is not there")
        if not path.is_file():
            return Finding(path, subject, "not-a-file", "is not a regular file")
        if path.stat().st_size == 0:
            return Finding(path, subject, "empty-file", "holds no byte")
    except OSError as error:
        return Finding(path, subject, "unreadable-file", f"cannot be read: {error.strerror}")
    return None


def some(values: list[str], count: int = 3) -> str:
    """Return the first few of some values, and how many more there are."""
    more = f" and {len(values) - count} more" if len(values) > count else ""
    return ", ".join(values[:count]) + more
