"""How a run ends: finished, failed, or killed by a signal, at once or at the next good moment.

Ctrl-C is an exception in Python; within `signals_as_exceptions` SIGTERM, which clusters and `kill`
send, is one too. While a network trains, both wait until the batch is done and a checkpoint is
written (`Interruption.postponed`). A second signal ends the process at once: closing the run takes
too long for somebody who asks twice, and the next start does it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

FINISHED: Final = "FINISHED"
FAILED: Final = "FAILED"
KILLED: Final = "KILLED"
PREEMPTED: Final = "PREEMPTED"

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM).

    A `SystemExit`: where nobody catches it, the process ends without a traceback and with the
    status that a shell gives for the signal, 128 + 15 = 143.
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interruption:
    """A signal that asks this process to end, once it comes.

    Attributes:
        exception: What the signal raises; None until one comes.
    """

    def __init__(self) -> None:
        self.exception: BaseException | None = None
        self._postponed = False
        self._owner = os.getpid()

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Let a signal raise nothing within this context, whose owner looks at `exception`."""
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, as Python calls its handlers."""
        # In a child that was forked inside the context: the run is not the child's to end.
        if self.exception is not None or os.getpid() != self._owner:
            os._exit(128 + number)
        self.exception = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if not self._postponed:
            raise self.exception


_current: Interruption | None = None


@contextmanager
def signals_as_exceptions() -> Iterator[Interruption]:
    """Let the first SIGTERM or Ctrl-C within this context raise; a second one ends the process.

    An inner context is the outer one. The handlers before are put back at the end. Outside the main
    thread, where Python allows no handlers, nothing is installed; a signal that the process was
    started to ignore, as a shell's background job ignores Ctrl-C, stays ignored. Lightning's
    trainer keeps a SIGTERM handler that is there before and calls it after its own.
    """
    global _current
    outside = threading.current_thread() is not threading.main_thread()
    if outside or (_current is not None and _current._owner == os.getpid()):
        yield Interruption() if outside or _current is None else _current
        return
    _current = Interruption()
    handled = [each for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, _current.handle) for each in handled}
    try:
        yield _current
    finally:
        _current = None
        for each, handler in before.items():
            # None: a handler that was not set from Python, which Python cannot put back.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


def status_of(exception: BaseException | None) -> str:
    """Return the status of a run that ended so.

    Args:
        exception: What ended the run; None if nothing did.

    Returns:
        "FINISHED" without an exception or for `SystemExit` with status 0; "KILLED" for Ctrl-C and
        SIGTERM, also where Lightning has turned Ctrl-C into `SystemExit`; else "FAILED".
    """
    if _signalled(exception) is not None:
        return KILLED
    if exception is None or (isinstance(exception, SystemExit) and exception.code in (None, 0)):
        return FINISHED
    return FAILED


def interrupt_of(exception: BaseException) -> BaseException:
    """Return what a signal raised, where an exception came of one: Lightning replaces Ctrl-C's.

    Args:
        exception: What was caught.

    Returns:
        The `KeyboardInterrupt` or `Terminated` in its chain, or the exception itself.
    """
    return _signalled(exception) or exception


def _signalled(exception: BaseException | None) -> BaseException | None:
    seen: set[int] = set()
    link = exception
    while link is not None and id(link) not in seen:
        if isinstance(link, KeyboardInterrupt | Terminated):
            return link
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return None
