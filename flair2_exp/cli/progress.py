"""How far a long command is: a bar on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flair2_exp.progress import Pace, span

Report = Callable[[int, int], None]
"""Takes what is done, and of how many."""


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """Show on standard error how far the work within the context is.

    Args:
        what: What is counted, as `training patches`.

    Yields:
        The function to report with; it may be called as often as one likes.
    """
    if not sys.stderr.isatty():
        yield _Lines(what).report
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(file=sys.stderr), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, what: str) -> None:
        self._what, self._pace = what, Pace()

    def report(self, done: int, total: int) -> None:
        """Print a line where the last one is half a minute old."""
        if not self._pace.due(done, total):
            return
        left = self._pace.left(done, total)
        rest = "" if left is None else f", {span(left)} left"
        print(f"{self._what}: {done:,} of {total:,}{rest}", file=sys.stderr, flush=True)
