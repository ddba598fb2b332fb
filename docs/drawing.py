"""Mermaid's flow charts as SVG: built offline, and the reader's browser fetches nothing.

Only what the design page uses is understood: `flowchart TD`, `a["text"] --> b["text"]`. A code
host has Mermaid itself draw the same block.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from sphinx.util.docutils import SphinxDirective

_ROOM: Final = r'(\w+)(?:\["(.*?)"\])?'
_ARROW: Final = re.compile(rf"^\s*{_ROOM}\s*-->\s*{_ROOM}", re.MULTILINE)
_WIDTH: Final = 32
"""Letters in a line of a box."""


class Mermaid(SphinxDirective):
    """A flow chart, drawn when the site is built."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the picture, with the rooms as its text for those who do not see it."""
        folder = Path(self.env.srcdir) / "reference" / "generated"
        path = folder / f"{self.env.docname.replace('/', '_')}.svg"
        text = "\n".join(self.content)
        draw(text, path)
        image = nodes.image(uri=f"/{path.relative_to(self.env.srcdir)}", width="100%")
        image["alt"] = "; ".join(f"{tail} → {head}" for tail, _, head, _ in _ARROW.findall(text))
        return [image]


def draw(text: str, path: Path) -> None:
    """Draw a flow chart: each box below all that point to it.

    Args:
        text: Mermaid's.
        path: The SVG file to write.
    """
    arrows = _ARROW.findall(text)
    labels = {n: label for a, la, b, lb in arrows for n, label in ((a, la), (b, lb)) if label}
    rows = _rows([(tail, head) for tail, _, head, _ in arrows])
    figure = Figure(figsize=(9.5, 1.15 * len(rows)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.5, 0.5), ylim=(-len(rows) + 0.5, 0.5))
    axes.axis("off")
    places = {
        name: ((column - (len(row) - 1) / 2) / 4, -depth)
        for depth, row in enumerate(rows)
        for column, name in enumerate(row)
    }
    for tail, _, head, _ in arrows:
        (x, y), (x_head, y_head) = places[tail], places[head]
        style = {"arrowstyle": "-|>", "color": "#8a94a6", "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x_head, y_head + 0.35), (x, y - 0.35), arrowprops=style, zorder=1)
    for name, (x, y) in places.items():
        _box(axes, name, labels.get(name, name), x, y)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _rows(arrows: list[tuple[str, str]]) -> list[list[str]]:
    """Return the names from above to below, each as high as its arrows allow."""
    depth = dict.fromkeys((name for arrow in arrows for name in arrow), 0)
    for _ in depth:
        for tail, head in arrows:
            depth[head] = max(depth[head], depth[tail] + 1)
    return [[n for n in depth if depth[n] == row] for row in range(max(depth.values()) + 1)]


def _box(axes: Axes, name: str, label: str, x: float, y: float) -> None:
    lines = textwrap.wrap(label.removeprefix(f"{name}: "), _WIDTH)
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.02",
        "fc": "#eef3f9",
        "ec": "#5b7aa8",
    }
    box = FancyBboxPatch((x - 0.115, y - 0.35), 0.23, 0.7, mutation_aspect=4, zorder=2, **style)
    axes.add_patch(box)
    body = "\n".join(lines)
    axes.text(x, y + 0.31, name, ha="center", va="top", fontsize=9.5, weight="bold", zorder=3)
    axes.text(x, y + 0.13, body, ha="center", va="top", fontsize=7, linespacing=1.15, zorder=3)
