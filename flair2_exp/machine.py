"""How many processes and threads this machine is good for."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the processor cores that this process may use."""
    return len(core_numbers())


def core_numbers() -> list[int]:
    """Return the numbers of these cores, in order."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processes_at_most() -> int:
    """Return beyond how many processes or threads a number is a slip of the keyboard.

    Several for each core are of use where they wait for a disk; thousands make a machine hang.
    """
    return max(64, 4 * cores())
