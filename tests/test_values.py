from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from flair2_exp.values import differences, digest, flatten, render, shown

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
VALUES = st.dictionaries(st.text(max_size=5), PLAIN, max_size=6)


def leaves(nested: Any) -> list[Any]:
    """All leaves, in order, by recursion over values alone."""
    if isinstance(nested, dict) and nested:
        return [leaf for value in nested.values() for leaf in leaves(value)]
    return [nested]


@given(VALUES)
def test_no_leaf_is_lost(nested: dict[str, Any]) -> None:
    expected = [leaf for value in nested.values() for leaf in leaves(value)]
    assert list(flatten(nested).values()) == expected


def test_leaves_of_one_name_are_kept_apart() -> None:
    assert flatten({"a.b": 1, "a": {"b": 2}}) == {"a.b": 1, "a.b_2": 2}
    assert flatten({"a": {}, "b": {"c": [1]}}) == {"a": {}, "b.c": [1]}


@given(VALUES, st.randoms())
def test_order_and_spelling_do_not_change_a_digest(values: dict[str, Any], random: Any) -> None:
    names = list(values)
    random.shuffle(names)
    assert digest({name: respelt(values[name]) for name in names}) == digest(values)


def respelt(value: Any) -> Any:
    """The same value as another program would write it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, list):
        return tuple(respelt(each) for each in value)
    if isinstance(value, dict):
        return {key: respelt(value[key]) for key in reversed(value)}
    return value


@given(VALUES, st.text(max_size=5), PLAIN, PLAIN)
@example({}, "a", 0, False)
@example({}, "a", [{"": 1}], [{"": True}])
def test_values_differ_exactly_where_digests_do(
    values: dict[str, Any], name: str, before: Any, now: Any
) -> None:
    one, other = {**values, name: before}, {**values, name: now}
    assert (digest(one) == digest(other)) == (differences(one, other) == {})


def test_differences_are_shown_as_overrides_are_typed() -> None:
    changes = differences(
        {"lr": 0.1, "on": True, "x": 1, "same": 1}, {"lr": 1, "on": None, "same": 1.0}
    )
    assert changes == {"lr": (0.1, 1), "on": (True, None), "x": (1, None)}
    assert shown(changes) == "lr: 0.1 -> 1; on: true -> null; x: 1 -> null"
    assert shown(changes, limit=1) == "lr: 0.1 -> 1; and 2 more"
    assert render(["red", 1]) == '["red", 1]'
