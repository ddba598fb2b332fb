"""Scores of a row beside mIoU, against loops over the counts."""

from __future__ import annotations

import numpy as np
import pytest

from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.results import Report, ReportOptions
from flair2_exp.report.runs import RunSet
from tests.report.made_runs import make_runs


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    runs = make_runs(tmp_path_factory.mktemp("runs"), {"unet": 1.0}, seeds=2, areas=8)
    return build_report(RunSet(tuple(runs)), ReportOptions(resamples=100))


def f1_by_class(confusion: np.ndarray) -> list[float]:
    precision = [confusion[c, c] / confusion[:, c].sum() for c in range(12)]
    recall = [confusion[c, c] / confusion[c].sum() for c in range(12)]
    return [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]


def test_f1_and_accuracy_are_means_over_runs_of_the_whole_test_set(report: Report) -> None:
    (row,) = report.rows
    totals = [run.counts.confusion.sum(axis=0) for run in row.runs]
    assert row.f1 == pytest.approx(np.mean([f1_by_class(each) for each in totals]))
    assert row.accuracy == pytest.approx(np.mean([np.trace(each) / each.sum() for each in totals]))


def test_the_score_of_a_domain_is_that_of_its_areas_together(report: Report) -> None:
    (row,) = report.rows
    scores = row.by_domain()
    assert len(scores) == report.domains
    for domain, score in scores.items():
        of_runs = []
        for run in row.runs:
            inside = [area.startswith(f"{domain}/") for area in run.counts.areas]
            total = run.counts.confusion[inside].sum(axis=0)
            of_classes = [
                total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(12)
            ]
            of_runs.append(np.mean(of_classes))
        assert score == pytest.approx(np.mean(of_runs))
