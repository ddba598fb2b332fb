"""Whole commands of the package, and what they leave in MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT = 840
"""Seconds for one command: it is to end before pytest ends the test, and to show its output."""


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with `root` as its place."""
    return subprocess.run(
        [sys.executable, "-m", "flair2_exp", *arguments, f"paths.root={root}"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=LIMIT,
    )  # fmt: skip


def client(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")


def runs(root: Path, **tags: str) -> list[Any]:
    """Return all MLflow runs with these tags (`flair2.` left out of their names)."""
    wanted = " and ".join(f"tags.`flair2.{name}` = '{value}'" for name, value in tags.items())
    return list(client(root).search_runs(["1"], wanted))
