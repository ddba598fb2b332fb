"""Compute a report and write it: terminal, Markdown, CSV, JSON, figures, page.

`leaderboard.json` has this schema (null where a number is not known):

    schema           4
    title, baseline, unit, notes, findings, class_names, scored (names)
    convention       what its scores mean by mIoU (`score.Convention`); null where not recorded
    setting          {"dataset", "fingerprint", "split", "metric"}
    unit             "domain" or "area": what the bootstrap drew
    domains, areas, patches, resamples, confidence (0.95), comparisons
    alike            {"scores", "differences"}: correlation of two areas of one domain
    outlook          {"unit_variance", "units", "seed_variance", "comparisons", "visible": {seeds:
                     difference}}, or null
    absent           [{"row", "seed", "state", "reason"}], of rows without a finished run too
    factors_refused  why factors were not analysed; empty where they were, or were not asked for
    confusion        {row: C × C pixels, rows truth}
    rows, differences, classes, domains, factors, conventions, not_compared, options,
    options_of_some, training, origin, runs
                     the tables as in the CSV files (`tables.Table.records`), a record per line;
                     only those that the report has content for
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.errors import ConfigError, DataError
from flair2_exp.files import write_bytes
from flair2_exp.report.leaderboard import DEFAULT, build_report
from flair2_exp.report.page import html, markdown, print_report
from flair2_exp.report.power import PLANNED_SEEDS, Outlook
from flair2_exp.report.results import Report, ReportOptions
from flair2_exp.report.runs import RunSet
from flair2_exp.report.sentences import findings, notes
from flair2_exp.report.statistics import LEVEL
from flair2_exp.report.table import Table
from flair2_exp.report.tables import tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: Final[tuple[str, ...]] = ("terminal", "md", "csv", "json", "png", "svg", "html")
SCHEMA: Final[int] = 4
PAGE: Final = "leaderboard.html"
DATA: Final = "leaderboard.json"


def report_runs(
    runs: RunSet,
    out_dir: Path,
    formats: Iterable[str] = FORMATS,
    options: ReportOptions = DEFAULT,
    expected: Iterable[tuple[str, int]] = (),
) -> Report:
    """Compute the report of these runs and write it: at a sweep's end, and by the script.

    Args:
        runs: With `options` and `expected` as for `build_report`.
        out_dir: Folder for the files; made where missing.
        formats: Of `FORMATS`; `terminal` prints.
        options: How to report the runs.
        expected: Runs that should be there.

    Returns:
        The report, with `paths` of the files written.

    Raises:
        ConfigError: An unknown format, or what `build_report` refuses.
        DataError: The folder cannot be written.
    """
    wanted = check_formats(formats)
    report = build_report(runs, options, expected)
    paths = tuple(_save(out_dir, _contents(report, wanted, out_dir)))
    if "terminal" in wanted:
        print_report(report)
    return dataclasses.replace(report, paths=paths)


def check_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """Return the formats asked for, each once.

    Raises:
        ConfigError: One of them is unknown, or there is none.
    """
    wanted = tuple(dict.fromkeys(formats))
    unknown = [each for each in wanted if each not in FORMATS]
    if unknown or not wanted:
        listed = ", ".join(unknown) or "none"
        raise ConfigError(f"report format {listed}: expected one of {', '.join(FORMATS)}.")
    return wanted


def draws(formats: Iterable[str]) -> bool:
    """Return whether any of these formats has figures."""
    return not {"png", "svg", "html"}.isdisjoint(formats)


def _contents(report: Report, formats: Sequence[str], folder: Path) -> dict[str, bytes]:
    """Return the files of a report by name."""
    from flair2_exp.report.figures import figures

    drawn = figures(report) if draws(formats) else {}
    contents = {
        f"{name}.{kind}": image(figure, kind)
        for kind in ("png", "svg")
        if kind in formats
        for name, figure in drawn.items()
    }
    if "md" in formats:
        images = drawn if "png" in formats else ()
        contents["leaderboard.md"] = markdown(report, images).encode()
    if "csv" in formats:
        contents |= {table.file: as_csv(table).encode() for table in tables(report)}
    if "json" in formats:
        text = json.dumps(as_json(report), indent=1, ensure_ascii=False, allow_nan=False)
        contents[DATA] = text.encode()
    if "html" in formats:
        pictures = {name: contents.get(f"{name}.png") or image(figure, "png")
                    for name, figure in drawn.items()}  # fmt: skip
        contents[PAGE] = html(report, pictures, folder).encode()
    return contents


def _save(folder: Path, contents: Mapping[str, bytes]) -> Iterable[Path]:
    try:
        for name, content in contents.items():
            write_bytes(folder / name, content)
            yield folder / name
    except OSError as error:
        raise DataError(
            f"the report cannot be written to {folder} ({error.strerror}).\nName another folder."
        ) from None


def image(figure: Figure, kind: str) -> bytes:
    """Return a figure as PNG or SVG, the same bytes for the same figure."""
    from flair2_exp.report.figures import style

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with style():
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def as_csv(table: Table) -> str:
    """Return a table's records as CSV; empty cells where unknown, lists joined by `; `."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table.records[0]), lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow(
            {
                name: "; ".join(map(str, value)) if isinstance(value, list) else value
                for name, value in record.items()
            }
        )
    return buffer.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values; the module's text has the schema."""
    return {
        "schema": SCHEMA,
        "title": report.options.title,
        "convention": None if report.convention is None else str(report.convention),
        "setting": dict(report.setting),
        "baseline": report.baseline,
        "unit": report.unit,
        "domains": report.domains,
        "areas": report.areas,
        "alike": dict(zip(("scores", "differences"), report.alike, strict=True)),
        "outlook": _outlook(report.outlook),
        "patches": report.patches,
        "resamples": report.options.resamples,
        "confidence": LEVEL,
        "comparisons": len(report.differences),
        "class_names": list(report.class_names),
        "scored": list(report.scored),
        "findings": findings(report),
        "notes": notes(report),
        "absent": [dataclasses.asdict(each) for each in report.absent],
        "factors_refused": report.factors_refused,
        "confusion": {row.name: row.confusion.tolist() for row in report.rows},
        **{table.name: list(table.records) for table in tables(report)},
    }


def _outlook(outlook: Outlook | None) -> dict[str, Any] | None:
    """Return what more seeds would show as plain values."""
    if outlook is None:
        return None
    visible = {str(seeds): outlook.visible(seeds) for seeds in PLANNED_SEEDS}
    return {**dataclasses.asdict(outlook), "visible": visible}
