"""The report as text: Markdown, one self-contained HTML page, and the terminal."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.report import words
from flair2_exp.report.origins import addresses
from flair2_exp.report.results import Report
from flair2_exp.report.sentences import findings, method, notes
from flair2_exp.report.table import Table
from flair2_exp.report.tables import leaderboard, tables

if TYPE_CHECKING:
    from rich.console import Console

CAPTIONS: Final[Mapping[str, str]] = {
    "forest": "mIoU of each row and its difference to the baseline, with 95 % intervals.",
    "iou_by_class": "IoU of each class by row.",
    "panels": "The same test patches as the rows predict them, by the first seed of each. Below: "
    "right pixels of those whose true class is scored.",
    "confusion": "Row-normalised confusion of the baseline, of the best other row, and their "
    "difference.",
    "learning_curves": "Learning curves: mean and range over seeds.",
    "effects": "Main effects and two-way interactions of the factors, with 95 % intervals.",
}
"""By figure."""

SECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "Result": ("rows", "forest", "differences", "factors", "effects", "not_compared"),
    "By class": ("classes", "iou_by_class", "confusion"),
    "By domain": ("domains",),
    "Test patches": ("panels",),
    "Training": ("learning_curves", "training", "options", "options_of_some"),
    "How this was made": ("origin", "conventions", "runs"),
}
"""Of the page: the tables and figures of each, by name."""
ON_PAGES: Final = ("origin", "not_compared")
"""Tables that a terminal has no room for: notes say the same of what is not compared."""
FOLDED: Final = ("confusion",)
"""Figures that readers need second."""


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
    about = [f"{_plain(head)}: {_plain(what)}" for head, what in table.about.items() if what]
    foot = [f"Columns: {'; '.join(about)}.", ""] if about else []
    return [text[0], "|" + " --- |" * len(table.heads), *text[1:], "", *foot]


def _list(sentences: Sequence[str]) -> list[str]:
    return [*(f"- {_plain(each)}" for each in sentences), ""]


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    escaped = re.sub(r"[\\|*`]|<(?=[A-Za-z/!])|\](?=[(\[])", r"\\\g<0>", text)
    return " ".join(escaped.split())


def html(report: Report, pictures: Mapping[str, bytes], folder: Path | None = None) -> str:
    """Return the report as one page that needs no network and runs no script.

    Args:
        report: What to show.
        pictures: PNG files by name of the figure.
        folder: Where the page will be, for its links to the runs' folders.
    """
    parts: dict[str, object] = {table.name: table for table in tables(report)}
    parts |= {name: Picture.of(name, picture) for name, picture in pictures.items()}
    sections = {title: [parts[name] for name in names if name in parts]
                for title, names in SECTIONS.items()}  # fmt: skip
    return render(
        "report.html.jinja",
        title=report.options.title,
        synthetic=report.synthetic,
        findings=findings(report),
        sections={title: each for title, each in sections.items() if each},
        method=method(report),
        notes=notes(report, absent=False),
        links=addresses(report, None if folder is None else str(folder)),
    )


@dataclass(frozen=True)
class Picture:
    """A figure of a page."""

    caption: str
    data: str
    """PNG, base64."""
    second: bool = False
    """Whether readers need it second: the page folds it."""

    @classmethod
    def of(cls, name: str, picture: bytes) -> Picture:
        """Return a figure of the report, by its name and PNG file."""
        return cls(CAPTIONS[name], base64.b64encode(picture).decode(), name in FOLDED)


def render(template: str, **values: object) -> str:
    """Return a page of this package's templates (`report/*.jinja`), which share one style."""
    from jinja2 import Environment, PackageLoader

    # The template breaks a cell into lines only where it is longer than a difference.
    environment = Environment(
        loader=PackageLoader("flair2_exp", "report"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


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
        if table.second or table.name in ON_PAGES:
            continue
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
