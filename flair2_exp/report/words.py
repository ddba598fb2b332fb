"""Figures and findings in words: numbers as text, and the sentence that answers a question.

A sentence claims no more than the test does: "more than luck" is said of a Holm-corrected p below
0.05, and of anything else that it is not told apart from luck, which is no proof of equality.
"""

from __future__ import annotations

from flair2_exp.report.leaderboard import SIGNIFICANT, Difference, Report, Row, Score

NOTHING = "–"


def number(value: float | None, digits: int = 4) -> str:
    """A figure with four digits, as the published ones; a dash where there is none."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 4) -> str:
    """A difference with its sign."""
    if value is None:
        return NOTHING
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if float(text.replace("−", "-")) else f"{0:.{digits}f}"


def interval(score: Score, *, sign: bool = False) -> str:
    """`[low, high]`."""
    if score.low is None or score.high is None:
        return NOTHING
    show = signed if sign else number
    return f"[{show(score.low)}, {show(score.high)}]"


def p_value(p: float | None) -> str:
    """`0.012`, `< 0.001`; three decimals, since 10,000 resamples give no more."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float) -> str:
    """`p = 0.012`, `p < 0.001`."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def duration(seconds: float | None) -> str:
    """`12.3 s`, `5:57 min`, `3 h 05 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def count(value: int | None) -> str:
    """`24,444,381`."""
    return NOTHING if value is None else f"{value:,}"


def plural(number: int, thing: str) -> str:
    """`1 area`, `193 areas`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def seeds(row: Row) -> str:
    """`3`, or `2 of 3 (seed 3: failed)`."""
    if not row.absent:
        return str(len(row.seeds))
    states = ", ".join(f"seed {each.seed}: {each.state}" for each in row.absent)
    return f"{len(row.seeds)} of {len(row.seeds) + len(row.absent)} ({states})"


def spread(row: Row) -> str:
    """`0.5467 ± 0.0009`: mean and standard deviation over seeds; without the latter for one."""
    if row.deviation is None:
        return number(row.miou.value)
    return f"{number(row.miou.value)} ± {number(row.deviation)}"


def published(row: Row) -> str:
    """`0.5470 (0.5467 ± 0.0009)`: the leaderboard figure and the earlier mean."""
    if row.published is None:
        return NOTHING
    mean = f"{number(row.published.mean)} ± {number(row.published.deviation)}"
    return f"{number(row.published.best)} ({mean})"


def sentence(difference: Difference, comparisons: int, unit: str = "area") -> str:
    """What a comparison says, in one or two sentences.

    Args:
        difference: Of two rows, or a factor's effect.
        comparisons: How many were corrected for.
        unit: What the bootstrap drew.
    """
    what = f"{difference.row} − {difference.other}" if difference.other else difference.row
    score, p, corrected = difference.miou, difference.p, difference.p_holm
    if score.value is None or p is None or corrected is None:
        return (
            f"{what}: {signed(score.value)} mIoU; no interval can be given with this few {unit}s."
        )
    family = f"Holm over {comparisons} comparisons" if comparisons > 1 else "one comparison"
    figures = (
        f"{what}: {signed(score.value)} mIoU, 95 % interval {interval(score, sign=True)}, "
        f"{p_equals(corrected)} ({family})"
    )
    return f"{figures}: {_verdict(difference, corrected, p, unit)}."


def _verdict(difference: Difference, corrected: float, p: float, unit: str) -> str:
    score = difference.miou
    luck = f"the luck of {unit}s and seeds" if difference.seeds_known else f"the luck of {unit}s"
    if score.value == 0 and score.error == 0:
        return "the two are equal"
    if corrected < SIGNIFICANT:
        caveat = (
            ""
            if difference.seeds_known
            else "; the luck of the seed is unknown, since a row has one seed, and may explain it"
        )
        return f"more than {luck} explains{caveat}"
    if p < SIGNIFICANT:
        return (
            f"not distinguishable from {luck} once all comparisons are counted "
            f"({p_equals(p)} if it had been the only one)"
        )
    low, high = interval(score, sign=True)[1:-1].split(", ")
    return (
        f"not distinguishable from {luck}, which does not show that they are equal: anything from "
        f"{low} to {high} agrees with these runs"
    )


def findings(report: Report) -> list[str]:
    """The sentences of a report: the factors, then each row against the baseline, best first."""
    said = []
    if report.factorial:
        effects = report.factorial.effects
        said += [
            sentence(each, len(effects), report.unit)
            for each in effects
            if "×" not in each.row or (each.p_holm is not None and each.p_holm < SIGNIFICANT)
        ]
        if report.factorial.refused:
            said.append(f"Factors not analysed: {report.factorial.refused}.")
    against = [row.against_baseline for row in report.rows if row.against_baseline]
    against.sort(key=lambda each: -(each.miou.value or 0.0))
    return said + [sentence(each, len(report.differences), report.unit) for each in against]


def method(report: Report) -> str:
    """How the intervals were made, in two sentences for below a table."""
    drawn, pairs = plural(report.areas, f"test {report.unit}"), len(report.differences)
    said = (
        f"Intervals (95 %) and two-sided p: symmetric studentised bootstrap, {report.resamples:,} "
        f"resamples of {drawn} ({report.patches:,} patches), the same for all rows, with seeds "
        "redrawn within each row from its own spread"
    )
    effects = report.factorial is not None and report.factorial.effects
    if effects:
        said += " (of factors: from the rows' common spread)"
    if pairs:
        said += (
            f". p is Holm-corrected over the {plural(pairs, 'pair')} of rows shown, per-class p "
            "over pairs × classes"
        )
        said += ", factors over their effects" if effects else ""
    return f"{said}."
