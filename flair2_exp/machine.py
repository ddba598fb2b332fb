"""What surrounds a command: the user's environment and terminal, the processor's cores."""

from __future__ import annotations

import io
import os
import sys
import warnings


def settle_surroundings() -> None:
    """Keep what the user has set for other programs, and a poor terminal, from ending a command."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend cannot be imported elsewhere
    if os.environ.pop("PYTHONWARNINGS", ""):  # as errors, those of libraries would end a run
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of any encoding: what it lacks is escaped
            stream.reconfigure(errors="backslashreplace")


def cores() -> int:
    """Return the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processes_at_most() -> int:
    """Return beyond how many processes or threads a number is a slip of the keyboard.

    Several for each core are of use where they wait for a disk; thousands make a machine hang.
    """
    return max(64, 4 * cores())
