from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from flair2_exp.report.results import Report, ReportOptions
from flair2_exp.report.runs import AbsentRun, RunSet
from flair2_exp.report.write import report_runs
from flair2_exp.tracking.tags import Tag
from tests.report.made_runs import HOSTILE, changed, make_runs

QUICK: Final = ReportOptions(resamples=200)


@pytest.fixture(scope="session")
def run_set(tmp_path_factory: pytest.TempPathFactory) -> RunSet:
    """Three rows of two seeds, one with a hostile name; a seed has failed."""
    skills = {"unet": 1.0, "utt": 1.2, "utt_months": 1.6}
    made = make_runs(tmp_path_factory.mktemp("runs"), skills, seeds=2, areas=12)
    hostile = {Tag.ROW: HOSTILE}
    runs = [changed(run, tags=hostile) if run.row == "utt_months" else run for run in made]
    return RunSet(tuple(runs), (AbsentRun("utt", 3, "failed", "exit status 1"),))


@pytest.fixture(scope="session")
def written(run_set: RunSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """The report of these runs, with its files."""
    out = tmp_path_factory.mktemp("report")
    return report_runs(run_set, out, ("md", "csv", "json", "png", "svg", "html"), QUICK), out
