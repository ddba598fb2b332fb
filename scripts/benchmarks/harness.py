"""What every benchmark shares: samples of a figure, the table, the JSON line, the exit status.

A figure is the median of several samples taken in one run. Where it compares two things, its
samples are ratios of times taken in turns (`take_turns`): a ratio of neighbours in time carries
over from one machine to another and hardly feels a third process that comes and goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

Direction = Literal["at most", "at least"]


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
    direction: Direction = "at most"
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
        if self.direction == "at most":
            return self.median <= self.must_reach
        return self.median >= self.must_reach

    @property
    def bound(self) -> str:
        """The bound as the table shows it."""
        if self.must_reach is None:
            return "–"
        return f"{'≤' if self.direction == 'at most' else '≥'} {_number(self.must_reach)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as plain values, for the JSON line."""
        low, high = self.quartiles
        return {
            "name": self.name,
            "median": self.median,
            "quartiles": [low, high],
            "samples": len(self.samples),
            "unit": self.unit,
            "must_reach": self.must_reach,
            "direction": self.direction,
            "reached": self.reached,
        }


def at_least(least: int) -> Callable[[str], int]:
    """Return a type for argparse: a whole number that is not below the samples of a median."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: the median is of {least} or more")
        return int(text)

    return whole_number


def this_machine() -> str:
    """Return the machine in a line, and how busy it is: for a benchmark's facts."""
    from flair2_exp.tracking.provenance import machine

    facts = machine()
    return f"{facts['processor']}, {facts['cores']} cores, load {os.getloadavg()[0]:.1f} before"


def take_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time several calls in turns.

    Args:
        calls: What to time, by name.
        rounds: How often each is timed.
        warmup: How often each runs before that without being timed.

    Returns:
        For each name its seconds, one per round; the i-th of all names were taken in one round.
    """
    for _ in range(warmup):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Divide sample by sample."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def report(
    title: str,
    figures: Sequence[Figure],
    *,
    facts: Mapping[str, Any] | None = None,
    stream: TextIO | None = None,
) -> int:
    """Print the table and, as the last line, the same as JSON.

    Args:
        title: The benchmark's name.
        figures: What was measured, in the table's order.
        facts: What the reader must know (machine, threads, sizes); plain values.
        stream: Where to print; standard output by default.

    Returns:
        The exit status: 0 where every figure reaches its bound, 1 otherwise.
    """
    out = stream or sys.stdout
    print(title, file=out)
    for name, value in (facts or {}).items():
        print(f"  {name}: {value}", file=out)
    header = ("figure", "median", "quartiles", "n", "must reach", "")
    rows = [header, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for index, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip(), file=out)
        if index == 0:
            print("  ".join("-" * width for width in widths).rstrip(), file=out)
    reached = all(figure.reached for figure in figures)
    record = {
        "benchmark": title,
        "reached": reached,
        "facts": dict(facts or {}),
        "figures": [figure.to_dict() for figure in figures],
    }
    print(json.dumps(record, ensure_ascii=False), file=out, flush=True)
    return 0 if reached else 1


def _row(figure: Figure) -> tuple[str, ...]:
    low, high = figure.quartiles
    unit = f" {figure.unit}" if figure.unit else ""
    verdict = "" if figure.must_reach is None else ("reached" if figure.reached else "MISSED")
    return (
        figure.name,
        f"{_number(figure.median)}{unit}",
        f"{_number(low)} … {_number(high)}",
        str(len(figure.samples)),
        figure.bound if figure.must_reach is None else f"{figure.bound}{unit}",
        verdict,
    )


def _number(value: float) -> str:
    """Return three significant digits, without an exponent for the sizes that occur."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.2e}"
