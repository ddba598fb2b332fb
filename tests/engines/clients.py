"""SLURM's clients as small shell scripts: they say what a test wrote, and keep their words."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

_SBATCH = """\
if [ -e refuse ]; then cat refuse >&2; exit 1; fi
number=$(($(cat number 2>/dev/null || echo 100) + 1))
echo "$number" >number
echo "$number"
"""
_SCONTROL = """\
if [ $# = 0 ]; then cat >>updates; exit 0; fi
case "$*" in
"show config") echo "MaxArraySize            = $(cat most 2>/dev/null || echo 1001)" ;;
*"show job"*) [ -e info ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
  cat info ;;
esac
"""
_SQUEUE = "cat queue 2>/dev/null\nexit 0\n"
_SACCT = """\
[ -e accounts ] || { echo "Slurm accounting storage is disabled" >&2; exit 1; }
cat accounts
"""
_SRUN = "bash ./step\n"


class Clients:
    """A folder with the commands, first on the path.

    Attributes:
        folder: Where they read and write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        scripts = {
            "sbatch": _SBATCH, "scontrol": _SCONTROL, "squeue": _SQUEUE, "sacct": _SACCT,
            "srun": _SRUN, "scancel": "", "sleep": "",
        }  # fmt: skip
        for name, body in scripts.items():
            self.program(name, body)
        self.write("queue", "")

    def program(self, name: str, body: str) -> None:
        """Make one of them."""
        head = f"""#!/bin/bash
cd {self.folder}
printf '%s\\t' {name} "$@" >>said; echo >>said
"""
        path = self.folder / name
        path.write_text(head + body)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def write(self, name: str, text: str) -> None:
        """Write what one of them reads."""
        (self.folder / name).write_text(text)

    def said(self, name: str) -> list[list[str]]:
        """What one of them was told, each time."""
        try:
            lines = (self.folder / "said").read_text().splitlines()
        except OSError:
            return []
        calls = [line.split("\t")[:-1] for line in lines]
        return [call[1:] for call in calls if call and call[0] == name]

    def updates(self) -> list[str]:
        """The lines that scontrol has read."""
        path = self.folder / "updates"
        return path.read_text().splitlines() if path.exists() else []

    def path(self) -> str:
        """The variable PATH with them first."""
        return f"{self.folder}:{os.environ['PATH']}"


def submission_of(folder: Path) -> dict[str, Any]:
    """What a run's folder says of its job."""
    values: dict[str, Any] = json.loads((folder / "job.json").read_text())
    return values
