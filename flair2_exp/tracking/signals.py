"""How a run ends: finished, failed, or killed by a signal.

Ctrl-C already is an exception in Python; `sigterm_as_exception` makes SIGTERM one too, so that a
run ended by a cluster or by `kill` is closed like any other: as KILLED.
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


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM).

    A `SystemExit`: where nobody catches it, the process ends without a traceback and with the
    status that a shell gives for the signal, 128 + 15 = 143.
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Within this context the first SIGTERM raises `Terminated`; a second one ends at once.

    The handler before is put back at the end. Outside the main thread, where Python allows no
    handlers, this does nothing. Lightning's trainer keeps a handler that it finds and calls it
    after its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received, owner = False, os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        # A second time: closing the run takes too long for whoever asks; the next start does it.
        # In a child that was forked inside the context: the run is not the child's to end.
        if received or os.getpid() != owner:
            os._exit(128 + signal.SIGTERM)
        received = True
        raise Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        # None: a handler that was not set from Python, which Python cannot put back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def status_of(exception: BaseException | None) -> str:
    """The run status that an ending deserves.

    Args:
        exception: What ended the run; None if nothing did.

    Returns:
        "FINISHED" without an exception or for `SystemExit` with status 0; "KILLED" for Ctrl-C and
        SIGTERM, also where Lightning has turned Ctrl-C into `SystemExit`; else "FAILED".
    """
    seen: set[int] = set()
    link = exception
    while link is not None and id(link) not in seen:
        if isinstance(link, KeyboardInterrupt | Terminated):
            return KILLED
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    if exception is None or (isinstance(exception, SystemExit) and exception.code in (None, 0)):
        return FINISHED
    return FAILED
