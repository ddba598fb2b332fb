"""The report's tables of scores and differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flair2_exp.report import words
from flair2_exp.report.origins import (
    absences,
    further_settings,
    origin,
    run_list,
    settings,
    training,
)
from flair2_exp.report.results import (
    FEW_ROWS,
    SIGNIFICANT,
    Contrast,
    Difference,
    Report,
    Row,
    domain_of,
)
from flair2_exp.report.statistics import sum_by_area
from flair2_exp.report.table import Record, Table
from flair2_exp.score import PUBLISHED


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard."""

    head: str
    """For readers; empty where it is for programs alone."""
    show: Callable[[Row], str]
    """Its cell of a row."""
    values: Callable[[Row], Record] = lambda row: {}
    """What stands behind it, unrounded."""
    about: str = ""
    """What it holds."""


def tables(report: Report) -> list[Table]:
    """Return the tables that the report has content for."""
    made = [
        leaderboard(report),
        _differences(report) if report.differences else None,
        _classes(report),
        _domains(report),
        _factors(report) if report.effects else None,
        # Conventions differ in what they make of pixels that are not scored.
        _conventions(report) if report.nomenclature.has_other else None,
        absences(report),
        settings(report),
        further_settings(report),
        training(report),
        origin(report),
        run_list(report),
    ]
    return [table for table in made if table is not None]


def leaderboard(report: Report) -> Table:
    """Return the table of the rows; those without a finished run stand at its end."""
    columns = _columns(report)
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
    about = {column.head: column.about for column in shown}
    return Table("rows", "leaderboard.csv", report.options.title, heads, cells, records, about)


def _columns(report: Report) -> list[Column]:
    published = "published (mean ± std)" if any(row.published for row in report.rows) else ""
    unit, base = report.unit, report.baseline
    compared = sum(each.miou.joint_p is not None for each in report.differences)
    corrected = f"corrected for {compared} comparisons" if compared > 1 else "of one comparison"
    mean = "of the whole test set, all its pixels together; mean over the runs"
    return [
        Column("row", lambda row: row.name, lambda row: {"row": row.name},
               "the experiment; its runs differ in nothing but the seed"),
        Column("runs", words.seeds, _runs, "finished runs, one per seed"),
        Column(f"{words.miou(report.convention)} ± std", words.spread, _spread,
               f"mean IoU of the {len(report.scored)} scored classes {mean}; ± their standard "
               "deviation"),
        Column(f"95 % interval ({unit}s)", lambda row: words.interval(row.miou.shown),
               about=f"of this row's mIoU by itself, over test {unit}s and seeds. Two rows may "
               f"differ although these overlap, since they share the {unit}s: see the differences"),
        Column(beside(report), lambda row: words.interval(row.miou.beside),
               about="the same, as if areas of one domain were independent: probably too narrow"),
        Column(f"− {base}", _against,
               about=f"difference in mIoU to {base}; p in brackets, {corrected}, belongs to the "
               "joint interval in the table of differences"),
        Column("F1", lambda row: words.number(row.f1), lambda row: {"f1": row.f1},
               f"mean F1 of the scored classes {mean}"),
        Column("accuracy", lambda row: words.number(row.accuracy),
               lambda row: {"accuracy": row.accuracy},
               f"share of the counted pixels that are right, {mean}"),
        Column("best", lambda row: words.number(row.best), lambda row: {"best": row.best},
               "mIoU of the best run: the luckiest seed, not what to expect"),
        Column(published, words.published, _published,
               "the published figures of the same settings, where runs have them"),
    ]  # fmt: skip


def _runs(row: Row) -> Record:
    absent = [f"{each.seed} {each.state}" for each in row.absent]
    return {"seeds": list(row.seeds), "scores": list(row.scores), "absent": absent}


def _spread(row: Row) -> Record:
    score = {f"miou_{name}": value for name, value in vars(row.miou).items()}
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
    return "over areas" if report.unit == "domain" else ""


def _differences(report: Report) -> Table:
    cells = [_effect(report, each) for each in report.differences]
    heads = ["rows", "difference", *_heads(report)]
    records = [record for each in report.differences for record in _by_class(report, each)]
    about = {"rows": "the first minus the second", "difference": "of their mean mIoU"}
    about |= _about_differences(report, len(report.differences), "pairs of rows")
    title = "Differences in mIoU"
    return Table("differences", "differences.csv", title, heads, cells, records, about)


def _heads(report: Report) -> list[str]:
    """Return the heads of a difference's interval and p: joint, over areas, and by itself."""
    heads = [f"95 % joint interval ({report.unit}s)", "joint p", beside(report), "p by itself"]
    return [head for head in heads if head]


def _about_differences(report: Report, number: int, what: str) -> dict[str, str]:
    """Return what the columns of `_heads` hold, of so many differences of a kind."""
    joint = f"holds for all {number} {what} at once" if number > 1 else "of one comparison"
    texts = [
        f"over test {report.unit}s and seeds; {joint}. Leaves out 0 where the joint p is below "
        "0.05",
        "two-sided, of no difference; corrected for the same comparisons",
        "the joint interval as if areas of one domain were independent: probably too narrow",
        "as if this were the only comparison; the joint interval does not belong to it",
    ]
    heads = _heads(report)
    return dict(zip(heads, texts if beside(report) else [*texts[:2], texts[3]], strict=True))


def _effect(report: Report, difference: Difference) -> list[str]:
    """Return the cells of a difference in mIoU: name, size, intervals, p."""
    score = difference.miou
    interval = words.interval(score.shown, sign=True)
    if score.joint_p is None and score.low is not None:
        interval += f" {report.unit}s alone"
    by_area = [words.interval(score.beside, sign=True)] if beside(report) else []
    joint, alone = words.p_value(score.joint_p), words.p_value(score.p)
    return [difference.name, words.signed(score.value), interval, joint, *by_area, alone]


def _by_class(report: Report, difference: Difference) -> list[Record]:
    """Return a difference in mIoU and in each class's IoU, one record each."""
    names = {"row": difference.row, "other": difference.other}
    scores = {"mIoU": difference.miou, **dict(zip(report.scored, difference.classes, strict=True))}
    return [
        names | {"class": name} | vars(score) | {"seeds_known": difference.seeds_known}
        for name, score in scores.items()
    ]


def _classes(report: Report) -> Table:
    """Return IoU by class; for readers with a star where it differs by more than luck."""

    def cell(row: Row, at: int) -> str:
        p = row.against_baseline.classes[at].joint_p if row.against_baseline else None
        star = " *" if p is not None and p < SIGNIFICANT else ""
        return f"{words.number(row.classes[at].value, 3)}{star}"

    shares = report.truth.sum(axis=0) / max(report.truth.sum(), 1)
    cells = [[name, words.percent(shares[at]), *(cell(row, at) for row in report.rows)]
             for at, name in enumerate(report.scored)]  # fmt: skip
    records = [
        {"row": row.name, "class": name, "share": float(share)} | vars(score)
        for row in report.rows
        for name, share, score in zip(report.scored, shares, row.classes, strict=False)
    ]
    title = "IoU by class"
    if report.differences:
        title += f" (* differs from {report.baseline}: joint p < 0.05 over pairs × classes)"
    heads, lines = _lines(["class", "share"], report, cells)
    about = {
        "share": "of the test set's counted pixels whose truth is the class",
        "the rows": "IoU of the whole test set, all its pixels together; mean over the runs",
    }
    return Table("classes", "iou_by_class.csv", title, heads, lines, records, about)


def _domains(report: Report) -> Table | None:
    """Return mIoU by domain; None where the test set has one, or areas without domains."""
    areas = report.rows[0].runs[0].counts.areas
    if report.domains < 2 or not any("/" in area for area in areas):
        return None
    of_areas = np.array([domain_of(area) for area in areas])
    domains, truth = sum_by_area(of_areas, report.truth)
    scores = [row.by_domain() for row in report.rows]
    cells, records = [], []
    for domain, pixels in zip(domains.tolist(), truth, strict=True):
        number = int((of_areas == domain).sum())
        classes = int((pixels[: len(report.scored)] > 0).sum())
        share = float(pixels.sum() / max(report.truth.sum(), 1))
        values = [each[domain] for each in scores]
        cells.append([domain, str(number), words.percent(share), str(classes),
                      *(words.number(value, 3) for value in values)])  # fmt: skip
        facts = {"domain": domain, "areas": number, "share": share, "classes": classes}
        records += [{"row": row.name} | facts | {"miou": value}
                    for row, value in zip(report.rows, values, strict=True)]  # fmt: skip
    heads, lines = _lines(["domain", "areas", "share", "classes"], report, cells)
    about = {
        "share": "of the test set's counted pixels",
        "classes": "scored classes that occur there",
        "the rows": "mIoU of the domain's pixels together, over the classes that occur in their "
        "truth or prediction; mean over the runs. The mean of a column is not the row's mIoU",
    }
    return Table("domains", "miou_by_domain.csv", "mIoU by domain", heads, lines, records, about)


def _lines(
    facts: Sequence[str], report: Report, cells: Sequence[Sequence[str]]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return heads and cells of a table with a column per row; with a line per row of many."""
    heads = [*facts, *(row.name for row in report.rows)]
    if len(report.rows) <= FEW_ROWS:
        return heads, cells
    turned = [list(column) for column in zip(heads, *cells, strict=True)]
    return turned[0], turned[1:]


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
    return Table("conventions", "conventions.csv", title, heads, cells, records, second=True)


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
    alone = "95 %, these areas, seeds alone"
    about = _about_differences(report, len(report.effects), "effects")
    about |= {alone: "by itself, from the runs' scores alone: on these very areas"}
    heads = ["effect", "on mIoU", *_heads(report), alone]
    return Table("factors", "factors.csv", "Factors", heads, cells, records, about)
