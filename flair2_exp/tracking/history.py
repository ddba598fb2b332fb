"""The table of a training on the disk: one row per epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from flair2_exp.files import write_text


class History:
    """A CSV table with one row per epoch: `epoch` (from 1), train/…, val/…, then the rest.

    Values of an epoch are gathered until a `train/` metric comes, which Lightning sends last;
    a validation or test outside training therefore makes no row. The file is replaced as a whole,
    so it is never torn. A training that resumes from an earlier epoch replaces the rows from there
    on.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows = self._read()
        self._waiting: dict[int, dict[str, float]] = {}
        self._first = True

    @property
    def rows(self) -> dict[int, dict[str, float]]:
        """The metrics by name of each epoch, counted from 1, that the file held or that came."""
        return self._rows

    def _read(self) -> dict[int, dict[str, float]]:
        rows: dict[int, dict[str, float]] = {}
        if not self.path.is_file():
            return rows
        with self.path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    epoch = int(row.pop("epoch"))
                    rows[epoch] = {name: float(text) for name, text in row.items() if text}
                except (KeyError, TypeError, ValueError):  # a line edited by hand
                    continue
        return rows

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of an epoch; write its row once training metrics are among them."""
        own = {n: float(v) for n, v in metrics.items() if not n.startswith("test/")}
        self._waiting.setdefault(epoch, {}).update(own)
        if not any(name.startswith("train/") for name in own):
            return
        if self._first:  # what a longer training left behind, before it was set back to here
            self._rows = {number: row for number, row in self._rows.items() if number < epoch}
            self._first = False
        self._rows.setdefault(epoch, {}).update(self._waiting.pop(epoch))
        self._write()

    def _write(self) -> None:
        order = {"train": 0, "val": 1}
        names = sorted(
            {name for row in self._rows.values() for name in row},
            key=lambda name: (order.get(name.partition("/")[0], 2), name),
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, ["epoch", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"epoch": epoch, **self._rows[epoch]} for epoch in sorted(self._rows))
        write_text(self.path, text.getvalue())
