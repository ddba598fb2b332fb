"""The records of a run that could not be sent, in a folder, until they can."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flair2_exp.files import write_text

_log = logging.getLogger(__name__)

Record = dict[str, Any]
"""Plain values: its `kind` (metrics, tags, artifact, text, status), and what that kind holds."""


class Pending:
    """Records in a folder: one JSON record per line, and copies of the files that they name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / "records.jsonl"
        self._sent = folder / "sent"
        self._count = sum(1 for _ in self.records())

    def __len__(self) -> int:
        return self._count

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield line number and record of what is not yet sent, oldest first, no torn lines."""
        if not self._lines.is_file():
            return
        sent = int(self._sent.read_text("utf-8")) if self._sent.is_file() else 0
        for number, line in enumerate(self._lines.read_text("utf-8").split("\n"), start=1):
            if number > sent and line:
                with contextlib.suppress(ValueError):
                    yield number, json.loads(line)

    def keep(self, record: Record) -> None:
        """Add a record; a file that it names is copied, since it may change or vanish."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if record["kind"] == "artifact":
                source = Path(record["file"])
                copy = self.folder / f"file-{time.time_ns()}" / source.name
                copy.parent.mkdir()
                shutil.copyfile(source, copy)
                record = {**record, "file": str(copy)}
            with self._lines.open(
                "a", encoding="utf-8"
            ) as file:  # a line break in front ends a torn line
                file.write(f"\n{json.dumps(record)}\n")
            self._count += 1
        except OSError as error:  # the disk is full as well: the training is worth more
            _log.warning("%s cannot be kept in %s: %s", record["kind"], self.folder, error.strerror)

    def mark_sent(self, line: int) -> None:
        """Remember that the record of that line, and all before it, are sent."""
        write_text(self._sent, str(line))
        self._count -= 1

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._count = 0
