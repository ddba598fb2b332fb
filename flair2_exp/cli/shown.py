"""What verbs about runs have in common: tables, JSON, questions, and options of the same name."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from flair2_exp.errors import UsageError

NOTHING: Final = "–"

PLACE: Final = click.Path()
"""Type of a run or a sweep, which may be an id or a name instead: TAB offers paths."""

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
tracking_uri = click.option(
    "--tracking-uri", metavar="URI", default="",
    help="The MLflow store that knows a run's id (default: the local one, mlruns).",
)  # fmt: skip
yes = click.option("--yes", is_flag=True, help="Do it without asking.")


def print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    folded: Collection[str] | None = None,
) -> None:
    """Print a table: as wide as it is where the output is a file, within the width of a terminal.

    Args:
        head: The columns; those that begin with a blank hold numbers, and stand at the right.
        rows: Their texts.
        title: A line above it.
        folded: Columns that may take several lines where the terminal is narrow; None: all.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = None if sys.stdout.isatty() else 10_000
    console = Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for name in head:
        side: Any = "right" if name.startswith(" ") else "left"
        whole = folded is not None and name not in folded
        table.add_column(
            Text(name.strip(), style="bold"), justify=side, overflow="fold", no_wrap=whole
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    with console.capture() as capture:
        console.print(table)
    lines = [title] if title else []
    print("\n".join([*lines, *(line.rstrip() for line in capture.get().splitlines())]), flush=True)


def print_json(value: object) -> None:
    """Print a value as JSON; what is not a number is null, a path and a time are texts."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: object) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return str(value) if isinstance(value, Path) else value


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask, and return whether the answer is yes.

    Args:
        question: Without its mark.
        yes: It has been answered on the command line.

    Raises:
        UsageError: Nobody is there to be asked.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question}? Nobody can be asked here: add --yes.")
    return click.confirm(f"{question}?")
