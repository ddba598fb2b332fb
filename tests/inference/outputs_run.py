"""What a run leaves whose network has its first weights, for the tests of outputs."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from flair2_exp.inference.predictor import Predictor
from flair2_exp.lifecycle import assembly
from tests.configs import SMALL_SAMPLE
from tests.lifecycle.made import config_below, finished_folder

NETWORK = (
    "model=unet", "data=aerial_only", "model.encoder=resnet18",
    "model.decoder_channels=[16,8,8,8,8]", "trainer.limit_train_batches=null",
    "trainer.limit_val_batches=null",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, whose network has its first weights."""
    return _trained(tmp_path_factory.getbasetemp() / "outputs")


@functools.cache  # a fixture that modules import is one for each of them
def _trained(root: Path) -> Path:
    return run_folder(root, root / "run")


def run_folder(root: Path, path: Path, *overrides: str, sample: bool = True) -> Path:
    """Leave what a run leaves; its sample, if it is on one, is below a root."""
    options = ("tracking=off", *(SMALL_SAMPLE if sample else ()), *NETWORK, *overrides)
    config = config_below(root, *options)
    folder = finished_folder(path, config)
    data = assembly.build_data(config, parts=("test",))
    torch.manual_seed(config.seed)
    spec = assembly.network_spec(config, data.source.patch_size, data.source)
    task = assembly.build_task(config, spec, data=data, source=data.source)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    task.trainer = trainer
    trainer.strategy.connect(task)
    folder.checkpoints.mkdir()
    trainer.save_checkpoint(folder.best, weights_only=True)
    return path


@pytest.fixture
def predictor(trained: Path) -> Predictor:
    return Predictor.from_run(trained, device="cpu")
