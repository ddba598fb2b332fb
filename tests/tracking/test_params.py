from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair2_exp.tracking.params import (
    NAME_LIMIT,
    VALUE_LIMIT,
    flatten,
    render,
    shorten,
    valid_names,
)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text(alphabet="ab._2 é/@", max_size=4)
configs = st.recursive(
    st.dictionaries(keys, scalars | st.lists(scalars, max_size=2), max_size=3),
    lambda inner: st.dictionaries(keys, inner | scalars, max_size=3),
    max_leaves=12,
)


def leaves(config: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    for value in config.values():
        found += leaves(value) if isinstance(value, dict) and value else [value]
    return found


@settings(max_examples=50)
@given(configs)
def test_flattening_keeps_every_leaf_in_order(config: dict[str, Any]) -> None:
    assert list(flatten(config).values()) == leaves(config)


def test_flattened_names_are_those_of_overrides() -> None:
    config = {"model": {"name": "utt", "widths": [64, 32]}, "seed": 1, "empty": {}}
    assert flatten(config) == {
        "model.name": "utt",
        "model.widths": [64, 32],
        "seed": 1,
        "empty": {},
    }


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0.001, "0.001"),
        ("null", "null"),
        (["red", 1, None], '["red", 1, null]'),
        ({}, "{}"),
    ],
)
def test_values_read_as_in_an_override(value: object, text: str) -> None:
    assert render(value) == text


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
