from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair2_exp.tracking.params import NAME_LIMIT, VALUE_LIMIT, shorten, valid_names


@settings(max_examples=50)
@given(st.sets(st.text(max_size=8) | st.text(min_size=240, max_size=300), max_size=6))
def test_every_name_becomes_one_that_mlflow_takes_and_stays_distinct(names: set[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param

    chosen = valid_names(names)
    assert len(set(chosen.values())) == len(names)
    for name in chosen.values():
        assert len(name) <= NAME_LIMIT
        _validate_param(name, "value")
        _validate_metric_name(name)


@pytest.mark.parametrize(
    "name", ["test/iou/herbaceous vegetation", "model.encoder", "val/miou", "lr-SGD/pg1"]
)
def test_names_that_mlflow_takes_stay_as_they_are(name: str) -> None:
    assert valid_names([name]) == {name: name}


@settings(max_examples=50)
@given(st.text(max_size=300), st.text(max_size=300))
def test_shortened_values_are_equal_exactly_if_the_values_are(one: str, other: str) -> None:
    short = [shorten(text, "params/x.txt", limit=120) for text in (one, other)]
    assert (short[0] == short[1]) == (one == other)
    assert all(len(text) <= 120 for text in short)


def test_a_value_of_the_very_limit_is_kept_whole() -> None:
    assert shorten("x" * VALUE_LIMIT, "p") == "x" * VALUE_LIMIT
    cut = shorten("x" * (VALUE_LIMIT + 1), "params/p.txt")
    assert len(cut) == VALUE_LIMIT
    assert cut.endswith("all in artifact params/p.txt]")
