"""A report as terminal tables, Markdown, CSV, JSON, figures and one self-contained HTML page.

`leaderboard.json` has this schema (null where a figure is not known; a *score* is
``{"value", "error", "low", "high"}``, error and 95 % interval as in `statistics`):

    schema           1
    title, baseline, unit, notes, sentences, class_names, scored
    setting          {"dataset", "fingerprint", "split", "other_pixels"}
    areas, patches, resamples, confidence (0.95), comparisons
    rows             [{"row", "seeds", "scores", "miou": score, "deviation", "best",
                       "classes": {class: score}, "published": null | {"name", "best", "mean",
                       "deviation"}, "parameters", "train_seconds", "inference_seconds",
                       "confusion": C × C whole numbers, rows truth,
                       "absent": [{"seed", "state", "reason"}]}]
    absent           [{"row", "seed", "state", "reason"}], of rows without a finished run too
    differences      [{"row", "other", "miou": score, "p", "p_holm", "seeds_known",
                       "classes": {class: score + {"p", "p_holm"}}}], row minus other; all pairs of
                       up to 6 rows, else those with the baseline (`pairs` of `build_report`)
    factorial        null | {"refused", "effects": [as differences, other empty],
                     "over_seeds": null | {"freedom", "effects": {name: {"value", "low", "high",
                     "p"}}}}
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.errors import ConfigError, DataError
from flair2_exp.files import write_bytes
from flair2_exp.report import words
from flair2_exp.report.collect import AbsentRun, Run
from flair2_exp.report.leaderboard import (
    LEVEL,
    Difference,
    Factorial,
    Report,
    Row,
    Score,
    build_report,
)
from flair2_exp.report.statistics import RESAMPLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

FORMATS: Final[tuple[str, ...]] = ("terminal", "md", "csv", "json", "png", "svg", "html")
SCHEMA: Final[int] = 1
SHORT: Final[int] = 28
"""Letters of a cell that stays on one line: a difference with its interval."""

_CAPTIONS: Final[Mapping[str, str]] = {
    "forest": "mIoU of each row and its difference to the baseline, with 95 % intervals.",
    "iou_by_class": "IoU of each class by row.",
    "confusion": "Row-normalised confusion of the baseline, of the best other row, and their "
    "difference.",
    "learning_curves": "Learning curves: mean and range over seeds.",
    "effects": "Main effects and two-way interactions of the factors, with 95 % intervals.",
}

_Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A title, column heads and cells."""


def report_runs(
    runs: Sequence[Run],
    out_dir: Path,
    formats: Iterable[str] = FORMATS,
    *,
    absent: Sequence[AbsentRun] = (),
    expected: Iterable[tuple[str, int]] = (),
    baseline: str | None = None,
    factors: Sequence[str] | None = None,
    title: str = "Leaderboard",
    pairs: str = "auto",
    unit: str = "area",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Compute the report of these runs and write it: at a sweep's end, and by the script.

    Args:
        runs: As for `leaderboard.build_report`, like all arguments but the next two.
        out_dir: Folder for the files; made where missing.
        formats: Of `FORMATS`; `terminal` prints.
        absent: See there.
        expected: See there.
        baseline: See there.
        factors: See there.
        title: See there.
        pairs: See there.
        unit: See there.
        resamples: See there.
        seed: See there.

    Returns:
        The report, with `paths` of the files written.

    Raises:
        ConfigError: An unknown format, or what `build_report` refuses.
        DataError: The folder cannot be written.
    """
    wanted = check_formats(formats)
    report = build_report(
        runs,
        absent=absent,
        expected=expected,
        baseline=baseline,
        factors=factors,
        title=title,
        pairs=pairs,
        unit=unit,
        resamples=resamples,
        seed=seed,
    )
    return write(report, out_dir, wanted)


def check_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """The formats asked for, each once.

    Raises:
        ConfigError: One of them is unknown, or there is none.
    """
    wanted = tuple(dict.fromkeys(formats))
    unknown = [each for each in wanted if each not in FORMATS]
    if unknown or not wanted:
        told = ", ".join(unknown) or "none"
        raise ConfigError(f"report format {told} is not one of {', '.join(FORMATS)}")
    return wanted


def write(report: Report, out_dir: Path, formats: Sequence[str]) -> Report:
    """Write a report.

    Args:
        report: What to write.
        out_dir: Made where missing; files of the same names are replaced.
        formats: Of `FORMATS`.

    Returns:
        The report with the paths of its files.

    Raises:
        DataError: The folder cannot be written.
    """
    from flair2_exp.report.figures import figures

    drawn = figures(report) if set(formats) & {"png", "svg", "html"} else {}
    contents: dict[str, bytes] = {}
    pictures: dict[str, bytes] = {}
    if set(formats) & {"png", "html"}:
        pictures = {name: image(figure, "png") for name, figure in drawn.items()}
    if "png" in formats:
        contents |= {f"{name}.png": picture for name, picture in pictures.items()}
    if "svg" in formats:
        contents |= {f"{name}.svg": image(figure, "svg") for name, figure in drawn.items()}
    if "md" in formats:
        shown = [name for name in contents if name.endswith(".png")]
        contents["leaderboard.md"] = markdown(report, shown).encode()
    if "csv" in formats:
        contents |= {name: text.encode() for name, text in tables_as_csv(report).items()}
    if "json" in formats:
        text = json.dumps(as_json(report), indent=1, ensure_ascii=False, allow_nan=False)
        contents["leaderboard.json"] = text.encode()
    if "html" in formats:
        contents["leaderboard.html"] = html(report, pictures).encode()
    paths = tuple(_save(out_dir, contents)) if contents else ()
    if "terminal" in formats:
        print_report(report)
    return dataclasses.replace(report, paths=paths)


def _save(folder: Path, contents: Mapping[str, bytes]) -> Iterable[Path]:
    try:
        for name, content in contents.items():
            write_bytes(folder / name, content)
            yield folder / name
    except OSError as error:
        raise DataError(f"the report cannot be written to {folder}: {error.strerror}") from None


def image(figure: Figure, kind: str) -> bytes:
    """A figure as PNG or SVG, the same bytes for the same figure."""
    from flair2_exp.report.figures import style

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with style():
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def tables(report: Report) -> list[_Table]:
    """The report's tables for reading, with figures as text."""
    made = [_rows_table(report)]
    if report.differences:
        made += [_differences_table(report), _classes_table(report)]
    if report.factorial and report.factorial.effects:
        made.append(_effects_table(report.factorial))
    return made


def _rows_table(report: Report) -> _Table:
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("row", lambda row: row.name),
        ("runs", words.seeds),
        ("mIoU ± std", words.spread),
        ("95 % interval", lambda row: words.interval(row.miou)),
        ("best", lambda row: words.number(row.best)),
        (f"− {report.baseline}", _against),
        ("parameters", lambda row: words.count(row.parameters)),
        ("training", lambda row: words.duration(row.train_seconds)),
        ("inference", lambda row: words.duration(row.inference_seconds)),
    ]
    if any(row.published for row in report.rows):
        columns.insert(5, ("published (mean ± std)", words.published))
    cells = [[show(row) for _, show in columns] for row in report.rows]
    there = {row.name for row in report.rows}
    for name in dict.fromkeys(each.row for each in report.absent if each.row not in there):
        states = [each for each in report.absent if each.row == name]
        told = ", ".join(f"seed {each.seed}: {each.state}" for each in states)
        nothing = [words.NOTHING] * (len(columns) - 2)
        cells.append([name, f"0 of {len(states)} ({told})", *nothing])
    return (report.title, [name for name, _ in columns], cells)


def _against(row: Row) -> str:
    """The difference to the baseline; its interval is in the next table, for the line's length."""
    difference = row.against_baseline
    if difference is None:
        return "baseline"
    p = "" if difference.p_holm is None else f" ({words.p_equals(difference.p_holm)})"
    return f"{words.signed(difference.miou.value)}{p}"


def _differences_table(report: Report) -> _Table:
    cells = [
        [
            f"{each.row} − {each.other}",
            words.signed(each.miou.value),
            words.interval(each.miou, sign=True),
            words.p_value(each.p),
            words.p_value(each.p_holm),
        ]
        for each in report.differences
    ]
    return ("Differences in mIoU", ["rows", "difference", "95 % interval", "p", "p (Holm)"], cells)


def _classes_table(report: Report) -> _Table:
    """IoU by class, with a star where it differs from the baseline by more than luck."""
    cells = []
    for at, name in enumerate(report.class_names[: report.scored]):
        line = [name]
        for row in report.rows:
            against = row.against_baseline
            p = against.class_p_holm[at] if against else None
            star = " *" if p is not None and p < 1 - LEVEL else ""
            line.append(words.number(row.classes[at].value, 3) + star)
        cells.append(line)
    title = f"IoU by class (* differs from {report.baseline}: p < 0.05, Holm over pairs × classes)"
    return (title, ["class", *(row.name for row in report.rows)], cells)


def _effects_table(factors: Factorial) -> _Table:
    cells = []
    for at, each in enumerate(factors.effects):
        over = factors.over_seeds
        seeds = words.NOTHING
        if over is not None and math.isfinite(over.low[at]):
            seeds = f"[{words.signed(over.low[at])}, {words.signed(over.high[at])}]"
        cells.append(
            [
                each.row,
                words.signed(each.miou.value),
                words.interval(each.miou, sign=True),
                words.p_value(each.p_holm),
                seeds,
            ]
        )
    heads = ["effect", "on mIoU", "95 % interval", "p (Holm)", "95 %, these areas, seeds alone"]
    return ("Factors", heads, cells)


def markdown(report: Report, images: Sequence[str] = ()) -> str:
    """The report as Markdown, with the images (file names) at its end."""
    parts = [f"# {_plain(report.title)}", ""]
    parts += [f"- {_plain(said)}" for said in words.findings(report)] + [""]
    for title, heads, cells in tables(report):
        parts += [f"## {_plain(title)}", ""] if title != report.title else []
        parts += [*_markdown_table(heads, cells), ""]
    parts += [words.method(report), ""]
    if report.notes:
        parts += ["Notes:", "", *(f"- {_plain(note)}" for note in report.notes), ""]
    for name in images:
        caption = _CAPTIONS[name.rsplit(".", 1)[0]]
        parts += [f"![{caption}]({name})", ""]
    return "\n".join(parts)


def _markdown_table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(_plain(cell) for cell in line) + " |" for line in (heads, *cells)]
    return [lines[0], "|" + " --- |" * len(heads), *lines[1:]]


def page(report: Report) -> str:
    """The report in short, as Markdown for the page of a sweep's MLflow run.

    The best row comes first, since MLflow folds away all but the first lines.
    """
    best = best_row(report)
    top = f"**best: {_plain(best.name)}, mIoU {words.spread(best)}**"
    parts = [f"{top} · synthetic sample data" if report.synthetic else top, ""]
    parts += [*(f"- {_plain(said)}" for said in words.findings(report)), ""]
    _, heads, cells = _rows_table(report)
    parts += [*_markdown_table(heads, cells), "", *(f"- {_plain(note)}" for note in report.notes)]
    return "\n".join(parts).rstrip() + "\n"


def headline(report: Report) -> dict[str, float]:
    """The report's figures by which sweeps are compared on MLflow's pages: mIoU of the rows."""
    named = {f"miou/{row.name}": row.miou.value for row in report.rows}
    named["best/miou"] = best_row(report).miou.value
    return {name: value for name, value in named.items() if value is not None}


def best_row(report: Report) -> Row:
    """The row of the highest mean mIoU."""
    return max(report.rows, key=lambda row: row.miou.value or 0.0)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"[\\|*`]|<(?=[A-Za-z/!])|\](?=[(\[])", r"\\\g<0>", text)
    return " ".join(escaped.split())


def _score_cells(score: Score) -> list[float | None]:
    return [score.value, score.error, score.low, score.high]


def tables_as_csv(report: Report) -> dict[str, str]:
    """The report's figures, unrounded, as CSV by file name; empty cells where unknown."""
    interval = ["value", "error", "low", "high"]
    made = {
        "leaderboard.csv": _csv(
            ["row", "seeds", "absent", *(f"miou_{each}" for each in interval), "deviation", "best",
             "published", "published_mean", "published_deviation", "parameters", "train_seconds",
             "inference_seconds"],
            [_row_cells(row) for row in report.rows],
        ),
        "iou_by_class.csv": _csv(
            ["row", "class", *interval],
            [
                [row.name, name, *_score_cells(score)]
                for row in report.rows
                for name, score in zip(report.class_names, row.classes, strict=False)
            ],
        ),
    }  # fmt: skip
    heads = ["row", "other", "class", *interval, "p", "p_holm"]
    if report.differences:
        made["differences.csv"] = _csv(heads, _difference_cells(report, report.differences))
    if report.factorial and report.factorial.effects:
        made["factors.csv"] = _csv(heads, _difference_cells(report, report.factorial.effects))
    return made


def _row_cells(row: Row) -> list[object]:
    published = row.published
    return [
        row.name,
        " ".join(str(seed) for seed in row.seeds),
        "; ".join(f"{each.seed} {each.state}" for each in row.absent),
        *_score_cells(row.miou),
        row.deviation,
        row.best,
        *((published.best, published.mean, published.deviation) if published else (None,) * 3),
        row.parameters,
        row.train_seconds,
        row.inference_seconds,
    ]


def _difference_cells(report: Report, differences: Sequence[Difference]) -> list[list[object]]:
    cells: list[list[object]] = []
    for each in differences:
        cells.append([each.row, each.other, "mIoU", *_score_cells(each.miou), each.p, each.p_holm])
        for at, score in enumerate(each.classes):
            name, p, corrected = report.class_names[at], each.class_p[at], each.class_p_holm[at]
            cells.append([each.row, each.other, name, *_score_cells(score), p, corrected])
    return cells


def _csv(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(["" if cell is None else cell for cell in line] for line in lines)
    return buffer.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values; the module's text has the schema."""
    return {
        "schema": SCHEMA,
        "title": report.title,
        "setting": dict(report.setting),
        "baseline": report.baseline,
        "unit": report.unit,
        "areas": report.areas,
        "patches": report.patches,
        "resamples": report.resamples,
        "confidence": LEVEL,
        "comparisons": len(report.differences),
        "class_names": list(report.class_names),
        "scored": report.scored,
        "sentences": words.findings(report),
        "notes": list(report.notes),
        "rows": [_row_json(report, row) for row in report.rows],
        "absent": [asdict(each) for each in report.absent],
        "differences": [_difference_json(report, each) for each in report.differences],
        "factorial": _factorial_json(report),
    }


def _row_json(report: Report, row: Row) -> dict[str, Any]:
    return {
        "row": row.name,
        "seeds": list(row.seeds),
        "scores": list(row.scores),
        "miou": asdict(row.miou),
        "deviation": row.deviation,
        "best": row.best,
        "classes": {
            name: asdict(score)
            for name, score in zip(report.class_names, row.classes, strict=False)
        },
        "published": asdict(row.published) if row.published else None,
        "parameters": row.parameters,
        "train_seconds": row.train_seconds,
        "inference_seconds": row.inference_seconds,
        "confusion": row.confusion.tolist(),
        "absent": [
            {"seed": each.seed, "state": each.state, "reason": each.reason} for each in row.absent
        ],
    }


def _difference_json(report: Report, difference: Difference) -> dict[str, Any]:
    return {
        "row": difference.row,
        "other": difference.other,
        "miou": asdict(difference.miou),
        "p": difference.p,
        "p_holm": difference.p_holm,
        "seeds_known": difference.seeds_known,
        "classes": {
            report.class_names[at]: asdict(score)
            | {"p": difference.class_p[at], "p_holm": difference.class_p_holm[at]}
            for at, score in enumerate(difference.classes)
        },
    }


def _factorial_json(report: Report) -> dict[str, Any] | None:
    factors = report.factorial
    if factors is None:
        return None
    over, fitted = factors.over_seeds, None
    if over is not None:
        columns = {"value": over.value, "low": over.low, "high": over.high, "p": over.p}
        fitted = {
            "freedom": over.freedom,
            "effects": {
                effect.row: {
                    key: float(values[at]) if math.isfinite(values[at]) else None
                    for key, values in columns.items()
                }
                for at, effect in enumerate(factors.effects)
            },
        }
    return {
        "refused": factors.refused,
        "effects": [_difference_json(report, each) for each in factors.effects],
        "over_seeds": fitted,
    }


_PAGE: Final[str] = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.7rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .4rem; border-bottom: 1px solid #ddd; text-align: right; }}
th {{ border-bottom: 2px solid #555; vertical-align: bottom; }}
td.short {{ white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
.mark {{ background: #fff4d6; border-left: 4px solid #e69f00; padding: .6rem 1rem; }}
.small {{ font-size: .85rem; color: #444; }}
figure {{ margin: 1.5rem 0; }} img {{ width: min(100%, 56rem); height: auto; }}
figcaption {{ font-size: .85rem; color: #444; }}
@media print {{ body {{ max-width: none; font-size: 11px; }}
  .scroll {{ overflow: visible; }} td.short {{ white-space: normal; }}
  table {{ font-size: 8px; }} th, td {{ padding: 2px 3px; }}
  figure, tr {{ break-inside: avoid; }} }}
</style></head><body>
{body}
</body></html>
"""


def html(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The report as one page that needs no network and runs no script.

    Args:
        report: What to show.
        pictures: PNG files by name of the figure.
    """
    body = [f"<h1>{escape(report.title)}</h1>"]
    if report.synthetic:
        body.append('<p class="mark">Synthetic sample data.</p>')
    body.append(_list(words.findings(report)))
    for title, heads, cells in tables(report):
        if title != report.title:
            body.append(f"<h2>{escape(title)}</h2>")
        body.append(_table(heads, cells))
    body.append(f'<p class="small">{escape(words.method(report))}</p>')
    if report.notes:
        body.append("<h2>Notes</h2>" + _list(report.notes))
    for name, picture in pictures.items():
        encoded = base64.b64encode(picture).decode()
        caption = escape(_CAPTIONS[name])
        body.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    setting = ", ".join(f"{key} {value}" for key, value in report.setting.items() if value)
    body.append(f'<p class="small">{escape(setting)}</p>')
    return _PAGE.format(title=escape(report.title), body="\n".join(body))


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    lines = "".join("<tr>" + "".join(_cell(cell) for cell in line) + "</tr>" for line in cells)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """A cell that is broken into lines only where it is long."""
    short = ' class="short"' if len(text) <= SHORT else ""
    return f"<td{short}>{escape(text)}</td>"


def print_report(report: Report, console: Console | None = None) -> None:
    """Print tables, findings and notes; where there is no terminal, wide enough not to cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)
    for title, heads, cells in tables(report):
        table = Table(title=Text(title), title_justify="left")
        for at, head in enumerate(heads):
            table.add_column(Text(head), justify="right" if at else "left", overflow="fold")
        for line in cells:
            table.add_row(*(Text(cell) for cell in line))
        console.print(table)
    for said in words.findings(report):
        console.print(Text(f"• {said}"))
    console.print(Text(words.method(report), style="dim"))
    for note in report.notes:
        console.print(Text(f"Note: {note}", style="yellow"))
