"""From Hydra's override grammar to Optuna's distributions, and from a trial's values back.

| Override | Distribution |
|---|---|
| `a=x,y` · `a=choice(x,y)` · `group=glob(*)` | one of the options |
| `a=range(1,9,2)` | 1, 3, 5, 7: the end is left out, as in Hydra |
| `a=range(0,1,0.25)` | 0, 0.25, 0.5, 0.75 |
| `a=interval(0,1)` | a real number, both ends included |
| `a=int(interval(1,8))` | a whole number, both ends included |
| `a=tag(log,interval(1e-5,1e-1))` | the same on a log scale; also `int`, and `range` of step 1 |

An option that is a number stays a number in the study; any other is kept as the text that stands
after the `=` of an override, so that it composes again exactly as it was written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    ParsedElementType,
    Quote,
    QuotedString,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException
from optuna import Trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from .errors import SweepError

Value = str | int | float
_LOG: Final = "log"


@dataclass(frozen=True)
class Dimension:
    """One swept key and what its values are drawn from; numbers have both ends included."""

    key: str
    """As in the override, with its `+` if it has one."""
    drawn_from: CategoricalDistribution | IntDistribution | FloatDistribution

    @property
    def name(self) -> str:
        """The key without the prefix that adds it."""
        return self.key.lstrip("+")

    @property
    def choices(self) -> tuple[Value, ...]:
        """The options; none where the values are numbers between two ends."""
        return getattr(self.drawn_from, "choices", ())

    @property
    def example(self) -> Value:
        """One of the values."""
        values = self.drawn_from
        return self.choices[0] if isinstance(values, CategoricalDistribution) else values.low

    def suggest(self, trial: Trial) -> None:
        """Let Optuna draw a value for a trial."""
        values = self.drawn_from
        if isinstance(values, CategoricalDistribution):
            trial.suggest_categorical(self.name, values.choices)
        elif isinstance(values, IntDistribution):
            trial.suggest_int(self.name, values.low, values.high, step=values.step, log=values.log)
        else:
            low, high = values.low, values.high
            trial.suggest_float(self.name, low, high, step=values.step, log=values.log)

    def describe(self) -> str:
        """Return the sweep in one canonical form; two dimensions are the same when these are."""
        values = self.drawn_from
        if isinstance(values, CategoricalDistribution):
            return f"choice({','.join(map(str, values.choices))})"
        ends, whole = f"{values.low},{values.high}", isinstance(values, IntDistribution)
        if values.step is not None and (not whole or values.step != 1):
            text = f"range({ends} inclusive,{values.step})"
        else:
            text = f"int(interval({ends}))" if whole else f"interval({ends})"
        return f"tag(log,{text})" if values.log else text

    def override(self, value: Value) -> str:
        """Return the override that sets a suggested value."""
        if isinstance(self.drawn_from, IntDistribution):
            value = int(value)
        elif isinstance(self.drawn_from, FloatDistribution):
            value = _on_step(self.drawn_from, float(value))
        return f"{self.key}={value}"

    def points(self) -> list[Value]:
        """Return every value, in order, for a grid.

        Raises:
            SweepError: The values cannot be listed.
        """
        values = self.drawn_from
        if isinstance(values, CategoricalDistribution):
            return list(self.choices)
        if isinstance(values, IntDistribution):
            return list(range(values.low, values.high + 1, values.step))
        if values.step is None:
            raise SweepError(
                f"{self.name}: a grid has no end over {self.describe()}. "
                "Give choice(...) or range(start,stop,step), or another sampler."
            )
        count = round((values.high - values.low) / values.step) + 1
        return [_on_step(values, values.low + i * values.step) for i in range(count)]

    def internal(self, value: Any) -> Value:
        """Return a value written by a person (in `first`) as the study holds it.

        Raises:
            SweepError: The dimension does not hold it.
        """
        values = self.drawn_from
        if isinstance(values, CategoricalDistribution):
            texts = (as_text(value), str(value))
            for choice in self.choices:
                if choice == value or choice in texts:
                    return choice
        elif _is_number(value) and values.low <= value <= values.high:
            past = Decimal(str(value)) - Decimal(str(values.low))
            if values.step is None or past % Decimal(str(values.step)) == 0:
                return int(value) if isinstance(values, IntDistribution) else float(value)
        raise SweepError(f"first: {self.name}={value} is none of {self.describe()}.")


@dataclass(frozen=True)
class Space:
    """What a trial's overrides are made of, in the order in which they were given."""

    entries: dict[str, Dimension | str]
    """By key without prefix: a dimension, or the text of a fixed override."""
    settled: frozenset[str] = frozenset()
    """Keys of the config's `params` that a fixed override decides, so that none is swept."""

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The swept keys."""
        return {k: e for k, e in self.entries.items() if isinstance(e, Dimension)}

    @property
    def fixed(self) -> dict[str, str]:
        """The overrides that every trial has."""
        return {k: e for k, e in self.entries.items() if isinstance(e, str)}

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return a trial's overrides; values beyond the dimensions (conditional ones) come last."""
        result = []
        for name, entry in self.entries.items():
            if isinstance(entry, str):
                result.append(entry)
            elif name in values:
                result.append(entry.override(values[name]))
        further = (name for name in values if name not in self.dimensions)
        return result + [f"{name}={as_text(values[name])}" for name in further]

    def grid(self) -> Iterator[dict[str, Value]]:
        """Return every combination; the last key changes fastest, as in Hydra's basic sweeper.

        Raises:
            SweepError: One dimension is continuous.
        """
        names = list(self.dimensions)
        points = [dimension.points() for dimension in self.dimensions.values()]
        return (dict(zip(names, values, strict=True)) for values in itertools.product(*points))


def read_space(
    params: Mapping[str, Any], arguments: Sequence[str], config_loader: ConfigLoader | None
) -> Space:
    """Parse the search space: the config's params, each replaced by an override of the same key.

    Args:
        params: Override key to sweep or value; keys may be nested.
        arguments: Overrides of the command line.
        config_loader: Knows the config groups and their options.

    Raises:
        SweepError: A sweep that no trial can be drawn from.
    """
    texts = [f"{key}={_param_text(value)}" for key, value in _flat(params)]
    parser = OverridesParser.create(config_loader=config_loader)
    entries: dict[str, Dimension | str] = {}
    for text in itertools.chain(texts, arguments):
        override = _parse(parser, text)
        override.config_loader = config_loader  # lists the options of a glob
        if override.is_hydra_override():
            raise SweepError(f"{text}: Hydra's own config cannot be part of a search space.")
        name = override.get_key_element().lstrip("+~")
        entries[name] = _dimension(override) if override.is_sweep_override() else text
    for name, entry in entries.items():
        _check_options(name, entry, config_loader)
    settled = _settled(entries, arguments, config_loader)
    return Space({k: e for k, e in entries.items() if k not in settled}, settled)


def _settled(
    entries: Mapping[str, Dimension | str],
    arguments: Sequence[str],
    config_loader: ConfigLoader | None,
) -> frozenset[str]:
    """Return the classes that the config sweeps below a group that the command line chooses.

    `optimizer=adamw` would have no meaning beside a sweep over `optimizer._target_`, which comes
    last. What else an option sets is searched all the same: its file gives defaults.
    """
    given = {text.partition("=")[0].lstrip("+~") for text in arguments}
    settled = set()
    for group in given:
        if isinstance(entries.get(group), str) and _options(group, config_loader):
            package = group.rpartition("@")[2].replace("/", ".")
            settled.add(f"{package}._target_")
    return frozenset(settled & entries.keys() - given)


def _parse(parser: OverridesParser, text: str) -> Override:
    try:
        return parser.parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise SweepError(
            f"{text}: {reason}\nExpected a value, choice(a,b), range(start,stop,step), "
            "interval(low,high), tag(log,...), int(...) or glob(...)."
        ) from None


def _dimension(override: Override) -> Dimension:
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep | RangeSweep):
        return _numbers(key, value)
    if getattr(value, "tags", None):
        raise SweepError(f"{key}: tag(...) goes with range and interval, options have no scale.")
    choices = _choices(override.sweep_iterator())
    if not choices:
        raise SweepError(f"{override.input_line}: no option matches, the sweep is empty.")
    return Dimension(key, CategoricalDistribution(choices))


def _choices(elements: Iterable[Any]) -> tuple[Value, ...]:
    """Return options without repetition: finite numbers as such, all else as an override's text."""
    elements = [e.text if isinstance(e, QuotedString) else e for e in elements]
    numbers = [e for e in elements if _is_number(e)]
    if len({float(n) for n in numbers}) < len({str(n) for n in numbers}):
        numbers = []  # 1 and 1.0 are equal for Optuna, as texts they are not
    kept = [e if _is_number(e) and numbers else as_text(e) for e in elements]
    return tuple(dict.fromkeys(kept))


def as_text(element: ParsedElementType) -> str:
    """Return what stands after the `=` of an override that sets `element`."""
    text: str = Transformer.str(element)
    if isinstance(element, str):
        try:
            same = OverridesParser.create().parse_override(f"key={text}").value() == element
        except HydraException:
            same = False
        if not same:  # "1" and "true" are words only between quotes
            return QuotedString(element, Quote.single).with_quotes()
    return text


def _is_number(element: object) -> bool:
    if isinstance(element, bool) or not isinstance(element, int | float):
        return False
    return math.isfinite(element)


def _numbers(key: str, sweep: IntervalSweep | RangeSweep) -> Dimension:
    """Return the numbers of an interval, or of a range, which leaves its stop out."""
    if isinstance(sweep, RangeSweep):
        word, given = "range", _plain_range(sweep)
    else:
        word, given = "interval", (sweep.start, sweep.end)
    text = f"{word}({','.join(map(str, given))})"
    unknown, log = sweep.tags - {_LOG}, _LOG in sweep.tags
    if unknown:
        raise SweepError(f"{key}: unknown tag {', '.join(sorted(unknown))}; the only one is log.")
    if not all(number is not None and math.isfinite(number) for number in given):
        raise SweepError(f"{key}: {text} needs two finite ends.")
    # Decimals: 0.1 means a tenth here, not the nearest binary fraction, so that the end is met.
    low, high, *steps = (Decimal(str(number)) for number in given)
    count = 1 if low <= high else 0
    if steps:
        count = int(((high - low) / steps[0]).to_integral_value(ROUND_CEILING)) if steps[0] else 0
        low, high = sorted((low, low + (count - 1) * steps[0]))
    if count < 1:
        raise SweepError(f"{key}: {text} is empty: its steps lead from the start to no end.")
    whole = all(isinstance(number, int) for number in given)
    step = abs(steps[0]) if steps else None
    if log and step is not None and not (whole and step == 1):
        raise SweepError(f"{key}: a log scale has no step; use tag(log,interval(...)).")
    if log and low <= 0:
        raise SweepError(f"{key}: tag(log,{text}) must start above 0.")
    if whole:
        return Dimension(key, IntDistribution(int(low), int(high), log, int(step or 1)))
    size = None if step is None else float(step)
    return Dimension(key, FloatDistribution(float(low), float(high), log, size))


def _plain_range(sweep: RangeSweep) -> tuple[Any, ...]:
    """Return start, stop and step, with the casts that Hydra 1.4 leaves for later already made."""
    numbers: tuple[Any, ...] = (sweep.start, sweep.stop, sweep.step)
    for convert in getattr(sweep, "transformers", ()):
        numbers = tuple(map(convert, numbers))
    return numbers


def _options(name: str, config_loader: ConfigLoader | None) -> list[str]:
    """Return the options of a config group; none where the key is not a group."""
    if config_loader is None:
        return []
    return config_loader.get_group_options(name.partition("@")[0], results_filter=ObjectType.CONFIG)


def _check_options(name: str, entry: Dimension | str, config_loader: ConfigLoader | None) -> None:
    """Refuse an option that its config group lacks."""
    options = _options(name, config_loader)
    choices = entry.choices if options and isinstance(entry, Dimension) else ()
    for choice in map(str, choices):
        # A path reaches into a nested group, a list selects several: Hydra checks those.
        if choice not in options and choice != "null" and not set("/[") & set(choice):
            group = name.partition("@")[0]
            raise SweepError(f"{name}={choice}: no such option; {group} has {', '.join(options)}.")


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield params by whole key: `hydra.sweeper.params.optimizer.lr=...` comes nested."""
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _param_text(value: ParsedElementType) -> str:
    """Return a param of the config as the text of an override: strings are sweeps already."""
    return value if isinstance(value, str) else as_text(value)


def _on_step(values: FloatDistribution, number: float) -> float:
    """Return the decimal number on the grid of a range that a binary sum came near to."""
    if values.step is None:
        return number
    start, size = Decimal(str(values.low)), Decimal(str(values.step))
    return float(start + size * round((Decimal(str(number)) - start) / size))
