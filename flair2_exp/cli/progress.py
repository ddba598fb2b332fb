"""How far a long command is: a bar on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

Report = Callable[[int, int], None]
"""Takes what is done, and of how many."""

_SECONDS: Final = 30.0
"""Between two lines."""


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
        self._what = what
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def report(self, done: int, total: int) -> None:
        """Print a line where the last one is half a minute old."""
        now = time.monotonic()
        if self._first is None:  # what an earlier command had done says nothing of the speed
            self._first = done
        if now - self._last < _SECONDS or done >= total:
            return
        self._last = now
        made = done - self._first
        left = (now - self._start) / made * (total - done) if made else 0.0
        rest = f", {_time(left)} left" if made else ""
        print(f"{self._what}: {done:,} of {total:,}{rest}", file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    """Return a span of time in words, as `2 h 5 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
