"""A real SLURM on this machine for tests: one node with four pretended GPUs, no accounting.

`python -m tests.engines.cluster start FOLDER` and `stop FOLDER`, as root on Debian with `slurm-wlm`
and `munge` installed; `start` prints the value of SLURM_CONF. All daemons listen on the loopback
device. GPUs are character devices of the memory driver's: SLURM only counts them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CPUS, GPUS, GRACE = 8, 4, 15
"""Of the node; GRACE: seconds between the signal of a cancelled or preempted job and its end."""
_NULL = 0x0103  # major 1, minor 3: /dev/null
_DAEMONS = ("slurmctld", "slurmd")


def missing() -> str:
    """Return why no cluster can be started here; "" where it can."""
    programs = (*_DAEMONS, "sbatch", "munged")
    absent = [name for name in programs if _program(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    return "" if os.getuid() == 0 else "only root can start SLURM's daemons"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def running() -> bool:
    """Return whether the cluster that SLURM_CONF names answers."""
    if not os.environ.get("SLURM_CONF") or shutil.which("sinfo") is None:
        return False
    return "idle" in _ask("sinfo", "--noheader", "--format=%t")


def start(root: Path) -> Path:
    """Start a cluster with its files below a folder; return its configuration file.

    Raises:
        RuntimeError: It did not come up; the message ends with its logs.
    """
    for name in ("state", "spool", "log"):
        (root / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().partition(".")[0]
    for number in range(GPUS):
        device = root / f"gpu{number}"
        if not device.exists():
            os.mknod(device, 0o20666, _NULL)
    config = root / "slurm.conf"
    config.write_text(_configuration(root, host))
    (root / "gres.conf").write_text(
        f"NodeName={host} Name=gpu Type=test File={root}/gpu[0-{GPUS - 1}]\n"
    )
    (root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    try:
        socket.gethostbyname(host)
    except socket.gaierror:  # in a container without a network; SLURM's parts go by names
        with Path("/etc/hosts").open("a", encoding="utf-8") as hosts:
            hosts.write(f"127.0.0.1 {host}\n")
    _start_munge(root)
    os.environ["SLURM_CONF"] = str(config)
    subprocess.run([str(_program("slurmctld")), "-f", str(config)], check=True)
    subprocess.run([str(_program("slurmd")), "-f", str(config), "-N", host], check=True)
    if not _wait(running, 60):
        logs = "\n".join(path.read_text()[-2000:] for path in (root / "log").glob("*.log"))
        raise RuntimeError(f"SLURM did not start:\n{logs}")
    return config


def _start_munge(root: Path) -> None:
    """Start the daemon by which SLURM's parts know each other, unless one answers."""

    def answers() -> bool:
        return subprocess.run(["munge", "-n"], capture_output=True).returncode == 0

    if answers():
        return
    place = Path("/run/munge")  # where clients look for it
    place.mkdir(mode=0o755, exist_ok=True)
    key = root / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"key-file": key, "pid-file": root / "munged.pid", "log-file": root / "log/munged.log"}
    flags = [f"--{name}={path}" for name, path in files.items()]
    subprocess.run(
        [str(_program("munged")), "--force", *flags, f"--seed-file={root}/munged.seed"], check=True
    )
    if not _wait(answers, 20):
        raise RuntimeError("munged did not start")


def stop(root: Path) -> None:
    """End a cluster's daemons; running jobs end with them."""
    for name in (*_DAEMONS, "munged"):
        with suppress(OSError, ValueError):
            os.kill(int((root / f"{name}.pid").read_text()), signal.SIGTERM)


def _configuration(root: Path, host: str) -> str:
    ports = dict(zip(("SlurmctldPort", "SlurmdPort"), _free_ports(2), strict=True))
    values: dict[str, object] = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
        **ports,
        "StateSaveLocation": root / "state",
        "SlurmdSpoolDir": root / "spool",
        "SlurmctldPidFile": root / "slurmctld.pid",
        "SlurmdPidFile": root / "slurmd.pid",
        "SlurmctldLogFile": root / "log/slurmctld.log",
        "SlurmdLogFile": root / "log/slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "JobCompType": "jobcomp/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "JobRequeue": 1,
        "KillWait": GRACE,
        "MinJobAge": 3600,
        "ReturnToService": 2,
        "GresTypes": "gpu",
        "SlurmdParameters": "config_overrides",
    }
    node = f"{host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory=4000 Gres=gpu:test:{GPUS}"
    both = f"Nodes={host} MaxTime=INFINITE State=UP OverSubscribe=NO"
    return "\n".join(
        [
            *(f"{name}={value}" for name, value in values.items()),
            f"NodeName={node} State=UNKNOWN",
            f"PartitionName=low {both} Default=YES PriorityTier=1 GraceTime={GRACE}",
            f"PartitionName=high {both} PriorityTier=10 PreemptMode=OFF",
            "",
        ]
    )


def _free_ports(number: int) -> list[int]:
    """Return ports of this machine that are free now: another cluster of the tests' may run."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [int(server.getsockname()[1]) for server in servers]
    finally:
        for server in servers:
            server.close()


def _ask(*words: str) -> str:
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


if __name__ == "__main__":
    _, verb, folder = sys.argv
    if verb == "start":
        print(f"export SLURM_CONF={start(Path(folder).absolute())}")
    else:
        stop(Path(folder).absolute())
