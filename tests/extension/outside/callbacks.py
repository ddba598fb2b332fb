"""A callback, written from the page "Choosing a recipe" alone."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Count(Callback):
    """Counts batches over the whole training, also of a run that resumes, into a file."""

    def __init__(self, name: str = "batches.txt") -> None:
        self.name = name
        self.batches = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.batches += 1

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        Path(trainer.default_root_dir, self.name).write_text(str(self.batches))

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]
