"""How a run ends: finished, failed, or killed by a signal, at once or at the next good moment.

Ctrl-C is an exception in Python; within `signals_as_exceptions` SIGTERM, which clusters and `kill`
send, is one too, and so are SIGUSR1 and SIGUSR2, which clusters send before a time limit. While a
network trains, all wait until the batch is done and a checkpoint is written
(`Interruption.postponed`). A second signal ends the process at once: closing the run takes too long
for somebody who asks twice, and the next start does it. SLURM, however, sends several by itself,
and kills what does not end in time: a job of `hydra/launcher=slurm` goes by the first one alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from flair2_exp import slurm

FINISHED: Final = "FINISHED"
FAILED: Final = "FAILED"
KILLED: Final = "KILLED"
PREEMPTED: Final = "PREEMPTED"
"""Ended by its cluster, which starts it again."""

_FOREIGN: Final = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals of which a handler that is there is kept: submitit's, which queues its jobs again."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, *_FOREIGN)
"""Those that ask a run to end."""


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM, SIGUSR1, SIGUSR2).

    A `SystemExit`: where nobody catches it, the process ends without a traceback and with the
    status that a shell gives for the signal, as 128 + 15 = 143.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.number = number


class Preempted(Terminated):
    """The process was asked to end by a cluster that starts it again."""


def exception_of(number: int) -> BaseException:
    """Return what a signal raises."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


class Interruption:
    """A signal that asks this process to end, once it comes.

    Args:
        lasting: The process is not the run's alone, but a notebook's: a second signal raises again.

    Attributes:
        exception: What the signal raises; None until one comes.
    """

    def __init__(self, *, lasting: bool = False) -> None:
        self.exception: BaseException | None = None
        self._lasting = lasting
        self._postponed = False
        self._settled = False
        self._owner = os.getpid()

    def outcome(self, error: BaseException) -> BaseException:
        """Return what ends the process: the signal, as `Preempted` where SLURM starts it again.

        Args:
            error: What was raised; another process of the training may have got the signal.
        """
        ends = self.exception or error
        if isinstance(ends, Terminated) and not self._settled:
            self._settled = True
            if slurm.goes_on(ends.number):
                ends = self.exception = Preempted(ends.number)
        return ends

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
        if os.getpid() != self._owner:
            os._exit(128 + number)
        if self.exception is not None:
            if self._lasting:
                raise self.exception
            if slurm.JOB in os.environ:
                return
            os._exit(128 + number)
        self.exception = exception_of(number)
        if not self._postponed:
            raise self.exception


_current: Interruption | None = None


@contextmanager
def held_back() -> Iterator[None]:
    """Let a signal raise at the end of this context rather than within it."""
    current = _current
    if current is None:
        yield
        return
    with current.postponed():
        yield
    if current.exception is not None:
        raise current.exception


@contextmanager
def signals_as_exceptions(*, lasting: bool = False) -> Iterator[Interruption]:
    """Let the first signal within this context raise; a second one ends the process.

    An inner context is the outer one. The handlers before are put back at the end. Outside the main
    thread, where Python allows no handlers, nothing is installed; a signal that the process was
    started to ignore, as a shell's background job ignores Ctrl-C, stays ignored; another program's
    handler of SIGUSR1 and SIGUSR2 stays. Lightning's trainer keeps a SIGTERM handler that is there
    before and calls it after its own.

    Args:
        lasting: The process outlives the run, as a notebook's: a second signal raises as well.
    """
    global _current
    outside = threading.current_thread() is not threading.main_thread()
    if outside or (_current is not None and _current._owner == os.getpid()):
        yield Interruption() if outside or _current is None else _current
        return
    _current = Interruption(lasting=lasting)
    handled = [each for each in SIGNALS if _is_ours(each)]
    before = {each: signal.signal(each, _current.handle) for each in handled}
    try:
        yield _current
    finally:
        _current = None
        for each, handler in before.items():
            # None: a handler that was not set from Python, which Python cannot put back.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


def number_of(exception: BaseException) -> int:
    """Return which signal raises an exception of `exception_of`."""
    return exception.number if isinstance(exception, Terminated) else signal.SIGINT


def _is_ours(number: signal.Signals) -> bool:
    """Return whether a signal may get our handler."""
    present = signal.getsignal(number)
    return present == signal.SIG_DFL if number in _FOREIGN else present != signal.SIG_IGN


def status_of(exception: BaseException | None) -> str:
    """Return the status of a run that ended so.

    Args:
        exception: What ended the run; None if nothing did.

    Returns:
        "FINISHED" without an exception or for `SystemExit` with status 0; "PREEMPTED" where SLURM
        starts it again; "KILLED" for other signals, also where Lightning has turned Ctrl-C into
        `SystemExit`; else "FAILED".
    """
    signalled = _signalled(exception)
    if signalled is not None:
        return PREEMPTED if isinstance(signalled, Preempted) else KILLED
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
