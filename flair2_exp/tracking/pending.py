"""The records of a run that could not be sent, in a folder, until they can."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flair2_exp.files import write_text

_log = logging.getLogger(__name__)

Record = dict[str, Any]
"""Plain values: its `kind` (metrics, tags, artifact, text, status), and what that kind holds."""


class Pending:
    """Records in a folder: one JSON record per line, and copies of the files that they name.

    Args:
        folder: Made when the first record is kept.
        target: Where the records are to go, noted beside them.

    Attributes:
        torn: How many lines hold no record: a process was killed while it wrote them.
    """

    def __init__(self, folder: Path, target: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._lines = folder / "records.jsonl"
        self._sent = folder / "sent"
        self._target = folder / "target.json"
        self._new_target = dict(target or {})
        self._sent_now: set[int] = set()
        self._count, self.torn = 0, 0
        for _, record in self._read():
            if record is None:
                self.torn += 1
            else:
                self._count += 1

    def __len__(self) -> int:
        return self._count

    @property
    def target(self) -> dict[str, str]:
        """Where the records are to go, as it was noted; empty where it was not."""
        try:
            values = json.loads(self._target.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield line number and record of what is not yet sent, oldest first, no torn lines."""
        for number, record in self._read():
            if record is not None:
                yield number, record

    def _read(self) -> Iterator[tuple[int, Record | None]]:
        """Yield what is not yet sent by its line number; None for a torn line."""
        if not self._lines.is_file():
            return
        sent = self._sent_lines()
        text = self._lines.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.split("\n"), start=1):
            if line and number not in sent:
                yield number, self._record(line)

    def _sent_lines(self) -> set[int]:
        if not self._sent.is_file():
            return self._sent_now
        # The last line is whole only with its line break.
        whole = self._sent.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        return self._sent_now | {int(line) for line in whole if line.isdecimal()}

    def _record(self, line: str) -> Record | None:
        try:
            record = json.loads(line)
        except ValueError:
            return None
        if not isinstance(record, dict) or "kind" not in record:
            return None
        if "file" in record:  # the copy is named from here: the folder may have moved
            copy = (self.folder / record["file"]).resolve()
            if not copy.is_relative_to(self.folder.resolve()):  # a folder may be somebody else's
                return None
            record["file"] = str(copy)
        return record

    def keep(self, record: Record) -> None:
        """Add a record; a file that it names is copied, since it may change or vanish."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._new_target and not self._target.exists():
                write_text(self._target, json.dumps(self._new_target) + "\n")
            if record["kind"] == "artifact":
                source = Path(record["file"])
                copy = self.folder / f"file-{time.time_ns()}" / source.name
                copy.parent.mkdir()
                shutil.copyfile(source, copy)
                record = {**record, "file": str(copy.relative_to(self.folder))}
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(record)}\n")  # a line break in front ends a torn line
            self._count += 1
        except OSError as error:  # the disk is full as well: the training is worth more
            _log.warning("%s cannot be kept in %s: %s", record["kind"], self.folder, error.strerror)

    def mark_sent(self, line: int) -> None:
        """Remember that the record of that line is sent."""
        self._sent_now.add(line)
        self._count -= 1
        # On a full disk it is sent again by the next process: nothing is stored twice.
        with contextlib.suppress(OSError), self._sent.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._count = self.torn = 0
        self._sent_now.clear()
