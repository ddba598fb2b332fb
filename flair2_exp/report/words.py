"""Numbers as text, as tables and sentences show them; a dash stands for what is not known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flair2_exp.report.results import Ends, Row
    from flair2_exp.score import Convention

NOTHING = "–"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with four digits, as the published ones."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 4) -> str:
    """Return a difference with its sign."""
    if value is None:
        return NOTHING
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if float(text.replace("−", "-")) else f"{0:.{digits}f}"


def interval(ends: Ends, *, sign: bool = False) -> str:
    """Return `[low, high]`, of a difference with signs."""
    low, high = ends
    if low is None or high is None:
        return NOTHING
    show = signed if sign else number
    return f"[{show(low)}, {show(high)}]"


def p_value(p: float | None) -> str:
    """Return `0.012` or `< 0.001`; three decimals, since 10,000 resamples give no more."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float) -> str:
    """Return `p = 0.012` or `p < 0.001`."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def duration(seconds: float | None) -> str:
    """Return `12.3 s`, `5:57 min`, `3 h 05 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def percent(share: float) -> str:
    """Return `12.3 %`, or `< 0.1 %` of what is there."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def listed(values: Iterable[object]) -> str:
    """Return what several runs have: one value, or each with its number of runs; a dash for none.

    Empty values were not recorded, and are left out.
    """
    counts = Counter(str(value) for value in values if value not in ("", None))
    if len(counts) < 2:
        return next(iter(counts), NOTHING)
    return "; ".join(f"{value} ({plural(number, 'run')})" for value, number in counts.items())


def count(value: float | None) -> str:
    """Return `24,444,381`."""
    return NOTHING if value is None else f"{value:,.0f}"


def plural(number: int, thing: str) -> str:
    """Return `1 area`, `193 areas`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def seeds(row: Row) -> str:
    """Return `3`, or `2 of 3 (seed 3: failed)`."""
    if not row.absent:
        return str(len(row.seeds))
    states = ", ".join(f"seed {each.seed}: {each.state}" for each in row.absent)
    return f"{len(row.seeds)} of {len(row.seeds) + len(row.absent)} ({states})"


def spread(row: Row) -> str:
    """Return `0.5467 ± 0.0009`: mean and standard deviation over seeds, if there are several."""
    if row.deviation is None:
        return number(row.miou.value)
    return f"{number(row.miou.value)} ± {number(row.deviation)}"


def miou(convention: Convention | None) -> str:
    """Return `mIoU (FLAIR #2 challenge)`; `mIoU` where the convention is not known."""
    return "mIoU" if convention is None else f"mIoU ({convention})"


def published(row: Row) -> str:
    """Return `0.5470 (0.5467 ± 0.0009)`: the leaderboard's figure and the earlier mean."""
    if row.published is None:
        return NOTHING
    mean = f"{number(row.published.mean)} ± {number(row.published.deviation)}"
    return f"{number(row.published.best)} ({mean})"
