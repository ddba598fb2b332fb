"""Jobs that are small scripts: real processes that leave what a run leaves, in milliseconds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flair2_exp.engines.job import JobCommand
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FORMAT

_HEAD = f"""
import json, os, signal, sys, time
from pathlib import Path
FOLDER = Path(sys.argv[1])
def record(status, error=""):
    text = json.dumps({{"format": {FORMAT}, "tags": {{}}, "status": status, "error": error}})
    (FOLDER / "run.json").write_text(text)
def finish(score=0.5):
    (FOLDER / "metrics.json").write_text(json.dumps({{"test/miou": score}}))
    record("FINISHED")
def advance():
    (FOLDER / "checkpoints").mkdir(exist_ok=True)
    (FOLDER / "checkpoints" / "last.ckpt").write_text(str(time.monotonic_ns()))
def wait_for(name):
    while not (FOLDER.parent / name).exists():
        time.sleep(0.01)
def starts():
    return (FOLDER / "output.log").read_text().count("=== start ")
def leave(name, text):
    (FOLDER / name).write_text(text)
"""


@dataclass(frozen=True)
class Script(JobCommand):
    """A job whose command is a script of its own.

    Attributes:
        code: Python; may use the functions of `_HEAD`.
    """

    code: str = "finish()"

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-S", "-c", _HEAD + self.code, str(self.folder)]


def script(root: Path, number: int, code: str = "finish()", gpus: float = 0.0) -> Script:
    """A job in a folder of its own below a root."""
    folder = RunFolder(root / f"job{number}")
    return Script(number, f"made/row/seed={number}", folder, (), root, gpus=gpus, code=code)


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition; fail where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come"
        time.sleep(0.01)


def written(folder: RunFolder, name: str) -> str:
    """What a job's script has left under a name; "" where nothing is there yet."""
    path = folder.path / name
    return path.read_text() if path.exists() else ""


def status_of(folder: RunFolder) -> str:
    """The status in a job's record; "" where there is none."""
    try:
        return str(json.loads(folder.record.read_text())["status"])
    except (OSError, ValueError):
        return ""
