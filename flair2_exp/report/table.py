"""A table of a report: described once, as text for readers and unrounded for programs.

Terminal, Markdown and page show `heads` and `cells`; CSV and JSON hold `records`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    name: str
    """Its key in `leaderboard.json`."""
    file: str
    """Its CSV file."""
    title: str
    heads: Sequence[str]
    cells: Sequence[Sequence[str]]
    """Numbers as text, by line."""
    records: Sequence[Record]
    """Unrounded values by name, the same names in each; None where one is not known."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What a column holds, by its head."""
    second: bool = False
    """Whether readers need it second: the page folds it, the terminal leaves it out."""
