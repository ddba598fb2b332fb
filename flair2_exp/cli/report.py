"""`flair2-exp report`: from MLflow runs or run folders to a leaderboard with error bars."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from flair2_exp.cli.verbs import option, verb
from flair2_exp.errors import ConfigError
from flair2_exp.results.finding import local_store

if TYPE_CHECKING:
    from flair2_exp.report.runs import RunSet

_path = click.Path(path_type=Path)


@verb(
    "report",
    usage="""
    [FOLDER]... [OPTIONS]
    --sweep NAME | --tag KEY=VALUE | --runs ID,ID [OPTIONS]
    """,
    examples="""
    flair2-exp report multirun/leaderboard --out report --format html,png
    flair2-exp report --sweep leaderboard --format md,csv,json
    flair2-exp report --sweep factors --factors --baseline plain
    """,
)
@click.argument("folders", nargs=-1, type=_path)
@option("--folders", "more", several=True, type=_path, hidden=True)
@option("--sweep", metavar="NAME", section="Runs of MLflow's", help="Runs of this sweep.")
@option(
    "--tag",
    "tags",
    multiple=True,
    metavar="KEY=VALUE",
    section="Runs of MLflow's",
    help="Runs with this tag; it may be repeated.",
)
@option("--runs", default="", metavar="ID,ID", section="Runs of MLflow's", help="Runs by id.")
@option(
    "--tracking-uri",
    metavar="URI",
    section="Runs of MLflow's",
    help="Their store (default: MLFLOW_TRACKING_URI, else the local one).",
)
@option(
    "--format",
    "form",
    default="terminal",
    metavar="NAMES",
    help="Any of terminal,md,csv,json,png,svg,html.",
)
@option(
    "--out",
    type=_path,
    default="outputs/report",
    show_default=True,
    metavar="FOLDER",
    help="Where files go.",
)
@option("--baseline", metavar="ROW", help="The row that others are measured against.")
@option(
    "--factors",
    is_flag=False,
    flag_value="",
    metavar="[KEY,KEY]",
    help="Full factorial over these options of a config (without: those that vary).",
)
@option(
    "--pairs",
    type=click.Choice(("auto", "all", "baseline")),
    default="auto",
    show_default=True,
    help="Comparisons to correct for (auto: all; with many rows, against the baseline).",
)
@option(
    "--unit",
    type=click.Choice(("auto", "domain", "area")),
    default="auto",
    show_default=True,
    help="What the bootstrap draws (auto: domains, where the test set has enough of them).",
)
@option("--difference", type=float, metavar="MIOU", help="Say how many seeds this one needs.")
@option("--strict", is_flag=True, help="Refuse runs of one row that are different experiments.")
@option("--resamples", type=int, metavar="N", help="Of the bootstrap (default: 10000).")
@option("--title", help="Of the report.")
@option("--json", "as_json", is_flag=True, help="Print what --format json writes; no files.")
def command(**chosen: Any) -> None:
    """Make a leaderboard with error bars from runs: those below FOLDERs, or those that MLflow has.

    Files are written to --out, and their paths printed. JSON has unrounded numbers; its keys are
    those of leaderboard.json.
    """
    options = SimpleNamespace(**chosen)
    from flair2_exp.report.results import ReportOptions
    from flair2_exp.report.statistics import RESAMPLES
    from flair2_exp.report.write import check_formats, draws, report_runs
    from flair2_exp.tracking.provenance import command_line

    formats = check_formats(_listed(options.form))
    wanted = ReportOptions(
        title=options.title or options.sweep or "Leaderboard",
        baseline=options.baseline,
        factors=None if options.factors is None else _listed(options.factors),
        pairs=options.pairs,
        unit=options.unit,
        resamples=options.resamples or RESAMPLES,
        difference=options.difference,
        strict=options.strict,
        command=command_line(sys.orig_argv),
    )
    if options.as_json:
        from flair2_exp.cli.shown import print_json
        from flair2_exp.report.leaderboard import build_report
        from flair2_exp.report.write import as_json

        print_json(as_json(build_report(_runs(options, curves=False), wanted)))
        return
    runs = _runs(options, curves=draws(formats))
    for path in report_runs(runs, options.out, formats, wanted).paths:
        print(path)


def _runs(options: SimpleNamespace, *, curves: bool) -> RunSet:
    """Return the runs that the command line names; `curves` as by `read_mlflow`."""
    from flair2_exp.report.folders import read_folders
    from flair2_exp.report.store import read_mlflow

    folders = [*options.folders, *options.more]
    if folders:
        if options.sweep or options.tags or options.runs:
            raise ConfigError("FOLDERs go without --sweep, --tag and --runs: name one.")
        return read_folders(folders)
    for tag in options.tags:
        if "=" not in tag:
            raise ConfigError(f"--tag {tag} is not KEY=VALUE.")
    uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local_store()
    tags = dict(tag.split("=", 1) for tag in options.tags)
    ids = _listed(options.runs)
    return read_mlflow(uri, sweep=options.sweep, tags=tags, run_ids=ids, curves=curves)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(each for each in text.split(",") if each)
