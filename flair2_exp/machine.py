"""How many processes and threads this machine is good for."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

SYSTEM: Final = Path("/")
"""Below it the kernel says what a control group (a container, a job) may use."""

_SLURM: Final = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
"""Cores of a job, the narrower first; where SLURM binds nothing, no other place says so."""


def cores() -> int:
    """Return the processor cores that this process may use: 1 at least.

    The fewest of: those that it is bound to, its control groups' quotas, and those of its SLURM
    job.
    """
    return max(1, min([len(_bound()), *_quotas(SYSTEM), *_of_slurm()]))


def core_numbers() -> list[int]:
    """Return the numbers of as many cores as this process may use, in order.

    Of more cores that it is bound to they are neighbours from a place drawn at random: another
    container with a quota may share the machine, and look for its own.
    """
    bound, count = _bound(), cores()
    start = random.randrange(len(bound)) if count < len(bound) else 0
    return sorted((bound[start:] + bound[:start])[:count])


def _bound() -> list[int]:
    """Return the numbers of the cores that this process is bound to, in order."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _of_slurm() -> Iterator[int]:
    """Yield the cores that SLURM gives this process, where it runs in a job."""
    for name in _SLURM:
        text = os.environ.get(name, "")
        if text.isdecimal() and int(text):
            yield int(text)
            return


def _quotas(system: Path) -> Iterator[int]:
    """Yield how many whole cores each control group above this process may use.

    Of the version 2 of the kernel's interface (`cpu.max`) and of version 1 (`cpu.cfs_quota_us`).
    A part of a core counts as one.

    Args:
        system: The root of the file system.
    """
    groups = system / "sys/fs/cgroup"
    with suppress(OSError, ValueError):
        for line in (system / "proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = groups / controllers if controllers else groups
            own = root / name.lstrip("/")
            # Within a container the name may be one of outside, and the root is its own group.
            for group in dict.fromkeys((*_upwards(own, root), root)):
                with suppress(OSError, ValueError):
                    yield _quota(group, version=1 if controllers else 2)


def _upwards(group: Path, root: Path) -> Iterator[Path]:
    while group != root and root in group.parents:
        yield group
        group = group.parent


def _quota(group: Path, *, version: int) -> int:
    """Return the cores of one control group, rounded up.

    Raises:
        OSError: It has no quota.
        ValueError: It has none: "max", or -1.
    """
    if version == 2:
        quota, period = (group / "cpu.max").read_text("utf-8").split()
    else:
        quota = (group / "cpu.cfs_quota_us").read_text("utf-8")
        period = (group / "cpu.cfs_period_us").read_text("utf-8")
    if int(quota) <= 0:
        raise ValueError(quota)
    return -(-int(quota) // int(period))


def processes_at_most() -> int:
    """Return beyond how many processes or threads a number is a slip of the keyboard.

    Several for each core are of use where they wait for a disk; thousands make a machine hang.
    """
    return max(64, 4 * cores())
