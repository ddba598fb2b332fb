"""What a report says in words: findings, notes, method.

A sentence claims no more than the test does: "more than luck" is said of a joint p below 0.05, and
of anything else that it is not told apart from luck, which is no proof of equality. Of a row with
one run nothing is claimed at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from flair2_exp.report import words
from flair2_exp.report.power import PLANNED_SEEDS, Outlook
from flair2_exp.report.published import PODIUM
from flair2_exp.report.results import SIGNIFICANT, Contrast, Difference, Report
from flair2_exp.report.rows import incidental, rows_of_other_code, same_rows, split_rows
from flair2_exp.report.runs import ScoredRun
from flair2_exp.report.statistics import ENOUGH_DOMAINS

FEW_UNITS: Final[int] = 30
"""Below this the simulated coverage of intervals per class leaves 92..98 %; the report says so."""

HARDLY: Final[float] = 0.02
"""A correlation that widens the interval of 20 areas of one domain by a sixth."""

ALIKE: Final = (
    "Where two areas of one domain correlate by 0.2 or 0.5, such an interval holds a row's true "
    "score in 76 or 58 % of simulated cases, and a difference in 93 or 90 %, rather than in 95 %."
)
"""Simulated: 10 domains of 19 areas, three seeds (tests/report/test_statistics.py)."""


def findings(report: Report) -> list[str]:
    """Return the factors' sentences, then those of each row against the baseline, best first."""
    sentences = [
        sentence(each, len(report.effects), report.unit)
        for each in report.effects
        if "×" not in each.row or (each.miou.joint_p or 1.0) < SIGNIFICANT
    ]
    if report.factors_refused:
        sentences.append(f"Factors not analysed: {report.factors_refused}.")
    against = [row.against_baseline for row in report.rows if row.against_baseline]
    against.sort(key=lambda each: -(each.miou.value or 0.0))
    tested = sum(each.miou.joint_p is not None for each in report.differences)
    return sentences + [sentence(each, tested, report.unit) for each in against]


def sentence(difference: Difference, comparisons: int, unit: str = "area") -> str:
    """Return what a comparison says, in one or two sentences.

    Args:
        difference: Of two rows, or a factor's effect.
        comparisons: How many are tested together.
        unit: What the bootstrap drew.
    """
    score = difference.miou
    size = f"{difference.name}: {words.signed(score.value)} mIoU"
    if None in score.shown:
        return f"{size}; no interval can be given with this few {unit}s."
    size += f", 95 % interval {words.interval(score.shown, sign=True)}"
    if score.joint_p is None:
        return f"{size} over {unit}s alone: a row has a single run, so there is no verdict."
    family = f"joint over {comparisons} comparisons" if comparisons > 1 else "one comparison"
    return f"{size}, {words.p_equals(score.joint_p)} ({family}): {_verdict(score, unit)}."


def _verdict(score: Contrast, unit: str) -> str:
    luck = f"the luck of {unit}s and seeds"
    if score.value == 0 and score.error == 0:
        return "the two are equal"
    if score.joint_p is not None and score.joint_p < SIGNIFICANT:
        return f"more than {luck} explains"
    if score.p is not None and score.p < SIGNIFICANT:
        return (
            f"not distinguishable from {luck} once all comparisons are counted "
            f"({words.p_equals(score.p)} if it had been the only one)"
        )
    low, high = score.shown
    return (
        f"not distinguishable from {luck}, which does not show that they are equal: anything from "
        f"{words.signed(low)} to {words.signed(high)} agrees with these runs"
    )


def method(report: Report) -> str:
    """Return how the intervals were made, for below a table."""
    drawn = words.plural(report.units, f"test {report.unit}")
    text = (
        "Intervals (95 %) and two-sided p: symmetric studentised bootstrap, "
        f"{report.options.resamples:,} resamples of {drawn} ({report.patches:,} patches), the same "
        "for all rows, with seeds redrawn within each row from its own spread"
    )
    if report.effects:
        text += " (of factors: from the rows' common spread)"
    if tested := sum(each.miou.joint_p is not None for each in report.differences):
        text += (
            f". A row's interval is of that row by itself. Those of differences, and p, hold for "
            f"{words.plural(tested, 'pair')} of rows at once, by class for pairs × classes"
        )
        text += ", of factors for all effects" if report.effects else ""
        text += "; p is below 0.05 where the interval leaves out 0"
    return f"{text}."


def notes(report: Report) -> list[str]:
    """Return what a reader must know beside the numbers."""
    runs = [run for row in report.rows for run in row.runs]
    on_rows = (
        *split_rows(runs), *same_rows(runs), *rows_of_other_code(runs), *incidental(runs),
    )  # fmt: skip
    on_luck = (*_on_intervals(report), *_on_seeds(report))
    return [*_on_runs(report), *on_rows, *on_luck, *_on_scores(report)]


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
    unfinished = {row.name: sum(map(_best_is_last, row.runs)) for row in report.rows}
    if any(unfinished.values()):
        counted = ", ".join(
            f"{row.name} ({unfinished[row.name]} of {len(row.runs)})"
            for row in report.rows
            if unfinished[row.name]
        )
        yield (
            f"The best epoch was the last one, so more epochs may still help: {counted}. A "
            "difference may be that of how far rows are trained; raise trainer.max_epochs."
        )
    for each in report.absent:
        reason = f" ({each.reason})" if each.reason else ""
        yield f"{each.row}, seed {each.seed}: {each.state}{reason}; not in any figure."


def _best_is_last(run: ScoredRun) -> bool:
    epochs, best = (run.record.scores.get(name) for name in ("train/epochs", "best/epoch"))
    return epochs is not None and best == epochs


def _on_intervals(report: Report) -> Iterator[str]:
    unit = report.unit
    if single := [row.name for row in report.rows if len(row.seeds) == 1]:
        yield (
            f"One run only: {', '.join(single)}. Their intervals are over {unit}s alone; the luck "
            "of the seed is not in them, so nothing is tested. Two more seeds of each row would "
            "tell how far a seed alone moves the score, and which differences are more than that."
        )
    if report.units == 1:
        yield f"A single test {unit}: no interval can be given."
    elif report.units < FEW_UNITS:
        yield (
            f"Only {report.units} test {unit}s: intervals are wide, and those of a rare class hold "
            "the truth less often than they say (in 86 to 90 % of simulated cases)."
        )
    if unit == "area" and report.domains < report.areas:
        why = "on request" if report.domains >= ENOUGH_DOMAINS else (
            f"since {words.plural(report.domains, 'test domain')} cannot be drawn from "
            f"({ENOUGH_DOMAINS} can)"
        )  # fmt: skip
        yield (
            f"Intervals are over areas, as if those of one domain were independent, {why}. {ALIKE}"
        )
    if report.alike[0] is not None:
        yield _on_domains(report)


def _on_domains(report: Report) -> str:
    """Return how alike areas of one domain are, and what that means."""
    level, difference = report.alike
    text = f"Two areas of one domain have a correlation of about {words.signed(level, 2)} in score"
    if difference is not None:
        text += f" and {words.signed(difference, 2)} in the difference of two rows"
    text += f" (a rough estimate from {report.domains} domains)"
    if max(level or 0.0, difference or 0.0) < HARDLY:
        return f"{text}: they are hardly alike, and intervals over domains or areas say the same."
    return f"{text}: intervals over areas, as if these were independent, would be too narrow."


def _on_seeds(report: Report) -> Iterator[str]:
    if report.outlook is not None:
        yield outlook_sentence(report.outlook, report.unit, report.options.difference)


def outlook_sentence(outlook: Outlook, unit: str, difference: float | None = None) -> str:
    """Return which differences more seeds would show, and how many an asked-for one needs."""
    shown = [f"{words.number(outlook.visible(seeds))} with {seeds}" for seeds in PLANNED_SEEDS]
    compared = words.plural(outlook.comparisons, "comparison")
    text = (
        f"How many seeds? Differences that about 3 of 4 repetitions would find ({compared} at 5 %, "
        f"from the spread of these runs): {', '.join(shown)} seeds per row; "
        f"{words.number(outlook.visible(math.inf))} however many, for these {outlook.units} test "
        f"{unit}s."
    )
    if difference is None:
        return text
    needed = outlook.seeds_for(difference)
    if needed is None:
        return f"{text} No number of seeds shows {difference:g} here: it needs more test {unit}s."
    return f"{text} {difference:g} needs {words.plural(needed, 'seed')} per row."


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
