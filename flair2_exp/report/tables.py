"""The report's tables: each described once, as text for readers and unrounded for programs.

Terminal, Markdown and page show `heads` and `cells`; CSV and JSON hold `records`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flair2_exp.report import words
from flair2_exp.report.results import SIGNIFICANT, Contrast, Difference, Report, Row
from flair2_exp.score import PUBLISHED

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    name: str
    """Its key in `leaderboard.json`."""
    file: str
    """Its CSV file."""
    title: str
    heads: Sequence[str]
    cells: Sequence[Sequence[str]]
    """Numbers as text, by line."""
    records: Sequence[Record]
    """Unrounded values by name, the same names in each; None where one is not known."""


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard."""

    head: str
    """For readers; empty where it is for programs alone."""
    show: Callable[[Row], str]
    """Its cell of a row."""
    values: Callable[[Row], Record] = lambda row: {}
    """What stands behind it, unrounded."""


def measured(
    head: str,
    name: str,
    metric: str,
    show: Callable[[float | None], str],
    kind: Callable[[float], float] = float,
) -> Column:
    """Return the column of a metric that runs log: its mean over the runs of a row."""

    def mean(row: Row) -> float | None:
        value = row.mean(metric)
        return None if value is None else kind(value)

    return Column(head, lambda row: show(mean(row)), lambda row: {name: mean(row)})


def tables(report: Report) -> list[Table]:
    """Return the tables that the report has content for."""
    differences = [_differences(report)] if report.differences else []
    factors = [_factors(report)] if report.effects else []
    # Conventions differ in what they make of pixels that are not scored.
    conventions = [_conventions(report)] if report.nomenclature.has_other else []
    return [leaderboard(report), *differences, _classes(report), *factors, *conventions]


def leaderboard(report: Report) -> Table:
    """Return the table of the rows; those without a finished run stand at its end."""
    published = "published (mean ± std)" if any(row.published for row in report.rows) else ""
    columns = [
        Column("row", lambda row: row.name, lambda row: {"row": row.name}),
        Column("runs", words.seeds, _runs),
        Column(f"{words.miou(report.convention)} ± std", words.spread, _spread),
        Column(f"95 % interval ({report.unit}s)", lambda row: words.interval(row.miou.shown)),
        Column(beside(report), lambda row: words.interval(row.miou.beside)),
        Column("best", lambda row: words.number(row.best), lambda row: {"best": row.best}),
        Column(published, words.published, _published),
        Column(f"− {report.baseline}", _against),
        measured("parameters", "parameters", "model/parameters", words.count, round),
        measured("training", "train_seconds", "train/seconds", words.duration),
        measured("inference", "inference_seconds", "inference/seconds", words.duration),
    ]
    shown = [column for column in columns if column.head]
    cells = [[column.show(row) for column in shown] for row in report.rows]
    names = {row.name for row in report.rows}
    for name in dict.fromkeys(each.row for each in report.absent if each.row not in names):
        absent = [each for each in report.absent if each.row == name]
        states = ", ".join(f"seed {each.seed}: {each.state}" for each in absent)
        nothing = [words.NOTHING] * (len(shown) - 2)
        cells.append([name, f"0 of {len(absent)} ({states})", *nothing])
    records = [
        {key: value for column in columns for key, value in column.values(row).items()}
        for row in report.rows
    ]
    heads = [column.head for column in shown]
    return Table("rows", "leaderboard.csv", report.options.title, heads, cells, records)


def _runs(row: Row) -> Record:
    absent = [f"{each.seed} {each.state}" for each in row.absent]
    return {"seeds": list(row.seeds), "scores": list(row.scores), "absent": absent}


def _spread(row: Row) -> Record:
    score = {f"miou_{name}": value for name, value in asdict(row.miou).items()}
    return {**score, "deviation": row.deviation}


def _published(row: Row) -> Record:
    names = {"published_row": "name", "published": "best", "published_mean": "mean",
             "published_deviation": "deviation", "published_convention": "convention"}  # fmt: skip
    return {key: getattr(row.published, name, None) for key, name in names.items()}


def _against(row: Row) -> str:
    """Return the difference to the baseline; for lack of room its interval is in the next table."""
    if row.against_baseline is None:
        return "baseline"
    score = row.against_baseline.miou
    p = "" if score.joint_p is None else f" ({words.p_equals(score.joint_p)})"
    return f"{words.signed(score.value)}{p}"


def beside(report: Report) -> str:
    """Return the head of the intervals over areas; empty where all intervals are."""
    return "(areas)" if report.unit == "domain" else ""


def _differences(report: Report) -> Table:
    cells = [_effect(report, each) for each in report.differences]
    heads = ["rows", "difference", *_heads(report)]
    records = [record for each in report.differences for record in _by_class(report, each)]
    return Table("differences", "differences.csv", "Differences in mIoU", heads, cells, records)


def _heads(report: Report) -> list[str]:
    """Return the heads of a difference's interval and p: joint, over areas, and by itself."""
    heads = [f"95 % joint interval ({report.unit}s)", beside(report), "joint p", "p by itself"]
    return [head for head in heads if head]


def _effect(report: Report, difference: Difference) -> list[str]:
    """Return the cells of a difference in mIoU: name, size, intervals, p."""
    score = difference.miou
    interval = words.interval(score.shown, sign=True)
    if score.joint_p is None and score.low is not None:
        interval += f" {report.unit}s alone"
    by_area = [words.interval(score.beside, sign=True)] if beside(report) else []
    p = [words.p_value(score.joint_p), words.p_value(score.p)]
    return [difference.name, words.signed(score.value), interval, *by_area, *p]


def _by_class(report: Report, difference: Difference) -> list[Record]:
    """Return a difference in mIoU and in each class's IoU, one record each."""
    names = {"row": difference.row, "other": difference.other}
    scores = {"mIoU": difference.miou, **dict(zip(report.scored, difference.classes, strict=True))}
    return [
        names | {"class": name} | asdict(score) | {"seeds_known": difference.seeds_known}
        for name, score in scores.items()
    ]


def _classes(report: Report) -> Table:
    """Return IoU by class; for readers with a star where it differs by more than luck."""

    def cell(row: Row, at: int) -> str:
        p = row.against_baseline.classes[at].joint_p if row.against_baseline else None
        star = " *" if p is not None and p < SIGNIFICANT else ""
        return f"{words.number(row.classes[at].value, 3)}{star}"

    cells = [[name, *(cell(row, at) for row in report.rows)]
             for at, name in enumerate(report.scored)]  # fmt: skip
    records = [
        {"row": row.name, "class": name} | asdict(score)
        for row in report.rows
        for name, score in zip(report.scored, row.classes, strict=True)
    ]
    title = "IoU by class"
    if report.differences:
        title += f" (* differs from {report.baseline}: joint p < 0.05 over pairs × classes)"
    heads = ["class", *(row.name for row in report.rows)]
    return Table("classes", "iou_by_class.csv", title, heads, cells, records)


def _conventions(report: Report) -> Table:
    """Return mIoU as four publications mean it, and as this report does if that is a fifth way."""
    own = report.convention
    listed = [*PUBLISHED, *([own] if own is not None and own not in PUBLISHED else [])]
    values = [[row.by_convention(each) for each in listed] for row in report.rows]
    records = [
        {"row": row.name, "convention": str(convention), "miou": value, "own": convention is own}
        for row, line in zip(report.rows, values, strict=True)
        for convention, value in zip(listed, line, strict=True)
    ]
    cells = [
        [row.name, *map(words.number, line)] for row, line in zip(report.rows, values, strict=True)
    ]
    heads = ["row", *(f"{each} *" if each is own else str(each) for each in listed)]
    title = "mIoU by convention, mean over seeds (* of this report's scores)"
    return Table("conventions", "conventions.csv", title, heads, cells, records)


def _factors(report: Report) -> Table:
    cells, records = [], []
    for each in report.effects:
        fit = each.over_seeds or Contrast(None, None, None, None)
        cells.append([*_effect(report, each), words.interval(fit.shown, sign=True)])
        seeds = {f"seeds_{name}": getattr(fit, name) for name in ("value", "low", "high", "p")}
        seeds["seeds_freedom"] = report.seeds_freedom
        of_miou, *of_classes = _by_class(report, each)  # the fit is of mIoU alone
        records.append(of_miou | seeds)
        records += [record | dict.fromkeys(seeds) for record in of_classes]
    heads = ["effect", "on mIoU", *_heads(report), "95 %, these areas, seeds alone"]
    return Table("factors", "factors.csv", "Factors", heads, cells, records)
