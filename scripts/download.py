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
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from flair2_exp.data.download.archives import ARCHIVES, BASE_URL, download, select
from flair2_exp.errors import FlairError
from flair2_exp.streams import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    if options.list:
        # Wide enough for a whole MD5, also where the output is a pipe.
        Console(width=max(console.width, 128)).print(_listing())
        return 0
    if options.destination is None or not options.parts:
        parser.error("DEST and --parts are needed (or --list)")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings show whole addresses
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    tasks: dict[tuple[str, str], TaskID] = {}
    try:
        with Progress(
            "{task.description}", *columns, console=console, disable=not console.is_terminal
        ) as progress:

            def report(name: str, step: str, done: int, total: int | None) -> None:
                if (name, step) not in tasks:
                    tasks[name, step] = progress.add_task(f"{step} {name}")
                progress.update(tasks[name, step], completed=done, total=total)

            lines = download(
                options.destination,
                select(options.parts),
                base_url=options.base_url,
                keep_archives=options.keep_archives,
                report=report,
            )
    except FlairError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command resumes here.", file=sys.stderr)
        return 130
    print("\n".join(lines))
    return 0


def _listing() -> Table:
    """Return what is published, as a table."""
    table = Table("part", "archive", "size", "unpacked, about", "MD5")
    for archive in ARCHIVES:
        size, unpacked = (
            f"{count / 1e9:.2f} GB" if count else "not published"
            for count in (archive.size, archive.unpacked)
        )
        table.add_row(
            archive.part, f"{archive.name}.zip", size, unpacked, archive.md5 or "not published"
        )
    return table


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
        choices=[*(archive.part for archive in ARCHIVES), "all"],
        metavar="PART",
        help="%(choices)s (without the toy set)",
    )
    parser.add_argument("--base-url", default=BASE_URL, help="a mirror (default: %(default)s)")
    parser.add_argument(
        "--keep-archives", action="store_true", help="leave the .zip files once unpacked"
    )
    parser.add_argument("--list", action="store_true", help="show what is published and exit")
    return parser


if __name__ == "__main__":
    run(main)
