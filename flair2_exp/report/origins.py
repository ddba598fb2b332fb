"""Where the numbers of a report come from: its runs, their settings, training, code and data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote

from flair2_exp.report import words
from flair2_exp.report.results import FEW_ROWS, Report, Row
from flair2_exp.report.rows import NOT_COMPARABLE, OUTSIDE, TELLING, Namesakes
from flair2_exp.report.runs import ScoredRun
from flair2_exp.report.table import Table
from flair2_exp.score import Convention
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import render

MANY: Final = 20
"""Lines from which on a table of what readers need now and then is folded."""

DEFINITIONS: Final[Mapping[Convention, str]] = {
    Convention.CHALLENGE: "IoU = TP / (TP + FP + FN) of each scored class over all pixels of the "
    "test set together, those of other classes too; mean over the scored classes that occur",
    Convention.CORRECTED: "IoU = TP / (TP + FP + FN) of each scored class over all pixels of the "
    "test set together but those whose truth is “other”; mean over the scored classes that occur",
}
"""Of the two that runs score by."""


def absences(report: Report) -> Table | None:
    """Return the runs that have no score here and why; None where there are none."""
    if not report.absent:
        return None
    cells = [[each.row, str(each.seed), each.state, each.reason or words.NOTHING]
             for each in report.absent]  # fmt: skip
    records = [{"row": each.row, "seed": each.seed, "state": each.state, "reason": each.reason}
               for each in report.absent]  # fmt: skip
    about = {
        "state": f"“{NOT_COMPARABLE}”: finished, on other data or scored otherwise than "
        f"{report.baseline}"
    }
    return Table(
        "not_compared", "not_compared.csv", "Not compared", ["row", "seed", "state", "why"], cells,
        records, about, second=len(cells) > MANY,
    )  # fmt: skip


def settings(report: Report) -> Table | None:
    """Return the options in which rows that read them differ; None where there is none."""
    every = [_settings(row.runs[0]) for row in report.rows]
    varied = [name for name, values in _values(every) if len({*values} - {None}) > 1]
    told = {f"{name.removesuffix('name')}_target_" for name in varied if name in TELLING}
    about = {"the cells": f"{words.NOTHING} where the row does not read the option"}
    title = "In what the rows differ"
    shown = [name for name in varied if name not in told]
    return _options(report, every, shown, "options", title, about)


def further_settings(report: Report) -> Table | None:
    """Return the options that some rows read and others do not; None where there is none."""
    every = [_settings(row.runs[0]) for row in report.rows]
    names = [name for name, values in _values(every)
             if None in values and len({*values}) == 2]  # fmt: skip
    title = "Options that only some of the rows read"
    return _options(report, every, names, "options_of_some", title, {})


def _values(every: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, list[str | None]]]:
    """Yield each option with its values in all rows."""
    for name in dict.fromkeys(name for each in every for name in each):
        yield name, [each.get(name) for each in every]


def _options(
    report: Report,
    every: Sequence[Mapping[str, str]],
    names: Sequence[str],
    table: str,
    title: str,
    about: Mapping[str, str],
) -> Table | None:
    """Return a table of options; its lines are options, or rows where those are many."""
    if not names:
        return None
    rows = [row.name for row in report.rows]
    values = [[each.get(name, words.NOTHING) for name in names] for each in every]
    records = [
        {"option": name, "row": row, "value": each.get(name)}
        for name in names
        for row, each in zip(rows, every, strict=True)
    ]
    if len(rows) > FEW_ROWS:
        heads = ["row", *names]
        cells = [[row, *line] for row, line in zip(rows, values, strict=True)]
    else:
        heads = ["option", *rows]
        cells = [[name, *column] for name, *column in zip(names, *values, strict=True)]
    second = table != "options" or len(names) > MANY
    return Table(table, f"{table}.csv", title, heads, cells, records, about, second=second)


def _settings(run: ScoredRun) -> dict[str, str]:
    """Return what decides a run's result but for seed and data, names of groups first."""
    (deciding,) = Namesakes.of([run]).deciding
    named = {name: run.settings[name] for name in TELLING if name in run.settings}
    return named | {name: render(deciding[name]) for name in deciding if name not in OUTSIDE}


def training(report: Report) -> Table:
    """Return how large the rows' networks are, how long they trained, and what it took."""
    heads = ["row", "parameters", "seeds", "epochs", "tested epoch", "stops", "training",
             "inference"]  # fmt: skip
    cells, records = [], []
    for row in report.rows:
        parameters = row.mean("model/parameters")
        seconds = [row.mean(f"{part}/seconds") for part in ("train", "inference")]
        epochs = [run.epochs for run in row.runs]
        best = [run.best_epoch for run in row.runs]
        cells.append([
            row.name, words.count(parameters), ", ".join(map(str, row.seeds)), _range(epochs),
            _range(best), words.listed(map(_stops, row.runs)), *map(words.duration, seconds),
        ])  # fmt: skip
        records.append({
            "row": row.name, "parameters": None if parameters is None else round(parameters),
            "seeds": list(row.seeds), "epochs": epochs, "tested_epochs": best,
            "train_seconds": seconds[0], "inference_seconds": seconds[1],
        })  # fmt: skip
    about = {
        "epochs": "that the runs trained; a range where they differ",
        "tested epoch": f"whose checkpoint was tested, counted from 1{_best_by(report)}",
        "stops": "at most so many epochs; or after so many without a better score",
        "training": "mean over the runs, with validation",
        "inference": "mean over the runs, of the whole test set",
    }
    return Table("training", "training.csv", "Size, epochs and time", heads, cells, records, about)


def _stops(run: ScoredRun) -> str:
    most = run.settings.get("trainer.max_epochs", "")
    patience = run.settings.get("callbacks.early_stopping.patience", "")
    parts = [f"at {most}" if most else "", f"after {patience} without gain" if patience else ""]
    return ", ".join(filter(None, parts))


def _best_by(report: Report) -> str:
    names = [run.settings.get("callbacks.best.monitor", "") for run in _runs(report)]
    return f": the best by {words.listed(names)}" if any(names) else ""


def _range(numbers: Sequence[int | None]) -> str:
    """Return `8`, or `6 to 8`; a dash where one is not known."""
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return words.NOTHING
    low, high = min(known), max(known)
    return str(low) if low == high else f"{low} to {high}"


def origin(report: Report) -> Table:
    """Return command, data, metric, code and machine, one line each."""
    facts = {name: value for name, value in _facts(report) if value not in ("", words.NOTHING)}
    return Table(
        "origin", "origin.csv", "Command, data, metric and code", ["", ""],
        [[name, value] for name, value in facts.items()],
        [{"name": name, "value": value} for name, value in facts.items()],
    )  # fmt: skip


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    runs = _runs(report)
    setting = report.setting

    def tagged(tag: Tag) -> str:
        return words.listed(run.tag(tag) for run in runs)

    yield "command", report.options.command
    yield "data set", f"{setting['dataset']}, fingerprint {setting['fingerprint'][:16] or '–'}"
    size = f"{report.patches:,} patches in {words.plural(report.areas, 'area')}"
    size += f" of {words.plural(report.domains, 'domain')}" if report.unit == "domain" else ""
    yield "test set", f"split {setting['split']}: {size}"
    if report.convention is not None:
        definition = DEFINITIONS.get(report.convention, "")
        yield "mIoU", f"{report.convention}: {definition}"
    yield "seeds", ", ".join(map(str, sorted({run.seed for run in runs})))
    yield "version", tagged(Tag.VERSION)
    dirty = "with uncommitted changes"
    yield (
        "commit",
        words.listed(
            f"{run.tag(Tag.COMMIT)[:12]}{f' {dirty}' if run.tag(Tag.DIRTY) == 'true' else ''}"
            for run in runs
        ),
    )
    yield "packages", tagged(Tag.PACKAGES)
    yield "machine", tagged(Tag.MACHINE)


def run_list(report: Report) -> Table:
    """Return each run with its score, its folder and its MLflow run."""
    cells, records = [], []
    for row, run, score in _each(report):
        folder = None if run.folder is None else str(run.folder.absolute())
        cells.append([
            row.name, str(run.seed), words.number(score), str(run.best_epoch or words.NOTHING),
            run.record.identity or words.NOTHING, run.record.run_id or words.NOTHING,
            folder or words.NOTHING,
        ])  # fmt: skip
        records.append({
            "row": row.name, "seed": run.seed, "miou": score, "tested_epoch": run.best_epoch,
            "identity": run.record.identity, "mlflow_run": run.record.run_id,
            "folder": folder,
        })  # fmt: skip
    heads = ["row", "seed", "mIoU", "tested epoch", "identity", "MLflow run", "folder"]
    about = {
        "identity": "equal for runs of one experiment and seed on the same data",
        "folder": "a click selects it, to be copied; `open` leads there from this page's own "
        "file, not from within MLflow, whose view of a page lets no link out",
    }
    return Table("runs", "runs.csv", "All runs", heads, cells, records, about, second=True)


def addresses(report: Report, page: str | None) -> dict[str, str]:
    """Return where cells of `run_list` lead to, by the cell: folders, and runs of a server.

    Args:
        report: With the runs.
        page: The folder of the page, so that links hold where both are moved together; None: not
            known.
    """
    links = {}
    for _, run, _ in _each(report):
        if run.folder is not None and run.folder.is_dir():
            relative = os.path.relpath(run.folder, page) if page else None
            links[str(run.folder.absolute())] = (
                quote(relative) if relative else run.folder.absolute().as_uri()
            )
        if run.record.store.startswith(("http://", "https://")) and run.record.run_id:
            store = run.record.store.rstrip("/")
            links[run.record.run_id] = f"{store}/#/runs/{quote(run.record.run_id)}"
    return links


def _runs(report: Report) -> list[ScoredRun]:
    return [run for row in report.rows for run in row.runs]


def _each(report: Report) -> Iterator[tuple[Row, ScoredRun, float]]:
    for row in report.rows:
        for run, score in zip(row.runs, row.scores, strict=True):
            yield row, run, score
