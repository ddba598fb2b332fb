"""What starting a job costs: `python scripts/benchmark.py launch`.

From one job's end to the next one's first batch, in sweeps of the smallest training (`preset=debug`
on the synthetic sample), one job at a time: in the sweep's own process (`hydra/launcher=basic`), as
a process of its own (`slots`), and as a fork of a process that has imported everything, which is
what a warmed server of jobs would save. Beside it the imports alone, in a fresh process.

The fork is measured and not offered: whether it is safe beside a driver's and libraries' threads
have started depends on their versions, and a job that hangs costs more than the seconds it saves.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from lightning import Callback, LightningModule, Trainer

from benchmarks.harness import Figure, ratios
from flair2_exp.lifecycle.folder import RunFolder, run_folders
from flair2_exp.lifecycle.record import RunRecord

ROUNDS: Final = (3, 5)
OPTIONS: Final[dict[str, dict[str, Any]]] = {}
BOUND: Final = 2.0
"""A job of its own takes at most this times its imports until its first batch: what is ours (the
config, the data's check, MLflow's run, the loaders) takes no longer than what is not."""
_HEAVY: Final = "torch, lightning, mlflow, torchvision, segmentation_models_pytorch, rasterio"
_STAMP: Final = "first_batch"


class FirstBatch(Callback):
    """Leaves the time of the first batch in the run's folder."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the time, once."""
        path = Path(trainer.default_root_dir) / _STAMP
        if not path.exists():
            path.write_text(str(time.time()), "utf-8")


def measure(arguments: Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Run a sweep each way, and the imports alone in turns with them."""
    jobs = arguments.rounds + 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _sweep(root, "sample", 1)  # makes the sample, and fills the disk's cache
        imports = [_imports() for _ in range(arguments.rounds)]
        basic = _gaps(_sweep(root, "basic", jobs))
        slots = _gaps(_sweep(root, "slots", jobs, "hydra/launcher=slots", "hydra.launcher.slots=1"))
        forked = _gaps(_forks(root, jobs))
    return [
        Figure("imports of a fresh process", imports, unit="s"),
        Figure("basic launcher, job to job", basic, unit="s"),
        Figure("slots, job to job", slots, unit="s"),
        Figure("fork of a warmed process, job to job", forked, unit="s"),
        Figure("slots / imports", ratios(slots, imports), BOUND),
    ], {"jobs of each sweep": jobs, "imports": _HEAVY}


def _environment() -> dict[str, str]:
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _imports() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {_HEAVY}"], check=True)
    return time.perf_counter() - start


def _options(root: Path) -> list[str]:
    return [
        "model=unet", "data=aerial_only", "preset=debug", f"paths.root={root}",
        "+callbacks.stamp._target_=benchmarks.launch.FirstBatch",
    ]  # fmt: skip


def _sweep(root: Path, name: str, jobs: int, *launcher: str) -> Path:
    """Run a sweep over seeds, and return its folder."""
    seeds = ",".join(str(seed) for seed in range(1, jobs + 1))
    words = ["--multirun", *_options(root), f"sweep.name={name}", f"seed={seeds}", *launcher]
    command = [sys.executable, "-m", "flair2_exp", *words, "sweep.report=false"]
    subprocess.run(command, check=True, env=_environment(), stdout=subprocess.DEVNULL)
    return root / "multirun" / name


def _forks(root: Path, jobs: int) -> Path:
    """Run the same jobs as forks of a process that has imported everything; return their folder."""
    place = root / "forked"
    code = f"""
import os, sys
import {_HEAVY}
from flair2_exp.cli.main import main
for seed in range(1, {jobs} + 1):
    child = os.fork()
    if not child:
        main([*sys.argv[1:], f"seed={{seed}}", f"hydra.run.dir='{place}/{{seed}}'"])
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
    command = [sys.executable, "-c", code, *_options(root)]
    subprocess.run(command, check=True, env=_environment(), stdout=subprocess.DEVNULL)
    return place


def _gaps(folder: Path) -> list[float]:
    """Return the seconds from each job's end to the next one's first batch."""
    spans = sorted(_span(run) for run in run_folders(folder))
    return [first - end for (_, end), (first, _) in itertools.pairwise(spans)]


def _span(folder: RunFolder) -> tuple[float, float]:
    record = RunRecord.read(folder)
    assert record is not None, folder
    return float((folder.path / _STAMP).read_text("utf-8")), record.end / 1000
