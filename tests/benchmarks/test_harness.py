from __future__ import annotations

import json
from types import ModuleType

import pytest

from benchmarks.harness import Figure, ratios, report, run, take_turns


def test_a_figure_is_judged_by_its_median_and_not_by_an_outlier() -> None:
    assert Figure("a", [1.0, 1.1, 9.0], must_reach=1.2).reached
    assert not Figure("a", [1.3, 1.1, 9.0], must_reach=1.2).reached
    assert Figure("a", [5.0, 0.1, 6.0], must_reach=5.0, direction="at least").reached
    assert not Figure("a", [4.9, 0.1, 6.0], must_reach=5.0, direction="at least").reached


def test_a_figure_without_a_bound_informs_only() -> None:
    figure = Figure("a", [3.0], unit="s")
    assert figure.reached
    assert figure.quartiles == (3.0, 3.0)


@pytest.mark.parametrize(("bound", "status"), [(1.0, 0), (0.5, 1)])
def test_the_report_ends_with_json_and_its_status_says_whether_all_is_reached(
    bound: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Figure("first", [0.9, 1.0, 1.0], must_reach=bound), Figure("second", [7.0])]
    assert report("demo", figures, {"threads": 2}) == status
    printed = capsys.readouterr().out
    record = json.loads(printed.splitlines()[-1])
    assert record["reached"] == (status == 0)
    assert record["facts"] == {"threads": 2}
    assert [figure["name"] for figure in record["figures"]] == ["first", "second"]
    assert record["figures"][0]["quartiles"] == [0.95, 1.0]
    assert ("MISSED" in printed) == (status == 1)


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    seconds = take_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warmup=1
    )
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert ratios([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]


def test_a_median_of_too_few_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = ModuleType("demo")
    benchmark.__dict__.update(ROUNDS=(5, 7), OPTIONS={"--flag": {"action": "store_true"}})
    benchmark.__dict__["measure"] = lambda options: ([Figure("a", [options.rounds])], {})
    assert run("demo", benchmark, ["--rounds", "5"]) == 0
    with pytest.raises(SystemExit):
        run("demo", benchmark, ["--rounds", "4"])
    assert "--rounds 4: the median is of 5 or more" in capsys.readouterr().err
