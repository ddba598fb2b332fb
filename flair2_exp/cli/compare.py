"""`flair2-exp compare`: two runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flair2_exp.cli import shown
from flair2_exp.cli.verbs import verb

if TYPE_CHECKING:
    from flair2_exp.report.comparison import Comparison
    from flair2_exp.report.runs import Curve


@verb(
    "compare",
    examples="""
    flair2-exp compare outputs/unet/TIME outputs/utt/TIME
    flair2-exp compare multirun/models/0_unet_seed=1 multirun/models/5_utt_seed=1
    flair2-exp compare RUN RUN --out figures    # and figures/curves.png
    """,
)
@click.argument("one", metavar="RUN", type=shown.PLACE)
@click.argument("other", metavar="RUN", type=shown.PLACE)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Write the learning curves there, as a figure.",
)  # fmt: skip
@click.option(
    "--unit", type=click.Choice(["auto", "domain", "area"]), default="auto", show_default=True,
    help="What the intervals are over.",
)  # fmt: skip
@shown.tracking_uri
@shown.as_json
def command(
    one: str, other: str, out: Path | None, unit: Any, tracking_uri: str, as_json: bool
) -> None:
    """Compare two runs: options that differ, scores by class with intervals, learning curves.

    RUN is a run's folder, or the id of its MLflow run. Differences are the second run minus the
    first, with 95 % intervals over the test set's domains or areas. They compare these two trained
    networks: what other seeds would give, a sweep over several tells (flair2-exp report).
    """
    from flair2_exp.report.comparison import compare, save_curves
    from flair2_exp.report.results import ReportOptions
    from flair2_exp.results.run import RecordedRun

    first, second = (RecordedRun.find(each, tracking_uri).folder for each in (one, other))
    compared = compare(first, second, ReportOptions(unit=unit))
    figure = save_curves(compared, out) if out is not None else None
    if as_json:
        shown.print_json({**_as_json(compared), "figure": figure})
        return
    _print(compared)
    if figure is not None:
        print(f"\ncurves    {figure}")


def _print(compared: Comparison) -> None:
    from flair2_exp.report import words
    from flair2_exp.values import render

    report = compared.report
    names = [row.name for row in report.rows]
    for name, run in zip(names, (compared.one, compared.other), strict=True):
        print(f"{name}: {run.source}")
    print()
    if compared.options:
        rows = [[name, *map(render, both)] for name, both in compared.options.items()]
        shown.print_table(["option", *names], rows)
    else:
        print("No option differs.")
    print()
    lines = [
        [name, words.number(a.value), words.number(b.value), words.signed(d.value),
         words.interval(d.shown, sign=True)]
        for name, a, b, d in compared.scores
    ]  # fmt: skip
    heads = ["IoU", *(f" {name}" for name in names), " difference", " 95 % interval"]
    shown.print_table(heads, lines)
    units = words.plural(report.units, f"test {report.unit}")
    known = report.differences[0].miou.low is not None
    given = "Intervals are over" if known else "No interval can be given over"
    print(f"\n{given} {units}; they are for these two networks, not for other seeds.")
    if report.synthetic:
        print("Scores on the synthetic sample: they say nothing about real land cover.")
    for name, run in zip(names, (compared.one, compared.other), strict=True):
        for metric, curve in run.curves.items():
            print(f"{metric:<9} {_sparkline(curve)}  {name}")


def _sparkline(curve: Curve) -> str:
    """Return a curve in one line, at most 40 letters wide, with its ends."""
    values = [value for _, value in curve]
    step = max(1, -(-len(values) // 40))
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    bars = "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (each - low) / span))] for each in values[::step])
    return f"{bars}  {values[0]:.4f} → {values[-1]:.4f}, {len(values)} epochs"


def _as_json(compared: Comparison) -> Mapping[str, Any]:
    def score(value: Any) -> Mapping[str, Any]:
        low, high = value.shown
        return {"value": value.value, "low": low, "high": high}

    first, second = compared.report.rows
    lines: Sequence[Any] = compared.scores
    return {
        "runs": [{"name": row.name, "folder": row.runs[0].source} for row in (first, second)],
        "options": {name: list(both) for name, both in compared.options.items()},
        "scores": {
            name: {"first": score(a), "second": score(b), "difference": score(d)}
            for name, a, b, d in lines
        },
        "unit": compared.report.unit,
        "units": compared.report.units,
    }
