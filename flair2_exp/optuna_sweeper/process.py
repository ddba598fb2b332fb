"""A process of some machine, told apart from every other one, and whether it still lives.

A process number alone is not enough: numbers are used again, by the next process, in another
container, after a restart. Number, start time, process namespace and the machine's present run
together are unique. Nothing but the standard library is imported.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Process:
    """The identity of a process.

    Attributes:
        host: The machine's network name.
        boot: The machine's present run, new at each restart; "" where it is unknown.
        namespace: What process numbers are unique in (each container has its own); likewise.
        pid: The process number.
        start: Clock ticks from the machine's start to the process's; "" without /proc.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: str

    @classmethod
    def this(cls) -> Process:
        """Return the calling process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process of that number on this machine, in this process's namespace."""
        boot = namespace = ""
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        with contextlib.suppress(OSError):
            namespace = os.readlink("/proc/self/ns/pid")
        return cls(socket.gethostname(), boot, namespace, pid, start_time(pid))

    @classmethod
    def of_plain(cls, values: object) -> Process | None:
        """Return the process of what `plain` gave; None where it is something else."""
        names = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping) or not all(name in values for name in names):
            return None
        return cls(**{name: values[name] for name in names})

    def plain(self) -> dict[str, Any]:
        """Return the attributes as plain values, as JSON keeps them."""
        return asdict(self)

    def lives(self) -> bool | None:
        """Return whether the process still runs; None where this machine cannot know."""
        here = Process.this()
        if (self.host, self.boot, self.namespace) != (here.host, here.boot, here.namespace):
            return None
        if self.start:
            return start_time(self.pid) == self.start
        try:  # without /proc: all that can be asked is whether the number is in use
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


def start_time(pid: int) -> str:
    """Return when a process started, in clock ticks since the machine did.

    Field 22 of /proc/PID/stat (proc_pid_stat(5)), counted behind the command's closing bracket,
    since a command may hold blanks and brackets itself. "" where there is no such process, or no
    /proc; a zombie has ended and counts as none.
    """
    try:
        columns = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if columns[0] in "ZX" else columns[19]
