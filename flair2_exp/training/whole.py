"""Checkpoints that are whole, and hold nothing that reading them safely would refuse."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from flair2_exp.errors import ConfigError, first_line
from flair2_exp.files import write_bytes


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place and then renames it, so that none is ever torn.

    Lightning's own way writes into the temporary folder, of another file system perhaps, and then
    copies.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: It cannot be written; one that was there is as it was.
            ConfigError: A callback's state is more than tensors and plain values, so that the run
                could not resume.
        """
        for name, state in checkpoint.get("callbacks", {}).items():
            require_plain(state, name)
        content = io.BytesIO()  # torch.save's own errors of a file do not say that a disk is full
        torch.save(checkpoint, content)
        write_bytes(Path(path), content.getbuffer())


def require_plain(state: Any, owner: str) -> None:
    """Refuse a part's state that could not be read back from a checkpoint.

    Raises:
        ConfigError: It is more than tensors and plain values.
    """
    content = io.BytesIO()
    try:
        torch.save(state, content)
        content.seek(0)
        torch.load(content, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        reason = first_line(error).rstrip(".")
        raise ConfigError(
            f"the state of {owner} cannot be kept in a checkpoint: {reason}.\n"
            "Expected tensors and plain values (numbers, texts, lists, dictionaries) alone."
        ) from error
