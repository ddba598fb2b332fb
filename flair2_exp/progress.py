"""How far something long is: when to say so, and how much time is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

Progress = Callable[[int, int], None]
"""Is given how much is done, and of how much."""

SECONDS: Final = 30.0
"""Between two lines."""


class Pace:
    """How fast something gets on, and whether it is time for a line about it."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def begin(self, done: int) -> None:
        """Note what an earlier command had done, which says nothing of the speed."""
        self._first = done

    def due(self, done: int, total: int) -> bool:
        """Note what is done; return whether the last line is half a minute old.

        Args:
            done: So far, with what an earlier command had done; the end has no line.
            total: Of how many.
        """
        now = time.monotonic()
        if self._first is None:
            self.begin(done)
        if now - self._last < SECONDS or done >= total:
            return False
        self._last = now
        return True

    def left(self, done: int, total: int) -> float | None:
        """Return the seconds that the rest takes; None as long as nothing is known."""
        made = done - (done if self._first is None else self._first)
        return (time.monotonic() - self._start) / made * (total - done) if made else None


def span(seconds: float) -> str:
    """Return a span of time in words, as `2 h 5 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{round(hours / 24)} days"
