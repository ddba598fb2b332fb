"""Folders of runs made by hand: what a run leaves, without training one."""

from __future__ import annotations

import json
from pathlib import Path

from flair2_exp.config.experiment import Config
from flair2_exp.files import write_text
from flair2_exp.lifecycle.experiment import resolved_yaml
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FINISHED, RunRecord
from tests.configs import compose_config

SCORES = {
    "train/epochs": 2.0, "train/loss": 0.5, "train/seconds": 3.0, "val/miou": 0.4,
    "best/val/miou": 0.4, "best/epoch": 2.0,
    "test/miou": 0.3, "test/loss": 0.7, "test/patches": 4.0, "test/iou/water": 0.2,
}  # fmt: skip


def config_below(root: Path, *overrides: str) -> Config:
    """The config of a run whose results go below a root."""
    return compose_config(f"paths.root={root}", "preset=debug", "trainer=cpu", *overrides)


def finished_folder(
    path: Path, config: Config, *, status: str = FINISHED, run_id: str = "0" * 32
) -> RunFolder:
    """Leave what a run with this config leaves that ended so; its MLflow run is not made."""
    folder = RunFolder(path)
    record = RunRecord.of(config, "data", folder)
    record.run_id, record.start, record.end = run_id, 1_000_000, 2_000_000
    record.store = f"sqlite:///{config.paths.mlflow}/mlflow.db"
    record.status = status
    record.write(folder)
    write_text(folder.config, resolved_yaml(config))
    write_text(folder.history, "epoch,train/loss,val/miou\n1,0.9,0.1\n2,0.5,0.4\n")
    if status == FINISHED:
        write_text(folder.metrics, json.dumps(SCORES))
        folder.confusion.write_bytes(b"counts")
        folder.confusion_figure.write_bytes(b"picture")
    return folder
