"""From many runs to an answer: leaderboard, statistics, figures.

from flair2_exp.report import read_mlflow, report_runs
found = read_mlflow("sqlite:///mlflow.db", sweep="leaderboard")
report = report_runs(found.runs, Path("report"), ["md", "html"], absent=found.absent)
"""

from flair2_exp.report.collect import (
    AbsentRun,
    Collected,
    Run,
    read_folder,
    read_folders,
    read_mlflow,
)
from flair2_exp.report.leaderboard import Report, build_report
from flair2_exp.report.render import report_runs

__all__ = [
    "AbsentRun",
    "Collected",
    "Report",
    "Run",
    "build_report",
    "read_folder",
    "read_folders",
    "read_mlflow",
    "report_runs",
]
