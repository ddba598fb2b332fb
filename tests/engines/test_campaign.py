"""A sweep of six jobs to which everything happens that can, on each engine."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import campaign
from tests.engines.campaign import Sweep, holder_of, kill_job, one_in_training, until

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1500)]

SEED = 14
FAKE_GPUS = "\n".join(f"GPU {n}: Pretended (UUID: GPU-pretended-{n})" for n in range(4))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that nothing happens to, one job after the other."""
    root = tmp_path_factory.mktemp("undisturbed")
    Sweep(root, ("hydra/launcher=slots", "hydra.launcher.slots=2")).run()
    return root


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that lists four GPUs, which nobody uses."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{FAKE_GPUS}\nEND\n")
    (place / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_slots(undisturbed: Path, four_gpus: None, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    sweep = Sweep(
        tmp_path / "root",
        ("hydra/launcher=slots", "trainer.accelerator=auto", "hydra.launcher.stagger=0.2"),
    )
    jobs = list(campaign.folders(sweep.root).values())
    sweep.start()
    kill_job(one_in_training(jobs, draw))  # as the system does that has no memory left
    one_in_training(jobs, draw)
    sweep.kill()  # its jobs go on
    sweep.start()
    until(lambda: "taken over" in sweep.log.read_text(), "jobs are taken over")
    one_in_training(jobs, draw)
    sweep.terminate()
    assert not any(holder_of(job.path) for job in jobs)  # all have ended with a checkpoint
    sweep.run()

    assert campaign.results(sweep.root) == campaign.results(undisturbed)
    campaign.require_whole(sweep.root)
    used = {line.split("GPU ")[1] for job in jobs for line in _starts(job)}
    assert used <= {f"GPU-pretended-{n}" for n in range(4)}
    assert len(used) == 4


def _starts(job: campaign.RunFolder) -> list[str]:
    return [line for line in job.output.read_text().splitlines() if line.startswith("=== start")]


def test_slurm(undisturbed: Path, slurm: Callable[..., str], tmp_path: Path) -> None:
    draw = random.Random(SEED)
    sweep = Sweep(
        tmp_path / "root",
        (
            "hydra/launcher=slurm", "hydra.launcher.partition=low", "hydra.launcher.at_once=3",
            "hydra.launcher.interval=1", "hydra.launcher.cores_per_job=2",
            "hydra.launcher.gpus_per_job=0", "hydra.launcher.grace=30",
            "hydra.launcher.time='0:10:00'",
        ),
    )  # fmt: skip
    jobs = list(campaign.folders(sweep.root).values())
    sweep.run("sweep.wait=false")  # a submitter that leaves
    assert sum(campaign.states(sweep.root).values()) == 6

    sweep.start()
    kill_job(one_in_training(jobs, draw))  # a step that the machine kills
    slurm("scontrol", "requeue", campaign.job_id(one_in_training(jobs, draw)))
    sweep.kill()  # and the submitter
    sweep.start()
    while "PREEMPTED" not in _records(jobs):  # a job may end before it gets the signal
        # As SLURM does before a time limit, whose unit is the minute.
        slurm("scancel", "--signal=USR1", campaign.job_id(one_in_training(jobs, draw)))
        time.sleep(3)
    one_in_training(jobs, draw)
    # Whoever trains now makes room.
    slurm("sbatch", "--partition=high", "--exclusive", "--wrap=sleep 1", "--output=/dev/null")
    process = sweep.process
    until(lambda: _hurry(slurm, jobs) or process.poll() is not None, "all is done")
    sweep.end()

    assert campaign.results(sweep.root) == campaign.results(undisturbed)
    campaign.require_whole(sweep.root)
    assert sum(campaign.starts_of(job) - 1 for job in jobs) >= 4


def _records(jobs: list[campaign.RunFolder]) -> str:
    return "".join(job.record.read_text() for job in jobs if job.record.exists())


def _hurry(slurm: Callable[..., str], jobs: list[campaign.RunFolder]) -> bool:
    """Let requeued jobs begin at once, which SLURM holds back for two minutes."""
    for job in jobs:
        if not campaign.finished(job):
            slurm("scontrol", "update", f"jobid={campaign.job_id(job)}", "starttime=now")
    return False
