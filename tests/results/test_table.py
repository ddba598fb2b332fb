"""Tables of runs: what a condition keeps, and in which order they are."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair2_exp.errors import ConfigError, UsageError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED, KILLED, RUNNING, RunRecord
from flair2_exp.locking import locked
from flair2_exp.results import table
from flair2_exp.results.run import RecordedRun
from flair2_exp.results.table import Entry
from tests.lifecycle.made import config_below, finished_folder


def _entry(number: int, **values: float | int | str | None) -> Entry:
    """A run with these options and scores, which only memory holds."""
    scores = {n: float(v) for n, v in values.items() if "/" in n and isinstance(v, float)}
    options = {n: v for n, v in values.items() if n not in scores and v is not None}
    record = RunRecord({}, scores=scores, start=1000 * (number + 1))
    return Entry(RecordedRun(RunFolder(Path(f"runs/{number}")), record), "done", "", options)


NUMBERS = st.lists(
    st.one_of(st.none(), st.floats(-5, 5), st.integers(-5, 5).map(float)), min_size=1, max_size=12
)


@given(NUMBERS, st.floats(-5, 5))
def test_a_condition_keeps_what_python_would(values: list[float | None], limit: float) -> None:
    every = [_entry(at, **{"test/miou": value}) for at, value in enumerate(values)]
    known = [each for each in values if each is not None]
    for operator, holds in {
        ">=": lambda each: each >= limit,
        "<": lambda each: each < limit,
        "<=": lambda each: each <= limit,
        ">": lambda each: each > limit,
        "=": lambda each: each == limit,
    }.items():
        kept = table.selected(every, [f"test/miou{operator}{limit!r}"])
        assert [each.value("test/miou") for each in kept] == [each for each in known if holds(each)]


@given(NUMBERS, st.sampled_from(["test/miou", "test/loss", "-test/miou"]))
def test_sorting_keeps_all_runs_and_puts_the_best_first(
    values: list[float | None], by: str
) -> None:
    name = by.removeprefix("-")
    every = [_entry(at, **{name: value}) for at, value in enumerate(values)]
    order = table.ordered(every, by)
    assert sorted(map(id, order)) == sorted(map(id, every))
    shown = [each.value(name) for each in order]
    known = [each for each in shown if each is not None]
    assert shown[: len(known)] == known  # those without it are last
    assert known == sorted(known, reverse=by == "test/miou")


def test_conditions_read_options_groups_columns_and_scores() -> None:
    one = _entry(0, **{"model.name": "utt", "optimizer.lr": 0.01, "seed": 1, "name": "utt-x"})
    two = _entry(1, **{"model.name": "unet", "optimizer.lr": 0.1, "seed": 2, "name": "unet"})
    flag = _entry(2, **{"model.name": "unet", "data.satellite": False, "seed": 3, "name": "b"})
    every = [one, two, flag]
    for conditions, kept in {
        ("model=utt",): [one],
        ("model=utt,unet",): every,
        ("model!=utt",): [two, flag],
        ("model.name = unet", "optimizer.lr<0.2"): [two],
        ("name=u*",): [one, two],
        ("seed=1,3",): [one, flag],
        ("optimizer.lr=1e-2",): [one],
        ("optimizer.lr=null",): [flag],
        ("data.satellite=false",): [flag],
        ("status=done", "seed>=2"): [two, flag],
        ("started>1970-01-01 00",): [
            each for each in every if each.run.started and each.run.started > datetime(1970, 1, 1)
        ],
    }.items():
        assert table.selected(every, list(conditions)) == kept, conditions


@pytest.mark.parametrize("condition", ["model", "=utt", "", "model ~ utt"])
def test_a_condition_of_another_form_is_refused(condition: str) -> None:
    with pytest.raises(UsageError, match="expected NAME=VALUE"):
        table.selected([_entry(0)], [condition])


def test_a_name_that_no_run_has_is_refused_with_near_ones() -> None:
    with pytest.raises(UsageError, match="did you mean test/miou"):
        table.ordered([_entry(0, **{"test/miou": 0.5})], "test/mioux")
    assert table.selected([_entry(0)], ["optimizer.lr=1"]) == []  # an option, of none of these


def test_each_state_of_a_folder_has_its_word(tmp_path: Path) -> None:
    folders = {}
    for status in (FAILED, KILLED, RUNNING):
        folders[status] = finished_folder(
            tmp_path / status, config_below(tmp_path, f"name={status}"), status=status
        )
    finished_folder(tmp_path / "done", config_below(tmp_path, "name=done"))
    at_work = finished_folder(tmp_path / "now", config_below(tmp_path, "name=now"), status=RUNNING)
    torn = finished_folder(tmp_path / "torn", config_below(tmp_path, "name=torn"))
    torn.record.write_text("{")
    with locked(at_work.path):
        states = {each.value("name"): each.state for each in table.entries([tmp_path])}
    assert states == {FAILED: "failed", KILLED: "stopped", RUNNING: "stopped", "done": "done",
                      "now": "running", "torn": "damaged"}  # fmt: skip


def test_what_differs_is_what_decides_results_and_is_not_the_same(tmp_path: Path) -> None:
    for seed, rate in ((1, 0.1), (2, 0.01)):
        config = config_below(tmp_path / str(seed), f"seed={seed}", f"optimizer.lr={rate}")
        finished_folder(tmp_path / "runs" / str(seed), config)
    every = table.entries([tmp_path / "runs"])
    assert table.differing(every) == {"optimizer.lr": [0.1, 0.01]}


def test_a_folder_that_is_not_there_and_a_store_that_is_not_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        table.entries([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="no MLflow database"):
        table.entries(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ConfigError, match="no sweep of this name"):
        table.entries(sweep="nothing")
