"""What a report says in words: findings, notes, method.

A sentence claims no more than the test does: "more than luck" is said of a Holm-corrected p below
0.05, and of anything else that it is not told apart from luck, which is no proof of equality.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flair2_exp.report import words
from flair2_exp.report.published import PODIUM
from flair2_exp.report.results import SIGNIFICANT, Difference, Report
from flair2_exp.report.rows import incidental, same_rows, split_rows

FEW_AREAS: Final[int] = 30
"""Below this the simulated coverage of intervals per class leaves 92..98 %; the report says so."""


def findings(report: Report) -> list[str]:
    """Return the factors' sentences, then those of each row against the baseline, best first."""
    sentences = [
        sentence(each, len(report.effects), report.options.unit)
        for each in report.effects
        if "×" not in each.row or (each.miou.p_holm is not None and each.miou.p_holm < SIGNIFICANT)
    ]
    if report.factors_refused:
        sentences.append(f"Factors not analysed: {report.factors_refused}.")
    against = [row.against_baseline for row in report.rows if row.against_baseline]
    against.sort(key=lambda each: -(each.miou.value or 0.0))
    comparisons = len(report.differences)
    return sentences + [sentence(each, comparisons, report.options.unit) for each in against]


def sentence(difference: Difference, comparisons: int, unit: str = "area") -> str:
    """Return what a comparison says, in one or two sentences.

    Args:
        difference: Of two rows, or a factor's effect.
        comparisons: How many were corrected for.
        unit: What the bootstrap drew.
    """
    score = difference.miou
    size = f"{difference.name}: {words.signed(score.value)} mIoU"
    if score.value is None or score.p is None or score.p_holm is None:
        return f"{size}; no interval can be given with this few {unit}s."
    family = f"Holm over {comparisons} comparisons" if comparisons > 1 else "one comparison"
    size += f", 95 % interval {words.interval(score, sign=True)}, {words.p_equals(score.p_holm)}"
    return f"{size} ({family}): {_verdict(difference, score.p_holm, score.p, unit)}."


def _verdict(difference: Difference, p_holm: float, p: float, unit: str) -> str:
    score = difference.miou
    luck = f"the luck of {unit}s and seeds" if difference.seeds_known else f"the luck of {unit}s"
    if score.value == 0 and score.error == 0:
        return "the two are equal"
    if p_holm < SIGNIFICANT:
        unknown = "" if difference.seeds_known else (
            "; the luck of the seed is unknown, since a row has one seed, and may explain it"
        )  # fmt: skip
        return f"more than {luck} explains{unknown}"
    if p < SIGNIFICANT:
        return (
            f"not distinguishable from {luck} once all comparisons are counted "
            f"({words.p_equals(p)} if it had been the only one)"
        )
    return (
        f"not distinguishable from {luck}, which does not show that they are equal: anything from "
        f"{words.signed(score.low)} to {words.signed(score.high)} agrees with these runs"
    )


def method(report: Report) -> str:
    """Return how the intervals were made, for below a table."""
    drawn = words.plural(report.areas, f"test {report.options.unit}")
    text = (
        "Intervals (95 %) and two-sided p: symmetric studentised bootstrap, "
        f"{report.options.resamples:,} resamples of {drawn} ({report.patches:,} patches), the same "
        "for all rows, with seeds redrawn within each row from its own spread"
    )
    if report.effects:
        text += " (of factors: from the rows' common spread)"
    if report.differences:
        pairs = words.plural(len(report.differences), "pair")
        text += f". p is Holm-corrected over the {pairs} of rows shown, per-class p over"
        text += " pairs × classes" + (", factors over their effects" if report.effects else "")
    return f"{text}."


def notes(report: Report) -> list[str]:
    """Return what a reader must know beside the numbers."""
    runs = [run for row in report.rows for run in row.runs]
    on_rows = (*split_rows(runs), *same_rows(runs), *incidental(runs))
    return [*_on_runs(report), *on_rows, *_on_intervals(report), *_on_scores(report)]


def _on_runs(report: Report) -> Iterator[str]:
    wanted = report.options.baseline
    if wanted not in (None, report.baseline):
        yield (
            f"The baseline {wanted} has no finished run: differences are to {report.baseline}, "
            "the first row that has one."
        )
    if report.synthetic:
        yield (
            "Synthetic sample data: these scores say nothing about FLAIR #2 and are never shown "
            "beside published ones."
        )
    for each in report.absent:
        reason = f" ({each.reason})" if each.reason else ""
        yield f"{each.row}, seed {each.seed}: {each.state}{reason}; not in any figure."


def _on_intervals(report: Report) -> Iterator[str]:
    unit = report.options.unit
    if single := [row.name for row in report.rows if len(row.seeds) == 1]:
        yield (
            f"One seed only: {', '.join(single)}. Their intervals are over {unit}s alone; the luck "
            "of the seed is not known and not in them."
        )
    if report.areas == 1:
        yield f"A single test {unit}: no interval can be given."
    elif report.areas < FEW_AREAS:
        yield (
            f"Only {report.areas} test {unit}s: intervals are wide, and those of a rare class hold "
            "the truth less often than they say (in 86 to 90 % of simulated cases)."
        )


def _on_scores(report: Report) -> Iterator[str]:
    for row in report.rows:
        for score, run in zip(row.scores, row.runs, strict=True):
            logged = run.record.scores.get("test/miou")
            if logged is not None and abs(logged - score) > 1e-4:  # counts of another run
                yield (
                    f"{row.name}, seed {run.seed}: logged test/miou {logged:.4f}, but the counts "
                    f"give {score:.4f}, which is shown."
                )
    if lacking := [key for key, value in report.setting.items() if not value]:
        yield f"Not recorded by the runs: {', '.join(lacking)}; the test patches are the same."
    if any(row.published for row in report.rows):
        podium = ", ".join(f"{each.value:.4f}" for each in PODIUM)
        yield (
            "Published: leaderboard figure (a best run) and earlier mean ± standard deviation, not "
            f"dated, {PODIUM[0].convention} convention, official test split. The mean is what to "
            f"reproduce. Challenge podium, for scale: {podium}."
        )
