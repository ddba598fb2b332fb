"""Commands that train on two devices, whose processes a callback can signal, fail or kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.configs import SMALL_SAMPLE

ROOT = Path(__file__).parents[1]

STRIKE = '''
"""Does to a process what the environment says: PROCESS or all, EPOCH or test, BATCH, ACTION."""
import os
import signal
from lightning import Callback
from flair2_exp.errors import DataError

class Strike(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.strike(trainer, str(trainer.current_epoch), batch_idx)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.strike(trainer, "test", batch_idx)

    def strike(self, trainer, epoch, batch):
        process, *then, action = os.environ.get("STRIKE", "none 0 0 none").split()
        if then != [epoch, str(batch)] or process not in (str(trainer.global_rank), "all"):
            return
        if action == "error":
            raise DataError("the patch is damaged")
        if action == "bug":
            raise ValueError("no patch is that large")
        os.kill(os.getpid(), getattr(signal, action))
'''
COMMON = (
    "preset=debug", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2",
    "trainer.threads=1", "trainer.max_epochs=2", "trainer.limit_train_batches=3",
    "data.batch_size=1", "data.workers=0", "model=unet", "tracking=off", *SMALL_SAMPLE,
    "+callbacks.strike._target_=strike.Strike",
)  # fmt: skip
MODULE = (sys.executable, "-m", "flair2_exp")

TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
    "-m", "flair2_exp",
)  # fmt: skip
AS_SRUN = """
import os, socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NODEID": "0", "MASTER_PORT": str(port)}
tasks = [
    subprocess.Popen([sys.executable, "-m", "flair2_exp", *sys.argv[1:]],
                     env={**os.environ, **step, "SLURM_PROCID": n, "SLURM_LOCALID": n})
    for n in ("0", "1")
]
sys.exit(max(task.wait() for task in tasks))
"""
SRUN = (sys.executable, "-c", AS_SRUN)
"""Two processes with what srun sets for its tasks."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str
    seconds: float


def start(
    place: Path,
    *overrides: str,
    strike: str = "",
    by: Sequence[str] = MODULE,
    common: Sequence[str] = COMMON,
) -> Ended:
    """Run a command in a folder of its own, and see that no process of it is left."""
    (place / "strike.py").write_text(STRIKE)
    paths = os.pathsep.join([str(ROOT), str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    if strike:
        environment["STRIKE"] = strike
    began = time.monotonic()
    process = subprocess.Popen(
        [*by, *common, *overrides], cwd=place, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"did not end\n{out}\n{err}")
    _wait_until_none_is_left(process.pid)
    return Ended(process.returncode, out, err, time.monotonic() - began)


def _wait_until_none_is_left(group: int) -> None:
    """Wait for what the command started: a process that outlives it is a fault."""
    until = time.monotonic() + 15
    with suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)
        pytest.fail("a process is left")
