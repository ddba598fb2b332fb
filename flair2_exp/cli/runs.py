"""`flair2-exp runs`: a table of runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from flair2_exp.cli import shown
from flair2_exp.cli.verbs import verb
from flair2_exp.results import table
from flair2_exp.results.table import Entry

_SHOWN: Final = (
    "name", "seed", "status", "model", "dataset", "test/miou", "best/val/miou", "epoch", "seconds",
    "folder",
)  # fmt: skip
_SHARED: Final = ("model", "dataset")
"""Columns of which a common value is said once, below the table."""
_FURTHER: Final = 4
"""Options that differ and are shown without being asked for."""


@verb(
    "runs",
    examples="""
    flair2-exp runs                          # all below outputs/ and multirun/
    flair2-exp runs leaderboard --sort name  # of one sweep, or of any folder
    flair2-exp runs --where model=utt --where 'test/miou>=0.5' --where seed=1,2
    flair2-exp runs --columns name,optimizer.lr,test/miou,test/iou/water
    flair2-exp runs --where status=failed --json | jq -r '.[].folder'
    """,
)
@click.argument("folders", nargs=-1, metavar="[FOLDER|SWEEP]...", type=shown.PLACE)
@click.option(
    "--where", "conditions", multiple=True, metavar="CONDITION",
    help="NAME=VALUE, also with !=, <, <=, >, >=; several values with commas, * for any letters. "
    "NAME is a column, a score, an option or a group. Several conditions all hold.",
)  # fmt: skip
@click.option(
    "--sort", default="test/miou", show_default=True, metavar="NAME",
    help="Scores from the highest, all else from the lowest; -NAME turns that around.",
)  # fmt: skip
@click.option("--columns", default="", metavar="NAME,...", help="What is shown of each run.")
@click.option("--tracking-uri", metavar="URI", default="", help="Of a store, take its runs.")
@shown.as_json
def command(
    folders: tuple[str, ...],
    conditions: tuple[str, ...],
    sort: str,
    columns: str,
    tracking_uri: str,
    as_json: bool,
) -> None:
    """Show a table of runs, also of those that failed or are at work.

    `epoch` counts complete epochs, `time` is that of training. Options in which the runs differ are
    shown as well, a few of them; JSON has all.
    """
    roots = [table.sweep_folder(each) for each in folders] if folders else None
    every = table.entries(roots, tracking_uri=tracking_uri)
    every = table.ordered(table.selected(every, conditions), sort)
    further = table.differing(every)
    if as_json:
        print_runs(every, [*table.COLUMNS, *further])
        return
    if not every:
        print("No runs." if not conditions else "No runs for which all conditions hold.")
        return
    names = [each.strip() for each in columns.split(",") if each.strip()]
    for name in names:
        table.require_known(name, every)
    shared = {} if names or len(every) == 1 else _shared(every)
    if not names:
        extra = [name for name, values in further.items() if None not in values][:_FURTHER]
        names = [*_SHOWN[:5], *extra, *_SHOWN[5:]]
        names = [
            name
            for name in names
            if name not in shared and any(each.value(name) is not None for each in every)
        ]
    heads = [_HEADS.get(name, name) for name in names]
    right = [any(isinstance(each.value(n), int | float) for each in every) for n in names]
    shown.print_table(
        [f" {head}" if number else head for head, number in zip(heads, right, strict=True)],
        [[_cell(name, each.value(name)) for name in names] for each in every],
        folded=("name", "folder"),
    )
    of_all = "".join(f", {name} {value}" for name, value in shared.items())
    print(f"{len(every)} run{'' if len(every) == 1 else 's'}{of_all}")


def _shared(every: Sequence[Entry]) -> dict[str, Any]:
    """Return the values that all runs have in common, of columns that may be left out then."""
    values = {name: {each.value(name) for each in every} for name in _SHARED}
    return {name: found.pop() for name, found in values.items() if len(found) == 1}


_HEADS: Final = {"seconds": "time", "test/miou": "test mIoU", "best/val/miou": "val mIoU"}


def print_runs(every: Sequence[Entry], names: Sequence[str]) -> None:
    """Print runs as JSON, one object each."""
    shown.print_json(
        [{**{name: each.value(name) for name in names}, "note": each.note} for each in every]
    )


def _cell(name: str, value: Any) -> str:
    from flair2_exp.report.words import duration, number
    from flair2_exp.values import render

    if value is None:
        return shown.NOTHING
    if name == "folder":
        return _short(Path(value))
    if name.endswith("seconds"):
        return duration(value)
    if isinstance(value, float) and "/" in name:
        return number(value)
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else render(value)


def _short(path: Path) -> str:
    """Return a path as one would type it from here."""
    here = Path.cwd()
    full = path.absolute()
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(path)
