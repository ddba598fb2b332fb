"""`flair2-exp download`: the published archives of FLAIR #2, fetched and unpacked."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from flair2_exp.cli.verbs import option, verb
from flair2_exp.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

_LISTING: Final = 128
"""Columns: wide enough for a whole MD5, also where the output is a pipe."""


@verb(
    "download",
    usage="""
    DEST --parts PART... [OPTIONS]
    --list
    """,
    examples="""
    flair2-exp download data/flair2 --parts all
    flair2-exp download data/flair2_toy --parts toy
    flair2-exp download data/flair2 --parts sen_train centroids --keep-archives
    """,
)
@click.argument("destination", required=False, type=click.Path(path_type=Path))
@option(
    "--parts", several=True, metavar="PART...", help="As --list names them, or all (without toy)."
)
@option("--base-url", default="", metavar="URL", help="A mirror (default: IGN's own).")
@option("--keep-archives", is_flag=True, help="Leave the .zip files once unpacked.")
@option("--list", "listing", is_flag=True, help="Show what is published and exit.")
def command(
    destination: Path | None,
    parts: tuple[str, ...],
    base_url: str,
    keep_archives: bool,
    listing: bool,
) -> None:
    """Download the published archives of FLAIR #2 to DEST and unpack them.

    Stopped at any point (Ctrl-C, a dropped line, a full disk), the same command resumes there; what
    is in place already it leaves alone.
    """
    from flair2_exp.data.download.archives import ARCHIVES

    if listing:
        from rich.console import Console

        console = Console(file=sys.stdout)
        console.width = max(console.width, _LISTING)
        console.print(_listing())
        return
    known = [*(archive.part for archive in ARCHIVES), "all"]
    unknown = [part for part in parts if part not in known]
    if destination is None or not parts:
        raise UsageError("name DEST, the folder to fill, and --parts: `--list` shows them.")
    if unknown:
        raise UsageError(f"--parts {unknown[0]}: expected {', '.join(known)}.")
    try:
        lines = _download(destination, parts, base_url, keep_archives)
    except KeyboardInterrupt:
        print("stopped; the same command resumes here.", file=sys.stderr)
        raise
    print("\n".join(lines))


def _download(
    destination: Path, parts: tuple[str, ...], base_url: str, keep_archives: bool
) -> list[str]:
    """Download with a bar for each archive's steps; return a line per archive."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from flair2_exp.data.download.archives import BASE_URL, download, select

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings show whole addresses
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    tasks: dict[tuple[str, str], TaskID] = {}
    console = Console(file=sys.stderr)
    with Progress(
        "{task.description}", *columns, console=console, disable=not console.is_terminal
    ) as bars:

        def report(name: str, step: str, done: int, total: int | None) -> None:
            if (name, step) not in tasks:
                tasks[name, step] = bars.add_task(f"{step} {name}")
            bars.update(tasks[name, step], completed=done, total=total)

        return list(
            download(
                destination,
                select(parts),
                base_url=base_url or BASE_URL,
                keep_archives=keep_archives,
                report=report,
            )
        )


def _listing() -> Table:
    """Return what is published, as a table."""
    from rich.table import Table

    from flair2_exp.data.download.archives import ARCHIVES

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
