from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair2_exp.config.identity import deciding, difference, digest, identity
from flair2_exp.config.schema import Config
from tests.configs import compose_config

SAME = [
    ("optimizer.lr=1", "optimizer.lr=1.0"),
    ("data.bands=[red,green,blue]", "data.bands=['red', 'green', 'blue']"),
    ("+optimizer.options.momentum=0", "+optimizer.options={momentum: 0.0}"),
    ("aug=flips", "aug.geometry=flips"),
    ("data.workers=0", "data.workers=7"),
    ("paths.root=/a", "paths.root=/b"),
    ("tracking=off", "tracking.experiment=another"),
    ("callbacks.progress=never", "callbacks.panel_patches=1 callbacks.save_minutes=3"),
    ("trainer=cpu", "trainer=gpu"),
    ("data.batch_size=8", "data.batch_size=4 trainer.devices=2"),
    ("model=unet", "model=unet data=aerial_only"),
    ("model=unet", "model=unet s2_preproc=raw utae.heads=8 fusion.dropout_rate=0.5"),
    ("model=utae", "model=utae fusion.dropout_rate=0.5"),
    ("name=one", "name=another"),
    (
        "train=false checkpoint=a trainer.max_epochs=1 optimizer.lr=0.1",
        "train=false checkpoint=a trainer.max_epochs=2 optimizer.lr=0.2",
    ),
    ("compat=reference split=official", "quirk=as_published"),
]
DIFFERENT = [
    "seed=2", "optimizer.lr=0.002", "model=unet", "s2_preproc=raw", "aug=d4", "metadata=on",
    "loss.label_smoothing=0.1", "trainer.max_epochs=99", "data.bands=[green,red,blue]",
    "trainer.precision=bf16-mixed", "utae.normalise_padding=true", "compat=reference",
    "callbacks=best_miou", "+optimizer.options.momentum=0.9", "trainer.devices=2",
    "metric.other_pixels=keep", "data.eval_batch_size=3", "+loss.class_weights.water=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def default() -> Config:
    return compose_config()


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_does_not_decide_the_result_does_not_change_the_identity(one: str, other: str) -> None:
    assert identity(compose_config(*_words(one)), "x") == identity(
        compose_config(*_words(other)), "x"
    )


def _words(line: str) -> list[str]:
    """Overrides of a line; none of those here holds a space but one, whose space ends a colon."""
    return line.split(" ") if ": " not in line and ", " not in line else [line]


@pytest.mark.parametrize("override", DIFFERENT)
def test_what_decides_the_result_changes_the_identity(override: str, default: Config) -> None:
    assert identity(compose_config(override), "x") != identity(default, "x")


def test_data_and_version_decide_too(default: Config) -> None:
    assert identity(default, "x") != identity(default, "y")
    assert identity(default, "x", "1.0") != identity(default, "x", "2.0")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
VALUES = st.dictionaries(st.text(max_size=5), PLAIN, max_size=6)


@given(VALUES, st.randoms())
def test_order_and_spelling_do_not_matter(values: dict[str, Any], random: Any) -> None:
    names = list(values)
    random.shuffle(names)
    assert digest({name: _respelt(values[name]) for name in names}) == digest(values)


def _respelt(value: Any) -> Any:
    """The same value as another program would write it."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, list):
        return tuple(_respelt(each) for each in value)
    if isinstance(value, dict):
        return {key: _respelt(value[key]) for key in reversed(value)}
    return value


@given(VALUES, st.text(max_size=5), PLAIN, PLAIN)
def test_a_difference_is_told_exactly_where_digests_differ(
    values: dict[str, Any], name: str, before: Any, now: Any
) -> None:
    one, other = {**values, name: before}, {**values, name: now}
    assert (digest(one) == digest(other)) == (difference(one, other) == [])


def test_a_difference_names_the_option(default: Config) -> None:
    changed = dataclasses.replace(default, seed=7)
    assert difference(deciding(default, "x"), deciding(changed, "x")) == ["seed: 1 -> 7"]
