"""How many cores a process may use, by files of the kernel's that a test has written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flair2_exp import machine

V1, V2 = "4:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/\n", "0::/slurm/job\n"


@pytest.fixture(autouse=True)
def eight_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


def kernel(root: Path, groups: str, files: dict[str, str]) -> None:
    """Write what the kernel says of this process's control groups."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def v1(group: str, quota: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/cpu,cpuacct{group}"
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        (V2, {"sys/fs/cgroup/slurm/job/cpu.max": "300000 100000\n"}, 3),
        (V2, {"sys/fs/cgroup/slurm/job/cpu.max": "250000 100000\n"}, 3),  # a part counts as one
        (V2, {"sys/fs/cgroup/slurm/job/cpu.max": "max 100000\n"}, 8),
        (V2, {"sys/fs/cgroup/slurm/job/cpu.max": "1600000 100000\n"}, 8),
        # The group above is the narrower one.
        (
            V2,
            {
                "sys/fs/cgroup/slurm/job/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/slurm/cpu.max": "200000 100000\n",
            },
            2,
        ),
        # Within a container its own group is the root, whatever it is called outside.
        ("0::/../../docker/1\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        (V1, v1("/job", 200_000), 2),
        (V1, v1("/job", -1), 8),
        (V1, v1("", 500_000), 5),
        (V2, {"sys/fs/cgroup/slurm/job/cpu.max": "torn"}, 8),
        ("torn\n", {}, 8),
    ],
)
def test_a_quota_of_a_control_group_counts(
    groups: str, files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    kernel(tmp_path, groups, files)
    assert machine.cores() == cores


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "6"}, 2),
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_CPUS_ON_NODE": "64"}, 8),  # more than it is bound to
        ({"SLURM_CPUS_PER_TASK": ""}, 8),
    ],
)
def test_the_cores_of_a_slurm_job_count(
    variables: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine.cores() == cores


@pytest.mark.parametrize(("quota", "count"), [("300000", 3), ("max", 8)])
def test_there_is_a_number_for_each_core_that_counts(
    quota: str, count: int, tmp_path: Path
) -> None:
    kernel(tmp_path, V2, {"sys/fs/cgroup/slurm/job/cpu.max": f"{quota} 100000\n"})
    numbers = machine.core_numbers()
    assert len(set(numbers)) == count
    assert set(numbers) <= set(range(8))
    assert numbers == sorted(numbers)
