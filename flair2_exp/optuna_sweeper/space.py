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
from typing import TYPE_CHECKING, Any, Final

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

from .errors import SweepError

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from optuna import Trial

Value = str | int | float
_LOG: Final = "log"


@dataclass(frozen=True)
class Dimension:
    """One swept key: either `choices`, or the numbers from `low` to `high`, both included."""

    key: str
    """As in the override, with its `+` if it has one."""
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def name(self) -> str:
        """The key without the prefix that adds it."""
        return self.key.lstrip("+")

    def suggest(self, trial: Trial) -> None:
        """Let Optuna draw a value for a trial."""
        if self.choices:
            trial.suggest_categorical(self.name, self.choices)
        elif self.whole:
            step = 1 if self.step is None else int(self.step)
            trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        else:
            trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def describe(self) -> str:
        """Return the sweep in one canonical form; two dimensions are the same when these are."""
        if self.choices:
            return f"choice({','.join(map(str, self.choices))})"
        ends = f"{_number(self.low, self.whole)},{_number(self.high, self.whole)}"
        if self.step is not None:
            text = f"range({ends} inclusive,{_number(self.step, self.whole)})"
        else:
            text = f"int(interval({ends}))" if self.whole else f"interval({ends})"
        return f"tag(log,{text})" if self.log else text

    def override(self, value: Value) -> str:
        """Return the override that sets a suggested value."""
        if self.choices:
            return f"{self.key}={value}"
        number = float(value)
        if self.step is not None and not self.whole:
            number = _on_step(self.low, self.step, number)
        return f"{self.key}={_number(number, self.whole)}"

    def points(self) -> list[Value]:
        """Return every value, in order, for a grid.

        Raises:
            SweepError: The values cannot be listed.
        """
        if self.choices:
            return list(self.choices)
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return list(range(int(self.low), int(self.high) + 1, step))
        if self.step is None:
            raise SweepError(
                f"{self.name}: a grid has no end over {self.describe()}. "
                "Give choice(...) or range(start,stop,step), or another sampler."
            )
        count = round((self.high - self.low) / self.step) + 1
        return [_on_step(self.low, self.step, self.low + i * self.step) for i in range(count)]

    def internal(self, value: ParsedElementType) -> Value:
        """Return a value written by a person (in `first`) as the study holds it.

        Raises:
            SweepError: The dimension does not hold it.
        """
        if self.choices:
            texts = (as_text(value), str(value))
            for choice in self.choices:
                if choice == value or choice in texts:
                    return choice
        elif isinstance(value, int | float) and self._holds(value):
            return int(value) if self.whole else float(value)
        raise SweepError(f"first: {self.name}={value} is none of {self.describe()}.")

    def _holds(self, value: float) -> bool:
        """Return whether a number is one of the values, also of those between the ends."""
        if isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        step = self.step or (1 if self.whole else None)
        if step is None:
            return True
        return (Decimal(str(value)) - Decimal(str(self.low))) % Decimal(str(step)) == 0


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
    """Parse the search space.

    Args:
        params: Override key to sweep or value, from the config; keys may be nested.
        arguments: Overrides of the command line; each replaces the param of the same key.
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
    if isinstance(value, IntervalSweep):
        return _interval(key, value)
    if isinstance(value, RangeSweep):
        return _range(key, value)
    if getattr(value, "tags", None):
        raise SweepError(f"{key}: tag(...) goes with range and interval, options have no scale.")
    choices = _choices(override.sweep_iterator())
    if not choices:
        raise SweepError(f"{override.input_line}: no option matches, the sweep is empty.")
    return Dimension(key, choices=choices)


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


def _is_log(key: str, tags: set[str]) -> bool:
    unknown = tags - {_LOG}
    if unknown:
        raise SweepError(f"{key}: unknown tag {', '.join(sorted(unknown))}; the only one is log.")
    return _LOG in tags


def _interval(key: str, sweep: IntervalSweep) -> Dimension:
    low, high, log = sweep.start, sweep.end, _is_log(key, sweep.tags)
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise SweepError(f"{key}: interval({low},{high}) needs two finite ends.")
    whole = isinstance(low, int) and isinstance(high, int)
    if low > high:
        raise SweepError(f"{key}: interval({low},{high}) is empty, its low end comes first.")
    return _scaled(Dimension(key, low=low, high=high, log=log, whole=whole))


def _range(key: str, sweep: RangeSweep) -> Dimension:
    if sweep.start is None or sweep.stop is None:
        raise SweepError(f"{key}: range needs a stop.")
    if not all(math.isfinite(number) for number in (sweep.start, sweep.stop, sweep.step)):
        raise SweepError(f"{key}: range({sweep.start},{sweep.stop},{sweep.step}) is not finite.")
    # Decimals: 0.1 means a tenth here, not the nearest binary fraction, so that the end is met.
    numbers = _plain_range(sweep)
    start, stop, step = (Decimal(str(number)) for number in numbers)
    count = int(((stop - start) / step).to_integral_value(ROUND_CEILING)) if step else 0
    if count < 1:
        raise SweepError(f"{key}: range({numbers[0]},{numbers[1]},{numbers[2]}) is empty.")
    low, high = sorted((start, start + (count - 1) * step))
    whole = all(isinstance(number, int) for number in numbers)
    size = None if whole and abs(step) == 1 else float(abs(step))
    log = _is_log(key, sweep.tags)
    return _scaled(
        Dimension(key, low=float(low), high=float(high), step=size, log=log, whole=whole)
    )


def _plain_range(sweep: RangeSweep) -> tuple[Any, Any, Any]:
    """Return start, stop and step, with the casts that Hydra 1.4 leaves for later already made."""
    numbers = (sweep.start, sweep.stop, sweep.step)
    for convert in getattr(sweep, "transformers", ()):
        numbers = (convert(numbers[0]), convert(numbers[1]), convert(numbers[2]))
    return numbers


def _scaled(dimension: Dimension) -> Dimension:
    if dimension.log and dimension.step is not None:
        raise SweepError(f"{dimension.key}: a log scale has no step; use tag(log,interval(...)).")
    if dimension.log and dimension.low <= 0:
        raise SweepError(f"{dimension.key}: {dimension.describe()} must start above 0.")
    return dimension


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


def _number(value: float, whole: bool) -> str:
    return str(int(value)) if whole else str(float(value))


def _on_step(low: float, step: float, value: float) -> float:
    """Return the decimal number on the grid of a range that a binary sum came near to."""
    start, size = Decimal(str(low)), Decimal(str(step))
    return float(start + size * round((Decimal(str(value)) - start) / size))
