"""Which process writes a run, and whether it still lives.

A process that is killed outright cannot close its run, which then says RUNNING for ever. So a run
carries the process that writes it as tags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flair2_exp.optuna_sweeper.process import Process
from flair2_exp.tracking.tags import Tag


@dataclass(frozen=True)
class WriterProcess:
    """A process of a machine, told apart from every other one.

    Attributes:
        process: As the machine knows it.
        machine: A hash of the machine's own identity (/etc/machine-id), by which two of one name
            are told apart; "" where it has none.
    """

    process: Process
    machine: str

    @classmethod
    def this(cls) -> WriterProcess:
        """Return the calling process."""
        machine = ""
        with suppress(OSError):
            machine = Path("/etc/machine-id").read_text("utf-8").strip()
        digest = hashlib.sha256(machine.encode()).hexdigest()[:12] if machine else ""
        return cls(Process.this(), digest)

    def tags(self) -> dict[str, str]:
        """Return the process as tags of a run."""
        own = self.process
        identity = "/".join((self.machine, own.boot, own.namespace, own.start))
        return {Tag.HOST: own.host, Tag.PID: str(own.pid), Tag.PROCESS: identity}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> WriterProcess | None:
        """Return the process that a run's tags name; None where they name none."""
        parts = tags.get(Tag.PROCESS, "").split("/")
        pid = tags.get(Tag.PID, "")
        if Tag.HOST not in tags or not pid.isdecimal() or len(parts) != 4:
            return None
        machine, boot, namespace, start = parts
        return cls(Process(tags[Tag.HOST], boot, namespace, int(pid), start), machine)

    def has_ended(self, *, shared_store: bool) -> bool:
        """Return whether this process has ended for certain, as seen from the calling process.

        Where that cannot be known (another machine, another container), the answer is no.

        Args:
            shared_store: Other machines write to the store as well, so that an equal host name
                does not yet mean this machine.
        """
        here = WriterProcess.this()
        if (self.process.host, self.machine) != (here.process.host, here.machine):
            return False
        if self.process.boot != here.process.boot:  # started again, or another of that name
            return bool(here.machine) or not shared_store
        return self.process.lives() is False
