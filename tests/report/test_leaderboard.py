from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.report import AbsentRun, Report, Run, build_report, words
from flair2_exp.report.leaderboard import Difference, Score
from flair2_exp.report.published import published
from flair2_exp.score import miou
from tests.report.made_runs import make_arrays, make_runs

QUICK = 200


def real(run: Run, **settings: str) -> Run:
    """The run as if it were one of the real, whole test set."""
    named = dict(run.settings) | settings
    return dataclasses.replace(
        run,
        setting={"dataset": "flair2", "split": "reference", "other_pixels": "keep"},
        settings=named,
        counts=dataclasses.replace(run.counts, patches=16_050),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    skills = {"unet": 1.0, "utt": 1.2, "utt_monthly": 1.6}
    return make_runs(tmp_path_factory.mktemp("runs"), skills, areas=16)


@pytest.fixture(scope="module")
def report(runs: list[Run]) -> Report:
    return build_report(runs, resamples=QUICK)


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
    assert row.parameters == 24_444_381
    assert row.train_seconds == pytest.approx(62.0)
    assert row.inference_seconds == pytest.approx(2.5)


def test_differences_are_of_all_pairs_and_corrected_over_them(report: Report) -> None:
    named = [(each.row, each.other) for each in report.differences]
    assert named == [("utt", "unet"), ("utt_monthly", "unet"), ("utt_monthly", "utt")]
    p = [each.p for each in report.differences]
    corrected = [each.p_holm for each in report.differences]
    assert None not in p + corrected
    assert sorted(zip(p, corrected, strict=True))[0][1] == pytest.approx(3 * min(p))  # type: ignore[operator,type-var]
    assert report.row("utt").against_baseline == report.differences[0]
    assert report.row("unet").against_baseline is None


def test_another_baseline_turns_signs_and_leaves_p(runs: list[Run], report: Report) -> None:
    turned = build_report(runs, baseline="utt_monthly", resamples=QUICK)
    before, after = report.differences[1], turned.row("unet").against_baseline
    assert after is not None
    assert after.miou.value == -before.miou.value  # type: ignore[operator]
    assert after.miou.low == pytest.approx(-before.miou.high)  # type: ignore[operator]
    assert after.p_holm == before.p_holm


def test_few_areas_are_told_with_what_they_cost(runs: list[Run], tmp_path: Path) -> None:
    few = build_report(runs, resamples=QUICK)
    assert any(note.startswith("Only 16 test areas: intervals are wide") for note in few.notes)
    many = make_runs(tmp_path, {"unet": 1.0}, areas=30)
    assert not any("Only" in note for note in build_report(many, resamples=QUICK).notes)


def test_a_baseline_without_a_finished_run_is_replaced_and_that_is_said(runs: list[Run]) -> None:
    known = [run for run in runs if run.row != "unet"]
    absent = [AbsentRun("unet", 1, "failed", "out of memory")]
    report = build_report(known, absent=absent, baseline="unet", resamples=QUICK)
    assert report.baseline == "utt"
    assert report.notes[0] == (
        "The baseline unet has no finished run: differences are to utt, the first row that has one."
    )
    planned = build_report(known, expected=[("unet", 1)], baseline="unet", resamples=QUICK)
    assert planned.baseline == "utt"


def test_many_rows_are_compared_with_the_baseline_alone(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, {f"r{at}": 1.0 for at in range(7)}, seeds=1, areas=5)
    report = build_report(runs, baseline="r3", resamples=QUICK)
    assert len(report.differences) == 6
    assert {each.other for each in report.differences} == {"r3"}
    assert len(build_report(runs, pairs="all", resamples=QUICK).differences) == 21


def test_failed_and_missing_seeds_are_shown_and_not_averaged(runs: list[Run]) -> None:
    there = [run for run in runs if (run.row, run.seed) not in {("utt", 2), ("unet", 3)}]
    failed = AbsentRun("utt", 2, "failed", "out of memory")
    report = build_report(there, absent=[failed, AbsentRun("x", 1, "killed")], resamples=QUICK)
    row = report.row("utt")
    assert row.seeds == (1, 3)
    assert row.absent == (failed,)
    assert row.miou.value == pytest.approx(np.mean(row.scores))
    assert words.seeds(row) == "2 of 3 (seed 2: failed)"
    assert words.seeds(report.row("unet")) == "2 of 3 (seed 3: missing)"
    assert [row.name for row in report.rows] == ["unet", "utt", "utt_monthly"]
    assert "utt, seed 2: failed (out of memory); not in any figure." in report.notes
    assert "x, seed 1: killed; not in any figure." in report.notes


def test_expected_seeds_without_a_trace_are_missing(runs: list[Run]) -> None:
    expected = [(row, seed) for row in ("unet", "utt", "utt_monthly") for seed in (1, 2, 3, 4)]
    report = build_report(runs, expected=expected, resamples=QUICK)
    assert {(each.row, each.seed, each.state) for each in report.absent} == {
        (row, 4, "missing") for row in ("unet", "utt", "utt_monthly")
    }


def test_a_seed_done_after_it_failed_is_not_absent(runs: list[Run]) -> None:
    report = build_report(runs, absent=[AbsentRun("utt", 2, "failed")], resamples=QUICK)
    assert report.absent == ()


def test_published_figures_stand_beside_real_test_scores_alone(runs: list[Run]) -> None:
    assert all(row.published is None for row in build_report(runs, resamples=QUICK).rows)
    settings = {"model.name": "utt", "aug.geometry": "flips"}
    settings |= {"s2_preproc.cloud_filter": "true", "s2_preproc.monthly": "true"}
    whole = [real(run, **(settings if run.row == "utt_monthly" else {})) for run in runs]
    report = build_report(whole, resamples=QUICK)
    found = report.row("utt_monthly").published
    assert found is not None
    assert (found.best, found.mean, found.deviation) == (0.5758, 0.5623, 0.0056)
    assert report.row("unet").published is not None
    assert any("Published" in note for note in report.notes)


@pytest.mark.parametrize("change", ["dataset", "other_pixels", "patches"])
def test_published_figures_stand_beside_no_other_test_set(runs: list[Run], change: str) -> None:
    changed = []
    for run in (real(run) for run in runs if run.row == "unet"):
        if change == "patches":
            counts = dataclasses.replace(run.counts, patches=16_049)
            changed.append(dataclasses.replace(run, counts=counts))
        else:
            setting = dict(run.setting) | {change: "sample" if change == "dataset" else "drop"}
            changed.append(dataclasses.replace(run, setting=setting))
    assert build_report(changed, resamples=QUICK).rows[0].published is None


def test_published_rows_are_told_by_their_settings() -> None:
    plain = {
        "model.name": "unet", "model.encoder": "resnet34", "aug.geometry": "none",
        "metadata.enabled": "false", "s2_preproc.cloud_filter": "false",
        "s2_preproc.monthly": "false",
    }  # fmt: skip
    months = {"s2_preproc.cloud_filter": "true", "s2_preproc.monthly": "true"}
    wanted = {
        0.5467: {},
        0.5517: {"aug.geometry": "flips", "metadata.enabled": "true"},
        0.5490: {"model.name": "utt"},
        0.5580: {"model.name": "utt"} | months,
        0.5623: {"model.name": "utt", "aug.geometry": "flips"} | months,
    }
    for mean, changes in wanted.items():
        found = published(plain | changes)
        assert found is not None
        assert found.mean == mean
    assert published(plain | {"model.encoder": "resnet50"}) is None
    assert published(plain | {"model.name": "utt", "s2_preproc.monthly": "true"}) is None


def test_runs_of_two_data_sets_are_refused(runs: list[Run]) -> None:
    other = dataclasses.replace(runs[-1], setting=dict(runs[-1].setting) | {"dataset": "flair2"})
    with pytest.raises(ConfigError, match="different data sets cannot be compared"):
        build_report([*runs[:-1], other])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"baseline": "resnet"}, "baseline resnet is no row"),
        ({"unit": "pixel"}, "unit=pixel"),
        ({"pairs": "some"}, "pairs=some"),
        ({"resamples": 10}, "resamples=10"),
    ],
)
def test_unknown_options_are_refused(
    runs: list[Run], options: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        build_report(runs, **options)  # type: ignore[arg-type]


def test_nothing_to_report_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="utt seed 1: failed"):
        build_report([], absent=[AbsentRun("utt", 1, "failed")])


def test_two_runs_of_one_seed_are_refused(runs: list[Run]) -> None:
    with pytest.raises(ConfigError, match="row unet has two runs of seed 1"):
        build_report([*runs, runs[0]])


def test_rows_of_one_name_are_reported_by_what_differs(runs: list[Run]) -> None:
    same = [
        dataclasses.replace(run, row="debug", settings={"model.name": run.row})
        for run in runs
        if run.row != "unet"
    ]
    expected = [("debug", seed) for seed in (1, 2, 3)]
    report = build_report(same, expected=expected, resamples=QUICK)
    assert [row.name for row in report.rows] == [
        "debug (model.name=utt)",
        "debug (model.name=utt_monthly)",
    ]
    assert report.absent == ()


def test_one_seed_is_said_to_leave_its_luck_unknown(runs: list[Run]) -> None:
    report = build_report([run for run in runs if run.seed == 1], resamples=QUICK)
    assert any(note.startswith("One seed only: unet, utt, utt_monthly") for note in report.notes)
    assert report.rows[0].deviation is None
    assert not report.differences[0].seeds_known


def test_domains_can_be_drawn_instead_of_areas(runs: list[Run]) -> None:
    report = build_report(runs, unit="domain", resamples=QUICK)
    by_area = build_report(runs, resamples=QUICK)
    assert (report.areas, by_area.areas) == (4, 16)
    assert report.rows[1].miou.value == pytest.approx(by_area.rows[1].miou.value)
    assert any("Only 4 test domains" in note for note in report.notes)


def test_a_logged_score_that_is_not_the_counts_is_told(runs: list[Run]) -> None:
    wrong = dataclasses.replace(runs[0], metrics={"test/miou": 0.9})
    report = build_report([wrong, *runs[1:]], resamples=QUICK)
    assert any("unet, seed 1: logged test/miou 0.9000" in note for note in report.notes)


def test_a_single_row_is_reported_without_comparisons(runs: list[Run]) -> None:
    report = build_report(runs[:3], resamples=QUICK)
    assert report.differences == ()
    assert words.findings(report) == []
    assert report.rows[0].miou.low is not None


@pytest.fixture(scope="module")
def factorial_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    cells = list(itertools.product((0, 1), repeat=2))
    skills = {f"c{f}{m}": 1.0 + 0.5 * f for f, m in cells}
    made = make_runs(tmp_path_factory.mktemp("cells"), skills, seeds=2, areas=16)
    return [
        dataclasses.replace(
            run,
            settings={
                "s2_preproc.cloud_filter": "true" if run.row[1] == "1" else "false",
                "s2_preproc.monthly": "true" if run.row[2] == "1" else "false",
            },
        )
        for run in made
    ]


def test_factors_give_effects_of_the_rows_means(factorial_runs: list[Run]) -> None:
    report = build_report(factorial_runs, factors=[], resamples=999)
    assert report.factorial is not None
    effects = {each.row: each for each in report.factorial.effects}
    mean = {row.name: row.miou.value for row in report.rows}
    expected = (mean["c10"] + mean["c11"] - mean["c00"] - mean["c01"]) / 2  # type: ignore[operator]
    assert effects["cloud filter"].miou.value == pytest.approx(expected)
    assert effects["cloud filter"].p_holm is not None
    assert effects["cloud filter"].p_holm < 0.05
    assert list(effects) == ["cloud filter", "monthly averages", "cloud filter × monthly averages"]
    assert report.factorial.over_seeds is not None
    assert report.factorial.over_seeds.value[0] == pytest.approx(expected)


def test_a_missing_cell_is_named_and_the_rest_of_the_report_stands(
    factorial_runs: list[Run],
) -> None:
    there = [run for run in factorial_runs if run.row != "c10"]
    report = build_report(there, factors=[], resamples=QUICK)
    assert report.factorial is not None
    assert "cloud filter=true, monthly averages=false" in report.factorial.refused
    assert len(report.differences) == 3
    assert any("cloud filter=true" in said for said in words.findings(report))


def difference(
    value: float | None = 0.012, p: float | None = 0.01, holm: float | None = 0.02, **more: object
) -> Difference:
    low, high = (None, None) if value is None or p is None else (value - 0.009, value + 0.009)
    error = None if p is None else 0.004
    score = Score(value, error, low, high)
    fields = {"row": "utt", "other": "unet", "miou": score, "p": p, "p_holm": holm}
    fields |= {"classes": (), "class_p": (), "class_p_holm": (), "seeds_known": True}
    return Difference(**(fields | more))  # type: ignore[arg-type]


def test_sentences_claim_what_the_test_shows() -> None:
    assert words.sentence(difference(), 10) == (
        "utt − unet: +0.0120 mIoU, 95 % interval [+0.0030, +0.0210], p = 0.020 "
        "(Holm over 10 comparisons): more than the luck of areas and seeds explains."
    )
    alone = words.sentence(difference(holm=0.0999), 10)
    assert "not distinguishable" in alone
    assert "p = 0.010 if it had been the only one" in alone
    unsure = words.sentence(difference(0.002, 0.6, 1.0), 1)
    assert "does not show that they are equal" in unsure
    assert "from −0.0070 to +0.0110" in unsure
    assert "(one comparison)" in unsure


def test_sentences_say_what_is_not_known() -> None:
    assert "the luck of the seed is unknown" in words.sentence(difference(seeds_known=False), 1)
    assert "no interval can be given" in words.sentence(difference(0.012, None, None), 1)
    same = difference(miou=Score(0.0, 0.0, 0.0, 0.0), p=1.0, p_holm=1.0)
    assert words.sentence(same, 1).endswith("the two are equal.")


def test_the_method_speaks_of_factors_where_there_are_some(
    report: Report, factorial_runs: list[Run]
) -> None:
    assert "factors" not in words.method(report)
    assert words.method(build_report(factorial_runs, factors=[], resamples=200)).endswith(
        "over pairs × classes, factors over their effects."
    )


def test_numbers_read_well() -> None:
    assert words.signed(-0.00001) == "0.0000"
    assert words.signed(-0.0123) == "−0.0123"
    assert words.p_value(0.0001) == "< 0.001"
    assert words.number(None) == "–"
    assert words.plural(1, "area") == "1 area"
    assert words.plural(16_050, "area") == "16,050 areas"
    assert [words.duration(each) for each in (2.5, 357.0, 11_100.0)] == [
        "2.5 s", "5:57 min", "3 h 05 min",
    ]  # fmt: skip
