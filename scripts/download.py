"""Download the published archives of FLAIR #2 and unpack them.

    python scripts/download.py data/flair2 --parts all
    python scripts/download.py data/flair2_toy --parts toy
    python scripts/download.py data/flair2 --parts sen_train centroids --keep-archives

Stopped at any point (Ctrl-C, a dropped line, a full disk), the same command resumes there;
what is in place already it leaves alone. Exit status: 0 done, 1 failed, 2 wrong usage, 130
stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from flair2_exp.data.download.archives import ARCHIVES, BASE_URL, download, select
from flair2_exp.errors import FlairError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    if options.list:
        # Wide enough for a whole MD5, also where the output is a pipe.
        Console(width=max(console.width, 128)).print(_listing())
        return 0
    if options.destination is None or not options.parts:
        _parser().error("DEST and --parts are needed (or --list)")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        archives = select(options.parts)
    except FlairError as error:
        _parser().error(str(error))
    try:
        with _bars(console) as progress:
            outcomes = download(
                options.destination,
                archives,
                base_url=options.base_url,
                keep_archives=options.keep_archives,
                report=_Reporter(progress),
            )
    except FlairError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command resumes here.", file=sys.stderr)
        return 130
    for outcome in outcomes:
        done = "unpacked to" if outcome.unpacked else "there already:"
        print(f"{outcome.archive}: {done} {', '.join(outcome.places)}")
    return 0


class _Reporter:
    """One bar for each archive and step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, name: str, step: str, done: int, total: int | None) -> None:
        key = name, step
        if key not in self.tasks:
            self.tasks[key] = self.progress.add_task(f"{step} {name}")
        self.progress.update(self.tasks[key], completed=done, total=total)


def _bars(console: Console) -> Progress:
    """Return progress bars on a terminal, nothing elsewhere."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _listing() -> Table:
    """Return what is published, as a table."""
    table = Table("part", "archive", "size", "unpacked, about", "MD5")
    for archive in ARCHIVES:
        table.add_row(
            archive.part,
            f"{archive.name}.zip",
            _gigabytes(archive.size),
            _gigabytes(archive.unpacked),
            archive.md5 or "not published",
        )
    return table


def _gigabytes(size: int | None) -> str:
    return "not published" if size is None else f"{size / 1e9:.2f} GB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="download.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("destination", metavar="DEST", type=Path, nargs="?", help="folder to fill")
    parser.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        help=f"{', '.join(archive.part for archive in ARCHIVES)}, or all (without the toy set)",
    )
    parser.add_argument("--base-url", default=BASE_URL, help="a mirror (default: %(default)s)")
    parser.add_argument(
        "--keep-archives", action="store_true", help="leave the .zip files once unpacked"
    )
    parser.add_argument("--list", action="store_true", help="show what is published and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
