"""Two small runs on the sample, from which the tests of inference predict."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.configs import SMALL_SAMPLE, compose_config
from tests.configs import run_experiment as run

TRAINED = (
    "preset=tiny", *SMALL_SAMPLE, "trainer=cpu", "tracking=off", "trainer.max_epochs=1",
    "model.decoder_channels=[16,8,8,8,8]", "data.workers=0", "callbacks.panel.patches=0",
)  # fmt: skip


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs find the sample and write."""
    return tmp_path_factory.mktemp("inference")


def trained(root: Path, name: str, *overrides: str) -> Path:
    """The folder of a run that has trained and been tested; made where it is missing."""
    folder = root / name
    if not folder.exists():
        config = compose_config(f"paths.root={root}", f"name={name}", *TRAINED, *overrides)
        run(config, folder, overrides)
    return folder


@pytest.fixture(scope="session")
def unet_run(root: Path) -> Path:
    """Of a U-Net, which reads the aerial patch alone."""
    return trained(root, "unet", "model=unet", "data=aerial_only", "data.test_batch_size=3")


@pytest.fixture(scope="session")
def utt_run(root: Path) -> Path:
    """Of a U-T&T with metadata on single acquisitions, so that series differ in length."""
    return trained(root, "utt", "model=utt", "metadata=on", "s2_preproc=cloudfree",
                   "s2_preproc.size=16")  # fmt: skip
