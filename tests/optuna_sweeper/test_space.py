from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from flair2_exp.optuna_sweeper import SweepError
from flair2_exp.optuna_sweeper.space import Dimension, read_space
from tests.optuna_sweeper.toy import Loader


def dimension(sweep: str) -> Dimension:
    entry = read_space({"key": sweep}, [], None).entries["key"]
    assert isinstance(entry, Dimension)
    return entry


def hydra_values(sweep: str) -> list[Any]:
    """What Hydra itself enumerates."""
    return list(OverridesParser.create().parse_override(f"key={sweep}").sweep_iterator())


def parsed(text: str) -> Any:
    return OverridesParser.create().parse_override(text).value()


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("a,b", CategoricalDistribution(("a", "b"))),
        ("choice(1,2.5)", CategoricalDistribution((1, 2.5))),
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("tag(log,interval(1e-5,1e-1))", FloatDistribution(1e-5, 1e-1, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(1,9,2)", IntDistribution(1, 7, step=2)),
        ("range(5)", IntDistribution(0, 4)),
        ("range(9,1,-2)", IntDistribution(3, 9, step=2)),
        ("range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("tag(log,range(1,65))", IntDistribution(1, 64, log=True)),
        ("float(range(1,4))", FloatDistribution(1.0, 3.0, step=1.0)),
    ],
)
def test_a_sweep_becomes_its_distribution(sweep: str, expected: object) -> None:
    trial = optuna.create_study().ask()
    dimension(sweep).suggest(trial)
    assert trial.distributions == {"key": expected}


@given(st.integers(-50, 50), st.integers(1, 60), st.integers(1, 9), st.booleans())
def test_an_int_range_holds_what_hydra_enumerates(
    start: int, length: int, step: int, downwards: bool
) -> None:
    stop, step = (start - length, -step) if downwards else (start + length, step)
    sweep = f"range({start},{stop},{step})"
    assert sorted(hydra_values(sweep)) == dimension(sweep).points()


@given(st.integers(-20, 20), st.integers(1, 30), st.sampled_from(["0.5", "0.25", "2.0", "0.125"]))
def test_a_float_range_holds_what_hydra_enumerates(start: int, length: int, step: str) -> None:
    sweep = f"range({start}.0,{start + length}.0,{step})"  # binary fractions: Hydra 1.3 is exact
    assert hydra_values(sweep) == dimension(sweep).points()


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 9))
def test_a_decimal_range_leaves_its_end_out(start: int, length: int, step: int) -> None:
    """In tenths, counted in whole numbers."""
    tenths = list(range(start, start + length, step))
    points = dimension(f"range({start / 10},{(start + length) / 10},{step / 10})").points()
    assert points == [tenth / 10 for tenth in tenths]


# Words as people write them, and words that are numbers, truth values or grammar unless quoted.
words = st.text("abc xyz019.,:=()[]{}'\"\\$-_/", min_size=1, max_size=12) | st.sampled_from(
    ["1", "1.0", "true", "null", "nan", "inf", "1e-3", "unet", "a b", "~x", "${x}"]
)
scalars = st.one_of(words, st.integers(-9, 9), st.floats(-10, 10), st.booleans(), st.just(math.inf))


@settings(max_examples=200)
@given(st.lists(scalars, min_size=1, max_size=5))
def test_every_option_comes_back_as_it_was_written(options: list[Any]) -> None:
    quoted = [f"'{_escape(o)}'" if isinstance(o, str) else Transformer.str(o) for o in options]
    sweep = f"choice({','.join(quoted)})"
    found = dimension(sweep)
    back = [parsed(found.override(choice)) for choice in found.choices]
    assert [repr(value) for value in back] == list(dict.fromkeys(map(repr, options)))  # 0.0, -0.0


def _escape(text: str) -> str:
    """Within single quotes a quote, and the backslashes before one, take a backslash."""
    result, slashes = "", 0
    for character in text + "'":
        if character == "\\":
            slashes += 1
            continue
        result += "\\" * (2 * slashes if character == "'" else slashes)
        slashes = 0
        result += "\\'" if character == "'" else character
    return result[:-2]


@given(st.integers(-5, 5), st.integers(1, 40), st.sampled_from([0.1, 0.05, 0.2, 0.3]))
def test_a_value_of_a_float_range_is_written_as_a_decimal(low: int, k: int, step: float) -> None:
    swept = Dimension("key", FloatDistribution(low, low + 100 * step, step=step))
    text = swept.override(low + k * step)
    assert abs(parsed(text) - (low + k * step)) < 1e-9
    assert len(text) <= len("key=-00.00")


@pytest.mark.parametrize(
    ("sweep", "inside", "outside"),
    [
        ("range(0,0.6,0.1)", [0, 0.3, 0.5], [0.25, 0.6]),
        ("range(1,9,2)", [1, 7], [2, 1.5, True]),
        ("int(interval(1,8))", [1, 8, 3.0], [2.5]),
        ("interval(0,1)", [0, 0.123, 1], [1.1, "x"]),
        ("a,2", ["a", 2], ["b", 3]),
    ],
)
def test_a_given_value_is_one_that_could_be_drawn(
    sweep: str, inside: list[Any], outside: list[Any]
) -> None:
    assert [dimension(sweep).internal(value) for value in inside] == inside
    for value in outside:
        with pytest.raises(SweepError, match="is none of"):
            dimension(sweep).internal(value)


def test_the_command_line_replaces_a_param_at_its_place() -> None:
    space = read_space(
        {"a": "interval(0,1)", "b": "1,2", "c": 5}, ["b=7", "+a=range(1,4)", "d=x"], None
    )
    assert list(space.entries) == ["a", "b", "c", "d"]
    assert space.overrides({"a": 2}) == ["+a=2", "b=7", "c=5", "d=x"]


def test_params_may_be_nested_as_the_command_line_gives_them() -> None:
    nested = {"a.b": "1,2", "c": {"d": {"e": "interval(0,1)"}, "f": 3}, "a": {"b": "3,4"}}
    space = read_space(nested, [], None)
    assert {key: each.describe() for key, each in space.dimensions.items()} == {
        "a.b": "choice(3,4)", "c.d.e": "interval(0.0,1.0)",
    }  # fmt: skip
    assert space.fixed == {"c.f": "c.f=3"}


def test_values_beyond_the_space_come_last_and_are_quoted() -> None:
    space = read_space({"a": "1,2"}, [], None)
    assert space.overrides({"a": 2, "b": "x,y", "c": 0.5}) == ["a=2", r"b=x\,y", "c=0.5"]


def test_a_group_is_known_and_its_options_are_checked() -> None:
    loader: Any = Loader({"model": ["unet", "utt"]})
    space = read_space({"model": "glob(u*)", "lr": "interval(0,1)", "loss": "a"}, [], loader)
    assert list(space.dimensions) == ["model", "lr"]
    with pytest.raises(SweepError, match=r"model=utae: no such option; model has unet, utt"):
        read_space({"model": "unet,utae"}, [], loader)


def test_an_option_on_the_command_line_settles_the_class_that_is_searched_below_its_group() -> None:
    loader: Any = Loader({"optimizer": ["sgd", "adamw"], "opt": ["a"]})
    params = {"optimizer._target_": "torch.optim.SGD,torch.optim.AdamW", "optimizer.lr": "1,2"}
    space = read_space(params, ["optimizer=adamw"], loader)
    assert space.overrides({"optimizer.lr": 1}) == ["optimizer.lr=1", "optimizer=adamw"]
    assert space.settled == {"optimizer._target_"}
    asked = read_space(params, ["optimizer=sgd,adamw"], loader)  # both are searched: as asked for
    assert list(asked.dimensions) == ["optimizer._target_", "optimizer.lr", "optimizer"]
    both = read_space(params, ["optimizer=adamw", "optimizer._target_=my.A,my.B"], loader)
    assert list(both.dimensions) == ["optimizer._target_", "optimizer.lr"]
    placed = read_space({"head._target_": "a,b"}, ["opt@head=a"], loader)
    assert not placed.dimensions


def test_glob_takes_the_options_of_the_group() -> None:
    loader: Any = Loader({"model": ["unet", "utae", "utt"]})
    found = read_space({"model": "glob(ut*)"}, [], loader).entries["model"]
    assert isinstance(found, Dimension)
    assert found.choices == ("utae", "utt")
    with pytest.raises(SweepError, match="no option matches"):
        read_space({"model": "glob(x*)"}, [], loader)


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ("interval(1)", "missing a required argument"),
        ("interval(2,1)", "empty"),
        ("interval(0,inf)", "two finite ends"),
        ("tag(log,interval(0,1))", "must start above 0"),
        ("tag(log,range(1,9,2))", "no step"),
        ("tag(lgo,interval(1,2))", "unknown tag lgo"),
        ("tag(log,choice(1,2))", "options have no scale"),
        ("range(5,1)", "empty"),
        ("range(1,5,0)", "empty"),
    ],
)
def test_a_malformed_sweep_is_told_in_two_lines(sweep: str, reason: str) -> None:
    with pytest.raises(SweepError, match=reason) as caught:
        dimension(sweep)
    assert "key" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_hydras_own_config_is_no_search_space() -> None:
    with pytest.raises(SweepError, match="Hydra's own config"):
        read_space({"hydra.verbose": "true,false"}, [], None)


def test_a_grid_runs_through_all_combinations_last_key_fastest() -> None:
    space = read_space({"a": "1,2", "b": "range(0,0.3,0.1)"}, [], None)
    expected = [(a, b) for a in (1, 2) for b in (0.0, 0.1, 0.2)]
    assert [(point["a"], point["b"]) for point in space.grid()] == expected
    with pytest.raises(SweepError, match=r"a grid has no end over interval"):
        list(read_space({"a": "interval(0,1)"}, [], None).grid())


def test_equal_sweeps_have_one_description() -> None:
    assert dimension("range(1,4)").describe() == dimension("int(interval(1,3))").describe()
    assert dimension("range(1,4,2)").describe() != dimension("range(1,4)").describe()
    assert dimension("interval(1,2)").describe() != dimension("interval(1,3)").describe()
