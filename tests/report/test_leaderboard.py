from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.report import leaderboard, words
from flair2_exp.report.results import Report, ReportOptions
from flair2_exp.report.runs import AbsentRun, RunSet, ScoredRun
from flair2_exp.report.sentences import findings, method, notes
from flair2_exp.score import miou
from flair2_exp.tracking.tags import Tag
from tests.report.made_runs import as_cell, changed, make_arrays, make_runs


def build_report(
    runs: Sequence[ScoredRun],
    absent: Sequence[AbsentRun] = (),
    expected: Sequence[tuple[str, int]] = (),
    resamples: int = 200,
    **options: Any,
) -> Report:
    """A report of few resamples."""
    wanted = ReportOptions(resamples=resamples, **options)
    return leaderboard.build_report(RunSet(tuple(runs), tuple(absent)), wanted, expected)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[ScoredRun]:
    skills = {"unet": 1.0, "utt": 1.2, "utt_monthly": 1.6}
    return make_runs(tmp_path_factory.mktemp("runs"), skills, areas=16)


@pytest.fixture(scope="module")
def report(runs: list[ScoredRun]) -> Report:
    return build_report(runs)


def test_a_row_is_mean_deviation_and_best_of_its_runs(report: Report) -> None:
    scores = [
        float(miou(make_arrays(1.2, row=1, seed=seed, areas=16)["confusion"].sum(axis=0)))
        for seed in (1, 2, 3)
    ]
    row = report.row("utt")
    assert row.seeds == (1, 2, 3)
    assert row.scores == pytest.approx(scores)
    assert row.miou.value == pytest.approx(np.mean(scores))
    assert row.deviation == pytest.approx(np.std(scores, ddof=1))
    assert row.best == pytest.approx(max(scores))
    assert row.mean("model/parameters") == 24_444_381
    assert row.mean("train/seconds") == pytest.approx(62.0)
    assert row.mean("inference/seconds") == pytest.approx(2.5)
    assert row.mean("nothing") is None


def test_differences_are_of_all_pairs_and_corrected_over_them(report: Report) -> None:
    named = [(each.row, each.other) for each in report.differences]
    assert named == [("utt", "unet"), ("utt_monthly", "unet"), ("utt_monthly", "utt")]
    for each in report.differences:
        for score in (each.miou, *each.classes):
            assert score.p is not None
            assert score.joint_p is not None
            assert score.p <= score.joint_p <= 3 * 12 * score.p + 0.05  # of 200 resamples
    assert report.row("utt").against_baseline == report.differences[0]
    assert report.row("unet").against_baseline is None


def test_another_baseline_turns_signs_and_leaves_p(runs: list[ScoredRun], report: Report) -> None:
    turned = build_report(runs, baseline="utt_monthly")
    before, after = report.differences[1], turned.row("unet").against_baseline
    assert after is not None
    assert after.miou.value == -before.miou.value  # type: ignore[operator]
    assert after.miou.low == pytest.approx(-before.miou.high)  # type: ignore[operator]
    assert after.miou.joint_low == pytest.approx(-before.miou.joint_high)  # type: ignore[operator]
    assert after.miou.joint_p == before.miou.joint_p


def test_few_areas_are_told_with_what_they_cost(report: Report, tmp_path: Path) -> None:
    assert any(note.startswith("Only 4 test domains: intervals are wide") for note in notes(report))
    many = make_runs(tmp_path, {"unet": 1.0}, areas=30)
    assert not any("Only" in note for note in notes(build_report(many, unit="area")))


def test_a_baseline_without_a_finished_run_is_replaced_and_that_is_said(
    runs: list[ScoredRun],
) -> None:
    others = [run for run in runs if run.row != "unet"]
    absent = [AbsentRun("unet", 1, "failed", "out of memory")]
    report = build_report(others, absent=absent, baseline="unet")
    assert report.baseline == "utt"
    assert notes(report)[0] == (
        "The baseline unet has no finished run: differences are to utt, the first row that has one."
    )
    planned = build_report(others, expected=[("unet", 1)], baseline="unet")
    assert planned.baseline == "utt"


def test_many_rows_are_compared_with_the_baseline_alone(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, {f"r{at}": 1.0 for at in range(7)}, seeds=1, areas=5)
    report = build_report(runs, baseline="r3")
    assert len(report.differences) == 6
    assert {each.other for each in report.differences} == {"r3"}
    assert len(build_report(runs, pairs="all").differences) == 21


def test_failed_and_missing_seeds_are_shown_and_not_averaged(runs: list[ScoredRun]) -> None:
    there = [run for run in runs if (run.row, run.seed) not in {("utt", 2), ("unet", 3)}]
    failed = AbsentRun("utt", 2, "failed", "out of memory")
    report = build_report(there, absent=[failed, AbsentRun("x", 1, "killed")])
    row = report.row("utt")
    assert row.seeds == (1, 3)
    assert row.absent == (failed,)
    assert row.miou.value == pytest.approx(np.mean(row.scores))
    assert words.seeds(row) == "2 of 3 (seed 2: failed)"
    assert words.seeds(report.row("unet")) == "2 of 3 (seed 3: missing)"
    assert [row.name for row in report.rows] == ["unet", "utt", "utt_monthly"]
    assert "utt, seed 2: failed (out of memory); not in any figure." in notes(report)
    assert "x, seed 1: killed; not in any figure." in notes(report)


def test_expected_seeds_without_a_trace_are_missing(runs: list[ScoredRun]) -> None:
    expected = [(row, seed) for row in ("unet", "utt", "utt_monthly") for seed in (1, 2, 3, 4)]
    done_again = AbsentRun("utt", 2, "failed")
    report = build_report(runs, absent=[done_again], expected=expected)
    assert {(each.row, each.seed, each.state) for each in report.absent} == {
        (row, 4, "missing") for row in ("unet", "utt", "utt_monthly")
    }


@pytest.mark.parametrize("place", [0, -1])
def test_a_run_of_another_data_set_is_left_out_and_named(runs: list[ScoredRun], place: int) -> None:
    """By the baseline, wherever the other run stands."""
    mixed = [*runs]
    mixed[place] = changed(runs[place], tags={Tag.DATASET: "flair2"})
    alone = [run for run in runs if run is not runs[place]]
    report, without = build_report(mixed, baseline="utt"), build_report(alone, baseline="utt")
    (left,) = (each for each in report.absent if each.state == "not comparable")
    assert (left.row, left.seed) == (runs[place].row, runs[place].seed)
    assert left.reason == "other data sets: flair2, where utt has sample"
    assert [row.miou for row in report.rows] == [row.miou for row in without.rows]
    with pytest.raises(ConfigError, match="different data sets cannot be compared"):
        build_report(mixed, strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "resnet"}, "baseline=resnet is not a row"),
        ({"unit": "pixel"}, "unit=pixel"),
        ({"pairs": "some"}, "pairs=some"),
        ({"resamples": 10}, "resamples=10"),
    ],
)
def test_unknown_options_are_refused(
    runs: list[ScoredRun], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_report(runs, **options)  # type: ignore[arg-type]


def test_nothing_to_report_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="utt seed 1: failed"):
        build_report([], absent=[AbsentRun("utt", 1, "failed")])


def test_rows_of_one_name_are_reported_by_what_differs(runs: list[ScoredRun]) -> None:
    names = ("model.name", "model._target_")
    same = [
        changed(run, tags={Tag.ROW: "debug"}, settings=dict.fromkeys(names, run.row))
        for run in runs
        if run.row != "unet"
    ]
    expected = [("debug", seed) for seed in (1, 2, 3)]
    report = build_report(same, expected=expected)
    assert [row.name for row in report.rows] == [
        "debug (model.name=utt)",
        "debug (model.name=utt_monthly)",
    ]
    assert report.absent == ()


def test_one_seed_is_said_to_leave_its_luck_unknown(runs: list[ScoredRun]) -> None:
    report = build_report([run for run in runs if run.seed == 1])
    assert any(note.startswith("One run only: unet, utt, utt_monthly") for note in notes(report))
    assert report.rows[0].deviation is None
    assert report.outlook is None


def test_nothing_is_tested_where_a_row_has_one_run(runs: list[ScoredRun]) -> None:
    report = build_report([run for run in runs if run.row != "utt" or run.seed == 1])
    single, tested = report.differences[0], report.differences[1]
    assert not single.seeds_known
    for score in (single.miou, *single.classes):
        assert (score.p, score.joint_p, score.joint_low) == (None, None, None)
        assert score.shown == (score.low, score.high) != (None, None)
    assert tested.seeds_known
    # The family is the one pair that is tested: nothing is corrected for the two that are not.
    alone = build_report([run for run in runs if run.row != "utt"]).differences[0]
    assert tested.miou == alone.miou
    assert not any("utt" in each and "p = " in each for each in findings(report)[1:])


def test_domains_are_drawn_and_areas_shown_beside(runs: list[ScoredRun], report: Report) -> None:
    by_area = build_report(runs, unit="area")
    assert (report.unit, report.units, by_area.unit, by_area.units) == ("domain", 4, "area", 16)
    for one, other in zip(report.rows, by_area.rows, strict=True):
        assert one.miou.value == pytest.approx(other.miou.value)
        assert one.miou.beside == other.miou.shown
        assert other.miou.beside == (None, None)
    for one, other in zip(report.differences, by_area.differences, strict=True):
        assert one.miou.beside == other.miou.shown
        assert one.classes[3].beside == other.classes[3].shown


def test_two_domains_are_too_few_and_that_is_said(runs: list[ScoredRun]) -> None:
    def in_two(run: ScoredRun) -> ScoredRun:
        areas = tuple(f"D{at % 2}/{at}" for at in range(16))
        return changed(run, counts=dataclasses.replace(run.counts, areas=areas))

    report = build_report([in_two(run) for run in runs])
    assert (report.unit, report.units, report.alike) == ("area", 16, (None, None))
    (said,) = (each for each in notes(report) if "2 test domains" in each)
    assert "93 or 90 %" in said


def test_how_alike_the_areas_of_a_domain_are_is_said(report: Report) -> None:
    level, difference = report.alike
    assert level is not None
    assert difference is not None
    (said,) = (each for each in notes(report) if "correlation" in each)
    assert words.signed(level, 2) in said


def test_the_seeds_that_a_difference_needs_are_said(runs: list[ScoredRun], report: Report) -> None:
    assert report.outlook is not None
    (said,) = (each for each in notes(report) if each.startswith("How many seeds?"))
    assert f"{report.outlook.visible(5):.4f} with 5" in said
    assert "needs" not in said
    asked = notes(build_report(runs, difference=0.9))
    assert any("0.9 needs 2 seeds per row" in each for each in asked)


def test_a_row_whose_best_epoch_is_its_last_is_named(runs: list[ScoredRun]) -> None:
    def trained(run: ScoredRun, best: float) -> ScoredRun:
        scores = {**run.record.scores, "train/epochs": 10.0, "best/epoch": best}
        return dataclasses.replace(run, record=dataclasses.replace(run.record, scores=scores))

    late = {("utt", 1), ("utt", 3)}
    report = build_report(
        [trained(run, 10.0 if (run.row, run.seed) in late else 9.0) for run in runs]
    )
    (said,) = (each for each in notes(report) if "best epoch" in each)
    assert "help: utt (2 of 3). " in said
    assert not any("best epoch" in each for each in notes(build_report(runs)))


def test_a_logged_score_that_is_not_the_counts_is_told(runs: list[ScoredRun]) -> None:
    record = dataclasses.replace(runs[0].record, scores={"test/miou": 0.9})
    wrong = dataclasses.replace(runs[0], record=record)
    report = build_report([wrong, *runs[1:]])
    assert any("unet, seed 1: logged test/miou 0.9000" in note for note in notes(report))


def test_a_single_row_is_reported_without_comparisons(runs: list[ScoredRun]) -> None:
    report = build_report(runs[:3])
    assert report.differences == ()
    assert findings(report) == []
    assert report.rows[0].miou.low is not None


@pytest.fixture(scope="module")
def factorial_runs(tmp_path_factory: pytest.TempPathFactory) -> list[ScoredRun]:
    cells = list(itertools.product((0, 1), repeat=2))
    skills = {f"c{f}{m}": 1.0 + 0.5 * f for f, m in cells}
    made = make_runs(tmp_path_factory.mktemp("cells"), skills, seeds=2, areas=16)
    return [as_cell(run) for run in made]


def test_factors_give_effects_of_the_rows_means(factorial_runs: list[ScoredRun]) -> None:
    report = build_report(factorial_runs, factors=(), resamples=999, unit="area")
    effects = {each.row: each for each in report.effects}
    mean = {row.name: row.miou.value for row in report.rows}
    expected = (mean["c10"] + mean["c11"] - mean["c00"] - mean["c01"]) / 2  # type: ignore[operator]
    assert effects["cloud filter"].miou.value == pytest.approx(expected)
    assert effects["cloud filter"].miou.joint_p is not None
    assert effects["cloud filter"].miou.joint_p < 0.05
    assert list(effects) == ["cloud filter", "monthly averages", "cloud filter × monthly averages"]
    over_seeds = effects["cloud filter"].over_seeds
    assert over_seeds is not None
    assert over_seeds.value == pytest.approx(expected)


def test_a_missing_cell_is_named_and_the_rest_of_the_report_stands(
    factorial_runs: list[ScoredRun],
) -> None:
    there = [run for run in factorial_runs if run.row != "c10"]
    report = build_report(there, factors=())
    assert "cloud filter=true, monthly averages=false" in report.factors_refused
    assert len(report.differences) == 3
    assert any("cloud filter=true" in said for said in findings(report))


def test_the_method_speaks_of_factors_where_there_are_some(
    report: Report, factorial_runs: list[ScoredRun]
) -> None:
    assert "factors" not in method(report)
    assert method(build_report(factorial_runs, factors=())).endswith(
        "of factors for all effects; p is below 0.05 where the interval leaves out 0."
    )
