"""What a check says about a file."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

Severity = Literal["error", "warning"]
Content = TypeVar("Content")


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


@dataclass(frozen=True)
class Entry:
    """A file or folder under check.

    Attributes:
        path: Where it is, or should be.
        subject: As in `Finding`.
        findings: Receives what is wrong with it.
    """

    path: Path
    subject: str
    findings: list[Finding]

    def error(self, kind: str, message: str) -> None:
        """Report what keeps a run from using it."""
        self.findings.append(Finding(self.path, self.subject, kind, message))

    def warn(self, kind: str, message: str) -> None:
        """Report what is worth knowing."""
        self.findings.append(Finding(self.path, self.subject, kind, message, "warning"))

    def read(
        self, reader: Callable[[Path], Content], unreadable: str, truncated: str = ""
    ) -> Content | None:
        """Return what a reader makes of the file; None, and an error, where that is nothing.

        Args:
            reader: Raises EOFError for a file that ends too early, ValueError for another content.
            unreadable: The kind of the error for a ValueError.
            truncated: The kind of the error for an EOFError, where the reader raises it.
        """
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                self.error("not-a-file", "is not a regular file")
            elif status.st_size == 0:
                self.error("empty-file", "holds no byte")
            else:
                return reader(self.path)
        except FileNotFoundError:
            if self.path.is_symlink():
                self.error("broken-link", "a link to nowhere")
            else:
                self.error("missing-file", "is not there")
        except EOFError as error:
            self.error(truncated, str(error))
        except ValueError as error:
            self.error(unreadable, f"cannot be read: {str(error)[:200]}")
        except OSError as error:
            self.error("unreadable-file", f"cannot be read: {error.strerror}")
        return None
