"""The report as text: Markdown, one self-contained HTML page, and the terminal."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from flair2_exp.report import words
from flair2_exp.report.results import Report
from flair2_exp.report.sentences import findings, method, notes
from flair2_exp.report.tables import Table, leaderboard, tables

if TYPE_CHECKING:
    from rich.console import Console

CAPTIONS: Final[Mapping[str, str]] = {
    "forest": "mIoU of each row and its difference to the baseline, with 95 % intervals.",
    "iou_by_class": "IoU of each class by row.",
    "confusion": "Row-normalised confusion of the baseline, of the best other row, and their "
    "difference.",
    "learning_curves": "Learning curves: mean and range over seeds.",
    "effects": "Main effects and two-way interactions of the factors, with 95 % intervals.",
}
"""By figure."""


def markdown(report: Report, images: Iterable[str] = ()) -> str:
    """Return the report as Markdown, with the figures of these names at its end."""
    parts = [f"# {_plain(report.options.title)}", "", *_list(findings(report))]
    for at, table in enumerate(tables(report)):
        parts += [f"## {_plain(table.title)}", ""] if at else []
        parts += _table(table)
    parts += [method(report), ""]
    if report_notes := notes(report):
        parts += ["Notes:", "", *_list(report_notes)]
    for name in images:
        parts += [f"![{CAPTIONS[name]}]({name}.png)", ""]
    return "\n".join(parts)


def summary(report: Report) -> str:
    """Return the report in short, as Markdown for the page of a sweep's MLflow run.

    The best row comes first, since MLflow folds away all but the first lines.
    """
    top = f"**best: {_plain(report.best.name)}, mIoU {words.spread(report.best)}**"
    parts = [f"{top} · synthetic sample data" if report.synthetic else top, ""]
    parts += _list(findings(report)) + _table(leaderboard(report)) + _list(notes(report))
    return "\n".join(parts).rstrip() + "\n"


def headline(report: Report) -> dict[str, float]:
    """Return the number by which sweeps are compared on MLflow's pages: mIoU of the best row.

    The other rows stand in the description: a metric for each would be a column of all runs.
    """
    best = report.best.miou.value
    return {} if best is None else {"best/miou": best}


def _table(table: Table) -> list[str]:
    lines = [table.heads, *table.cells]
    text = ["| " + " | ".join(map(_plain, line)) + " |" for line in lines]
    return [text[0], "|" + " --- |" * len(table.heads), *text[1:], ""]


def _list(sentences: Sequence[str]) -> list[str]:
    return [*(f"- {_plain(each)}" for each in sentences), ""]


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    escaped = re.sub(r"[\\|*`]|<(?=[A-Za-z/!])|\](?=[(\[])", r"\\\g<0>", text)
    return " ".join(escaped.split())


def html(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Return the report as one page that needs no network and runs no script.

    Args:
        report: What to show.
        pictures: PNG files by name of the figure.
    """
    from jinja2 import Environment, PackageLoader

    # The template breaks a cell into lines only where it is longer than a difference.
    environment = Environment(loader=PackageLoader("flair2_exp", "report"), autoescape=True)
    return environment.get_template("page.html.jinja").render(
        title=report.options.title,
        synthetic=report.synthetic,
        findings=findings(report),
        tables=tables(report),
        method=method(report),
        notes=notes(report),
        figures=[
            (CAPTIONS[name], base64.b64encode(picture).decode())
            for name, picture in pictures.items()
        ],
        setting=", ".join(f"{name} {value}" for name, value in report.setting.items() if value),
    )


def print_report(report: Report, console: Console | None = None) -> None:
    """Print tables, findings and notes; where there is no terminal, wide enough not to cut."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)
    for table in tables(report):
        grid = Grid(title=Text(table.title), title_justify="left")
        for at, head in enumerate(table.heads):
            grid.add_column(Text(head), justify="right" if at else "left", overflow="fold")
        for line in table.cells:
            grid.add_row(*map(Text, line))
        console.print(grid)
    for each in findings(report):
        console.print(Text(f"• {each}"))
    console.print(Text(method(report), style="dim"))
    for note in notes(report):
        console.print(Text(f"Note: {note}", style="yellow"))
