"""Which process writes a run, and whether it still lives.

A process that is killed outright cannot close its run, which then says RUNNING for ever. So a run
carries the process that writes it as tags. A process number alone is not enough: numbers are used
again, by the next process, by another container, after a restart of the machine.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOST_TAG: Final = "flair2.host"
PID_TAG: Final = "flair2.pid"
PROCESS_TAG: Final = "flair2.process"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """When process `pid` started, in clock ticks since the machine did; "" if there is none.

    Field 22 of /proc/PID/stat (proc_pid_stat(5)), counted behind the command's closing bracket,
    since a command may hold blanks and brackets itself. A zombie has ended: it counts as none.
    """
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if not fields or fields[0] in "ZX" else fields[19]


@dataclass(frozen=True)
class WriterProcess:
    """A process of a machine, told apart from every other one.

    Attributes:
        host: The machine's network name.
        machine: A hash of the machine's own identity (/etc/machine-id); "" where it has none.
        boot: The identity of the machine's present run, new at each restart.
        namespace: The process-number space (containers have their own).
        pid: The process number.
        start: Clock ticks from the machine's start to the process's.
    """

    host: str
    machine: str
    boot: str
    namespace: str
    pid: int
    start: str

    @classmethod
    def this(cls) -> WriterProcess:
        """The calling process."""
        machine = _read("/etc/machine-id")
        try:
            namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            namespace = ""
        return cls(
            host=socket.gethostname(),
            machine=hashlib.sha256(machine.encode()).hexdigest()[:12] if machine else "",
            boot=_read("/proc/sys/kernel/random/boot_id"),
            namespace=namespace,
            pid=os.getpid(),
            start=_start_time(os.getpid()),
        )

    def tags(self) -> dict[str, str]:
        """The process as tags of a run."""
        process = "/".join((self.machine, self.boot, self.namespace, self.start))
        return {HOST_TAG: self.host, PID_TAG: str(self.pid), PROCESS_TAG: process}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> WriterProcess | None:
        """The process that a run's tags name; None where they name none."""
        parts = tags.get(PROCESS_TAG, "").split("/")
        pid = tags.get(PID_TAG, "")
        if HOST_TAG not in tags or not pid.isdecimal() or len(parts) != 4:
            return None
        machine, boot, namespace, start = parts
        return cls(tags[HOST_TAG], machine, boot, namespace, int(pid), start)

    def has_ended(self, *, shared_store: bool) -> bool:
        """Whether this process is known to have ended, as seen from the calling process.

        Where it cannot be known (another machine, another container), the answer is no.

        Args:
            shared_store: Other machines write to the store as well, so that an equal host name
                does not yet mean this machine.
        """
        here = WriterProcess.this()
        if self.host != here.host or self.machine != here.machine:
            return False
        if self.boot != here.boot:  # the machine was started again, or is another of that name
            return bool(here.machine) or not shared_store
        if self.namespace != here.namespace:
            return False
        if self.start:
            return _start_time(self.pid) != self.start
        try:  # a system without /proc: all that can be asked is whether the number is in use
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
