"""A job as an engine sees it: a command and its folder, and what the folder says of its start."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from flair2_exp.files import write_text
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.tracking.scrub import scrub


@dataclass(frozen=True)
class JobCommand:
    """One run of a sweep or a search, as a command line.

    Attributes:
        number: Of the job in its sweep, or of the trial in its study.
        title: `SWEEP/ROW/seed=1`, for queues and messages.
        folder: Where it runs.
        words: Behind `python -m flair2_exp`; `hydra.run.dir` is among them.
        cwd: Where it is started, absolute.
        gpus: Of each machine; a part of 1 where jobs share one; 0: it trains on the processor.
        processes: Of each machine: its devices, each of which has a process of its own.
        nodes: Machines that share the training.
        workers: Processes that read the data, per device.
        test: Whether the run is tested, too.
        root: The folder of the sweep or the search; None: the one above the run's.
    """

    number: int
    title: str
    folder: RunFolder
    words: tuple[str, ...]
    cwd: Path
    gpus: float = 0.0
    processes: int = 1
    nodes: int = 1
    workers: int = 0
    test: bool = True
    root: Path | None = None

    @property
    def argv(self) -> list[str]:
        """The whole command, with this process's interpreter."""
        return [sys.executable, "-m", "flair2_exp", *self.words]


@dataclass
class Submission:
    """What a run's folder says of its last start by an engine (`job.json`).

    Attributes:
        engine: The engine's name.
        id: The job's there: SLURM's job id, or that of its array and its place in it; a process
            number.
        title: `SWEEP/ROW/seed=1`.
        command: The words behind `python -m flair2_exp`; credentials are not written.
        host: The machine that it was started from.
        details: What the engine needs to find it again, and what it was given.
        time: When, in milliseconds since 1970.
        attempt: 1 at its first start; starts that got on do not count.
        code: Digest of the package's files at the time (`code_digest`).
        cancelled: Somebody wants it ended: it is started again on request alone.
    """

    engine: str
    id: str
    title: str = ""
    command: list[str] = field(default_factory=list)
    host: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    time: int = field(default_factory=lambda: int(time.time() * 1000))
    attempt: int = 1
    code: str = ""
    cancelled: bool = False

    @classmethod
    def read(cls, folder: RunFolder) -> Submission | None:
        """Return what a folder says; None where no engine has started its run, or a torn file."""
        try:
            values = json.loads(folder.job.read_text(encoding="utf-8"))
            if not isinstance(values, Mapping):
                return None
            names = {each.name for each in fields(cls)}
            return cls(**{name: value for name, value in values.items() if name in names})
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: RunFolder) -> None:
        """Write it, in one step; the folder is made where it is missing."""
        self.code = self.code or code_digest()
        values = asdict(self) | {"command": [scrub(word) for word in self.command]}
        write_text(folder.job, json.dumps(values, indent=2) + "\n")


@cache
def code_digest() -> str:
    """Return 16 hexadecimal digits over the files of this package, as this process has them."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
