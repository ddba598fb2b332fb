"""What a run's folder says about the run: who it is, and how far it came.

`run.json` lies in the folder of every run. By it the same command, given again, knows whether the
run is done, goes on from its checkpoint, or would mix two different experiments in one folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from flair2_exp.config.identity import difference, digest
from flair2_exp.errors import ConfigError
from flair2_exp.files import write_text
from flair2_exp.signals import FAILED, FINISHED, KILLED

__all__ = ["FAILED", "FILE", "FINISHED", "KILLED", "RUNNING", "TRAINED", "RunState"]

FILE: Final = "run.json"
RUNNING, TRAINED = "RUNNING", "TRAINED"


@dataclass
class RunState:
    """The state of a run.

    Attributes:
        deciding: What decides its result (`identity.deciding`), by dotted name.
        status: RUNNING, TRAINED (training is complete, testing is not), FINISHED, FAILED, KILLED.
            A run whose process died without a word stays RUNNING or TRAINED.
        run_id: Of its MLflow run; empty with `tracking=off`.
        training: What training measured, once it is complete.
        error: The message it failed with.
        pruned: Whether a search ended the training early.
    """

    deciding: Mapping[str, Any]
    status: str = RUNNING
    run_id: str = ""
    training: dict[str, float] = field(default_factory=dict)
    error: str = ""
    pruned: bool = False

    @property
    def identity(self) -> str:
        """The run's identity, 16 hexadecimal digits."""
        return digest(self.deciding)

    @classmethod
    def read(cls, folder: Path) -> RunState | None:
        """The state that a folder holds, or None where it holds no run (or an unreadable one)."""
        try:
            values = json.loads((folder / FILE).read_text())
            values.pop("identity", None)
            return cls(**values)
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        """Write it, in one step; the folder is made where it is missing."""
        text = json.dumps({"identity": self.identity, **asdict(self)}, indent=2, default=str)
        write_text(folder / FILE, text + "\n")

    def require_same(self, deciding: Mapping[str, Any], folder: Path) -> None:
        """Refuse to go on in this folder with another experiment.

        Raises:
            ConfigError: What decides the result has changed; the message says how.
        """
        changes = difference(self.deciding, deciding)
        if changes:
            shown = "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" * (len(changes) > 4))
            raise ConfigError(
                f"{folder} holds a run of another experiment: {shown}.\n"
                "Set it back, choose another folder or sweep.name, or remove that folder."
            )
