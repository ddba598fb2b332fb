"""The description of a run on its MLflow page: the same lines for each, so that runs compare."""

from __future__ import annotations

from collections.abc import Mapping

from flair2_exp.tracking.scrub import scrub


def summary(
    *,
    facts: Mapping[str, object],
    scores: Mapping[str, float] | None = None,
    folder: str = "",
    note: str = "",
) -> str:
    """Return a short Markdown page.

    Args:
        facts: What the run is, by a short name each: model, data, preprocessing, seed, …
        scores: What was measured, by metric; omit them while there are none.
        folder: The run's folder.
        note: A sentence beside the scores, such as that the data are synthetic.

    Returns:
        Markdown: scores and note on top, since MLflow folds away all but the first lines; then a
        table of the facts and the folder.
    """
    top = [f"**{name} {_number(value)}**" for name, value in (scores or {}).items()]
    lines = [" · ".join([*top, *([note] if note else [])]), ""] if top or note else []
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {cell(value)} |" for name, value in facts.items()]
    if folder:
        lines += ["", f"Folder: `{folder}`"]
    return "\n".join(lines) + "\n"


def cell(value: object) -> str:
    """Return a value as text of one cell of a Markdown table."""
    return scrub(str(value)).replace("|", "\\|").replace("\n", " ")


def _number(value: float) -> str:
    """Return shares with four decimals, larger numbers with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
