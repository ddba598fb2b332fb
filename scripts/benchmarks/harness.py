"""What every benchmark shares: options, samples of a figure, the table, the JSON line, the status.

A figure is the median of several samples taken in one run. Where it compares two things, its
samples are ratios of times taken in turns (`take_turns`): a ratio of neighbours in time carries
over from one machine to another and hardly feels a third process that comes and goes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

from flair2_exp.errors import FlairError
from flair2_exp.tracking.provenance import machine

BENCHMARKS: Final = ("data", "inference", "launch", "model", "report", "sweeper")
"""Modules with `ROUNDS` (the least samples of a figure, and the default), `OPTIONS` (argparse's
arguments by flag) and `measure`, which takes the parsed options and returns figures and facts."""


@dataclass(frozen=True)
class Figure:
    """One measurement and what it must reach.

    Attributes:
        name: What was measured, as it stands in the table.
        samples: The measurements (at least one), each in `unit`.
        must_reach: The bound that the median must keep; None for a figure that only informs.
        direction: Whether the bound is the largest or the smallest median allowed.
        unit: Of samples and bound; empty for a ratio.
    """

    name: str
    samples: Sequence[float]
    must_reach: float | None = None
    direction: Literal["at most", "at least"] = "at most"
    unit: str = ""

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile of the samples: the spread that the table shows."""
        if len(self.samples) < 2:
            return self.samples[0], self.samples[0]
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    @property
    def reached(self) -> bool:
        """Whether the median keeps the bound (a figure without one always does)."""
        if self.must_reach is None:
            return True
        sign = 1 if self.direction == "at most" else -1
        return sign * self.median <= sign * self.must_reach


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that the first argument names; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmark.py")
    parser.add_argument("benchmark", choices=BENCHMARKS)
    name = parser.parse_args(argv[:1]).benchmark
    try:
        return run(name, importlib.import_module(f"benchmarks.{name}"), argv[1:])
    except FlairError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(name: str, benchmark: ModuleType, options: Sequence[str]) -> int:
    """Measure and print; return 1 where a figure misses its bound, else 0."""
    least, default = benchmark.ROUNDS
    parser = argparse.ArgumentParser(prog=f"benchmark.py {name}", description=benchmark.__doc__)
    parser.add_argument("--rounds", type=int, default=default, help="samples of each figure")
    for flag, option in benchmark.OPTIONS.items():
        parser.add_argument(flag, **option)
    arguments = parser.parse_args(options)
    if arguments.rounds < least:
        parser.error(f"--rounds {arguments.rounds}: the median is of {least} or more")
    here = machine()
    busy = f"{here['processor']}, {here['cores']} cores, load {os.getloadavg()[0]:.1f} before"
    figures, facts = benchmark.measure(arguments)
    return report(" ".join([name, *options]), figures, {"machine": busy, **facts})


def take_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time several calls in turns, after `warmup` rounds without timing.

    Returns:
        For each name its seconds, one per round; the i-th of all names were taken in one round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: samples[warmup:] for name, samples in seconds.items()}


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Divide sample by sample."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def report(title: str, figures: Sequence[Figure], facts: Mapping[str, Any]) -> int:
    """Print facts and table and, as the last line, the same as JSON; return the exit status."""
    print(title, *(f"  {name}: {value}" for name, value in facts.items()), sep="\n")
    header = ("figure", "median", "quartiles", "n", "must reach", "")
    rows = [header, *map(_row, figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows[1:]):
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    results = [
        {**vars(figure), "samples": len(figure.samples)}
        | {key: getattr(figure, key) for key in ("median", "quartiles", "reached")}
        for figure in figures
    ]
    reached = all(figure.reached for figure in figures)
    record = {"benchmark": title, "reached": reached, "facts": facts, "figures": results}
    print(json.dumps(record, ensure_ascii=False), flush=True)
    return 0 if reached else 1


def _row(figure: Figure) -> tuple[str, ...]:
    unit = f" {figure.unit}".rstrip()
    bound, verdict = "–", ""
    if figure.must_reach is not None:
        bound = (
            f"{'≤' if figure.direction == 'at most' else '≥'} {_number(figure.must_reach)}{unit}"
        )
        verdict = "reached" if figure.reached else "MISSED"
    spread, count = " … ".join(map(_number, figure.quartiles)), str(len(figure.samples))
    return figure.name, f"{_number(figure.median)}{unit}", spread, count, bound, verdict


def _number(value: float) -> str:
    """Return three significant digits, without an exponent for the sizes that occur."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.2e}"
