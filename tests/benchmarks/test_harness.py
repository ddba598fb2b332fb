from __future__ import annotations

import argparse
import io
import json

import pytest
from benchmarks.harness import Figure, at_least, ratios, report, take_turns


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
    bound: float, status: int
) -> None:
    stream = io.StringIO()
    figures = [Figure("first", [0.9, 1.0, 1.0], must_reach=bound), Figure("second", [7.0])]
    assert report("demo", figures, facts={"threads": 2}, stream=stream) == status
    lines = stream.getvalue().splitlines()
    record = json.loads(lines[-1])
    assert record["reached"] == (status == 0)
    assert [figure["name"] for figure in record["figures"]] == ["first", "second"]
    assert record["figures"][0]["quartiles"] == [0.95, 1.0]
    assert ("MISSED" in stream.getvalue()) == (status == 1)


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    seconds = take_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warmup=1
    )
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert ratios([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]


def test_a_median_of_too_few_is_refused() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=at_least(5))
    assert parser.parse_args(["--rounds", "5"]).rounds == 5
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", "4"])
