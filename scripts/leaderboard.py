"""From MLflow runs or run folders to a leaderboard with error bars.

python scripts/leaderboard.py --sweep leaderboard --format md,csv,json,png,html
python scripts/leaderboard.py --sweep factors --factors --baseline plain
python scripts/leaderboard.py --folders multirun/leaderboard --out report
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.report.folders import read_folders
from flair2_exp.report.results import ReportOptions
from flair2_exp.report.runs import RunSet
from flair2_exp.report.statistics import RESAMPLES
from flair2_exp.report.store import read_mlflow
from flair2_exp.report.write import FORMATS, check_formats, draws, report_runs
from flair2_exp.streams import run
from flair2_exp.tracking.store import local_uri
from flair2_exp.tracking.tags import Tag


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    root = Path(os.environ.get("FLAIR2_EXP_ROOT", "."))
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = made.add_argument_group("runs (one of these)")
    source.add_argument("--sweep", help=f"runs of this sweep (MLflow tag {Tag.SWEEP})")
    source.add_argument(
        "--tag", action="append", default=[], metavar="KEY=VALUE", help="runs with this MLflow tag"
    )
    source.add_argument("--runs", default="", metavar="ID,ID", help="MLflow runs by id")
    source.add_argument(
        "--folders", nargs="+", type=Path, default=[], help="run folders, or folders of them"
    )
    made.add_argument(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI") or local_uri(root / "mlruns"),
        help="MLflow store (default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db)",
    )
    made.add_argument(
        "--format", default="terminal", help=f"any of {','.join(FORMATS)} (default: %(default)s)"
    )
    made.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder for files")
    made.add_argument("--baseline", help="row that others are measured against (default: first)")
    made.add_argument(
        "--factors",
        nargs="?",
        const="",
        metavar="KEY,KEY",
        help="full factorial over these config keys (without keys: the known ones that vary)",
    )
    made.add_argument(
        "--pairs",
        choices=("auto", "all", "baseline"),
        default="auto",
        help="comparisons to show and correct for (auto: all, with many rows against the baseline)",
    )
    made.add_argument(
        "--unit",
        choices=("auto", "domain", "area"),
        default="auto",
        help="what the bootstrap draws (auto: domains, where the test set has enough of them)",
    )
    made.add_argument(
        "--difference", type=float, metavar="MIOU", help="say how many seeds this one needs"
    )
    made.add_argument(
        "--strict",
        action="store_true",
        help="refuse runs of one row that are different experiments (else each is a row)",
    )
    made.add_argument("--resamples", type=int, default=RESAMPLES, help="default: %(default)s")
    made.add_argument("--title", help="of the report")
    return made


def read_runs(options: argparse.Namespace, *, curves: bool = True) -> RunSet:
    """Return the runs that the command line names; `curves` as by `read_mlflow`."""
    if options.folders:
        if options.sweep or options.tag or options.runs:
            raise ConfigError("--folders goes without --sweep, --tag and --runs: name one.")
        return read_folders(options.folders)
    for tag in options.tag:
        if "=" not in tag:
            raise ConfigError(f"--tag {tag} is not KEY=VALUE.")
    tags = dict(tag.split("=", 1) for tag in options.tag)
    ids = _listed(options.runs)
    return read_mlflow(
        options.tracking_uri, sweep=options.sweep, tags=tags, run_ids=ids, curves=curves
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(each for each in text.split(",") if each)


def main(arguments: list[str] | None = None) -> int:
    """Make the report; 1 and a line on standard error where that cannot be done."""
    options = parser().parse_args(arguments)
    try:
        formats = check_formats(_listed(options.format))
        wanted = ReportOptions(
            title=options.title or options.sweep or "Leaderboard",
            baseline=options.baseline,
            factors=None if options.factors is None else _listed(options.factors),
            pairs=options.pairs,
            unit=options.unit,
            resamples=options.resamples,
            difference=options.difference,
            strict=options.strict,
        )
        runs = read_runs(options, curves=draws(formats))
        report = report_runs(runs, options.out, formats, wanted)
    except FlairError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in report.paths:
        print(path)
    return 0


if __name__ == "__main__":
    run(main)
