from __future__ import annotations

import math
import pickle
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flair2_exp.config.data import SampleConfig
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import (
    Group,
    OpenGroup,
    build,
    composable,
    hints,
    is_group,
    option,
    options,
    plain,
    schema,
    with_full_paths,
)
from flair2_exp.config.training import OptimizerConfig
from flair2_exp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner(Group):
    node: ClassVar[str] = "inner"

    widths: tuple[int, ...] = option((1, 2), 1, 9)
    words: tuple[Literal["a", "b"], ...] = ("a",)


@dataclass(frozen=True, kw_only=True)
class Outer(Group):
    node: ClassVar[str] = "outer"

    name: str = option("", chosen=True)
    size: float | None = option(None, 0.5, 2.0)
    kind: Literal["one", "two"] = "one"
    weights: Mapping[str, float] = option({"other": 0.0})
    speed: int = option(3, decides=False)
    inner: Inner | None = None


WORD = st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp", "Cs"]), max_size=4)
GIVEN = st.fixed_dictionaries(
    {"name": WORD},
    optional={
        "size": st.none() | st.floats(0.5, 2.0),
        "kind": st.sampled_from(["one", "two"]),
        "weights": st.dictionaries(WORD, st.floats(allow_nan=False), max_size=3),
        "inner": st.none() | st.fixed_dictionaries(
            {}, optional={"widths": st.lists(st.integers(1, 9)), "words": st.just(["b", "a"])}
        ),
    },
)  # fmt: skip


@given(GIVEN)
def test_plain_values_and_groups_are_two_forms_of_one_thing(values: dict[str, Any]) -> None:
    made = build(Outer, values)
    assert build(Outer, plain(made)) == made
    assert all(plain(made)[name] == values[name] for name in values.keys() - {"inner"})


@given(GIVEN)
def test_what_composes_is_what_is_built(values: dict[str, Any]) -> None:
    values.pop("inner", None)  # a node that is null takes no values in OmegaConf
    config = OmegaConf.merge(OmegaConf.structured(composable(Outer)), {"name": values["name"]})
    for name, value in values.items():
        config[name] = value
    expected = plain(build(Outer, values))
    assert OmegaConf.to_container(config) == expected


def test_what_a_groups_files_give_is_missing_without_them() -> None:
    assert OmegaConf.missing_keys(OmegaConf.structured(composable(Outer))) == {"name"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 3.0}, "outer.size=3.0: expected 0.5 to 2."),
        ({"size": float("nan")}, "outer.size=nan: expected 0.5 to 2."),
        ({"speed": 7.5}, "outer.speed=7.5: expected a whole number."),
        ({"size": "1"}, "outer.size=1: expected a number."),
        ({"kind": "three"}, "outer.kind=three: expected one of one, two."),
        ({"knid": "one"}, "outer.knid: no such option; did you mean kind?"),
        ({"inner": {"widths": [1, 0]}}, "inner.widths=0: expected 1 to 9."),
        ({"inner": {"words": ["a", "c"]}}, "inner.words=c: expected one of a, b."),
        ({"inner": {"widht": []}}, "outer.inner.widht: no such option; did you mean widths?"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, values, "outer.")
    assert str(caught.value) == message


def test_options_are_listed_with_whether_they_decide() -> None:
    listed = dict(options(Outer))
    assert listed == {
        "name": True, "size": True, "kind": True, "weights": True, "speed": False,
        "inner.widths": True, "inner.words": True,
    }  # fmt: skip


def test_every_option_of_the_config_has_a_meaning_or_a_name_that_says_it() -> None:
    """A group's class names its node, so that messages name the option as it is typed."""
    for item in fields(Config):
        hint = hints(Config)[item.name]
        if is_group(hint):
            assert hint.node == item.name
            assert hint.__doc__


def _numbers(group: type[Group]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The options that hold numbers, or whatever a user writes, with what they declare."""
    for item in (each for each in fields(group) if each.name in hints(group)):
        hint = hints(group)[item.name]
        kinds = {hint, *typing.get_args(hint)}
        if is_group(hint):
            yield from _numbers(hint)
        elif {int, float} & kinds or (typing.get_origin(hint) is Mapping and Any in kinds):
            yield f"{group.node}.{item.name}", item.metadata


def test_every_number_has_bounds() -> None:
    numbers = dict(_numbers(Config))
    assert len(numbers) > 50
    assert {"loss.class_weights", "optimizer.options", "model.decoder_channels"} <= set(numbers)
    unbounded = [
        name
        for name, declared in numbers.items()
        if not math.isfinite(declared.get("minimum", math.inf))
        or not math.isfinite(declared.get("maximum", math.inf))
    ]
    assert unbounded == []


@pytest.mark.parametrize("value", [1e308, math.inf, -math.inf, math.nan, {"b": [1, math.nan]}])
def test_numbers_that_a_user_names_have_bounds(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"optimizer\.options\.a(\.b)?=\S+: expected -1000000000 to"
    ):
        OptimizerConfig(_target_="torch.optim.SGD", lr=0.1, options={"a": value, "eps": 1e-8})


def test_what_hydra_composes_on_is_pickled_by_name() -> None:
    """By value it would come back from a launcher's worker and spoil the class of this process."""
    import cloudpickle

    for group in (Config, SampleConfig):
        twin = composable(group)
        content = cloudpickle.dumps(twin)
        assert pickle.loads(content) is twin
        assert len(content) < 100


@dataclass(frozen=True, kw_only=True)
class Open(OpenGroup):
    node: ClassVar[str] = "open"

    size: int = option(1, 0, 9)
    inner: Inner | None = None


@dataclass(frozen=True, kw_only=True)
class Around(Group):
    open: Open = field(default_factory=Open)


PART = {"_target_": "a.B", "depth": 3, "names": ["x"]}


def test_an_open_group_holds_its_options_and_further_parts_under_their_names() -> None:
    made = build(Around, {"open": {"size": 2, "mine": PART}})
    assert (made.open.size, made.open.parts) == (2, {"mine": PART})
    assert plain(made) == {"open": {"size": 2, "inner": None, "mine": PART}}
    assert build(Around, plain(made)) == made
    assert with_full_paths(made, "/") == made
    assert [name for name, _ in options(Around)] == [
        "open", "open.size", "open.inner.widths", "open.inner.words",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"sise": 3},
            r"open\.sise: no such option; did you mean size\?\nA part .* \+open\.sise\._t",
        ),
        ({"sise": {"a": 3}}, r"open\.sise: no such option"),
        ({"_target_": "os.system"}, r"open\._target_: no such option"),
        ({"a-b": PART}, r"open\.a-b: expected a name of letters"),
        ({"mine": {**PART, "depth": 1e300}}, r"open\.mine\.depth=1e\+300: expected -1000000000 to"),
        ({"mine": {**PART, "a\nb": 1}}, "control character"),
        ({"size": 10}, r"open\.size=10: expected 0 to 9"),
    ],
)
def test_what_is_neither_an_option_nor_a_part_of_an_open_group_is_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Around, {"open": values})


def test_omegaconf_takes_further_names_in_an_open_group_alone() -> None:
    node = schema(Around)
    node.open.mine = PART
    composed = OmegaConf.merge(OmegaConf.create({}), node, {"open": {"size": 4}})
    assert OmegaConf.to_container(composed) == {"open": {"size": 4, "inner": None, "mine": PART}}
    for name in ("further", "open.size.further"):
        with pytest.raises(OmegaConfBaseException):
            OmegaConf.update(composed, name, 3)
    with pytest.raises(OmegaConfBaseException):
        composed.open.size = "many"
