"""From many runs to an answer: leaderboard, statistics, figures, tables, page.

from flair2_exp.report.results import ReportOptions
from flair2_exp.report.store import read_mlflow
from flair2_exp.report.write import report_runs

runs = read_mlflow("sqlite:///mlflow.db", sweep="leaderboard")
report = report_runs(runs, Path("report"), ["md", "html"], ReportOptions(baseline="unet"))

Nothing is imported here, so that `rows.tell_apart` costs a dry run no NumPy.
"""
