"""Which process of a training this is, by what started it; nothing heavy is imported.

A training on several devices is a process per device, its *ranks*. They are started by srun (a
task each), by torchrun, or by the run itself: the process that was started by hand is then the
first of its machine, and starts the others (`lifecycle/peers.py`).
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from flair2_exp.errors import DeviceError

Starter = Literal["run", "srun", "torchrun"]

_TORCHRUN: Final = (
    "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
    "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_SRUN: Final = (
    "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID",
    "SLURM_NODEID",
)  # fmt: skip
"""What each sets for its processes, whole. A part of it is left over from another program: the
script of `sbatch` has a rank too, but no step, and starts one process however many tasks it has."""

OF_A_TASK: Final = (*_SRUN[1:], *_TORCHRUN)
"""What is a process's own among these; what is left, such as SLURM_JOB_ID, is its job's."""

_OWN_STEPS: Final = 4_294_967_290
"""From here on SLURM's own steps are numbered: an interactive shell's, the script's, the node's."""

_SHELLS: Final = ("bash", "sh", "zsh", "fish", "interactive")
"""Names of the jobs of `srun --pty`, `salloc` and Lightning's own exception."""


@dataclass(frozen=True)
class Rank:
    """One process of a training.

    Attributes:
        number: Among all, from 0, which writes the results.
        world: How many there are; 0: as many as GPUs, which torch will count (`counted`).
        local: Among those of its machine, from 0.
        per_node: How many its machine has; 0: as for `world`.
        node: Of its machine, from 0.
        starter: What started the processes.
        address: The first process's machine.
        port: There, of torch's meeting point; 0: any free one.
    """

    number: int = 0
    world: int = 1
    local: int = 0
    per_node: int = 1
    node: int = 0
    starter: Starter = "run"
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the results."""
        return self.number == 0 and self.node == 0

    @property
    def alone(self) -> bool:
        """Whether it is the whole training."""
        return self.world == 1

    @property
    def starts_others(self) -> bool:
        """Whether the other processes of this machine are this one's to start."""
        return self.starter == "run" and self.local == 0 and self.per_node > 1

    def counted(self, devices: int, nodes: int, gpus: int) -> Rank:
        """Return this rank with the number of devices known, where -1 is so many GPUs.

        Raises:
            DeviceError: srun or torchrun has started another number of processes.
        """
        if devices != -1:
            return self
        if self.starter != "run":
            return _require_count(self, gpus, nodes, "-1")
        return replace(self, number=self.node * gpus, world=gpus * nodes, per_node=gpus)


def rank_of(devices: int, nodes: int, environ: Mapping[str, str] = os.environ) -> Rank:
    """Return which process this is of a training on so many devices.

    Args:
        devices: `trainer.devices`, per machine; -1: one per GPU, which `Rank.counted` checks.
        nodes: `trainer.num_nodes`.
        environ: What srun or torchrun has set.

    Raises:
        DeviceError: Another number of processes was started, or none on the other machines.
    """
    started = _started(environ)
    if started is None or (started.world == 1 and devices == nodes == 1):
        return _by_hand(devices, nodes, environ)
    if devices == -1:
        return started
    return _require_count(started, devices, nodes, str(devices))


def ranks_from_outside(environ: Mapping[str, str] = os.environ) -> Rank | None:
    """Return which of several processes of srun or torchrun this is; None where it is not."""
    started = _started(environ)
    return started if started is not None and started.world > 1 else None


def step_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return what the processes of one srun can all call their run: the time would differ.

    A job that is requeued has the same name, and so resumes in its folder.

    Returns:
        As `slurm-12.0`; None where there is one process, or torchrun has started them.
    """
    started = ranks_from_outside(environ)
    if started is None or started.starter != "srun":
        return None
    return f"slurm-{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}"


def _started(environ: Mapping[str, str]) -> Rank | None:
    """Return the rank that srun or torchrun gave; the latter may run within the former."""
    if all(environ.get(name) for name in _TORCHRUN):
        values = {name: environ[name] for name in _TORCHRUN}
        if all(values[name].isdecimal() for name in (*_TORCHRUN[1:6], "MASTER_PORT")):
            return Rank(
                number=int(values["RANK"]),
                world=int(values["WORLD_SIZE"]),
                local=int(values["LOCAL_RANK"]),
                per_node=int(values["LOCAL_WORLD_SIZE"]),
                node=int(values["GROUP_RANK"]),
                starter="torchrun",
                address=values["MASTER_ADDR"],
                port=int(values["MASTER_PORT"]),
            )
    if not all(environ.get(name, "").isdecimal() for name in _SRUN):
        return None
    job, step, tasks, number, local, node = (int(environ[name]) for name in _SRUN)
    if step >= _OWN_STEPS or (tasks == 1 and _is_shell(environ)):
        return None
    machines = int(environ.get("SLURM_STEP_NUM_NODES", "1") or 1)
    port = environ.get("MASTER_PORT", "")
    return Rank(
        number=number,
        world=tasks,
        local=local,
        per_node=-(-tasks // machines),
        node=node,
        starter="srun",
        address=environ.get("MASTER_ADDR") or _first_host(environ, machines),
        # Of two jobs on one machine, each with two ports of its own, below the kernel's own ones.
        port=int(port) if port.isdecimal() else 12_000 + 2 * (_hash(job, step) % 10_000),
    )


def _hash(job: int, step: int) -> int:
    return zlib.crc32(f"{job}.{step}".encode())


def _is_shell(environ: Mapping[str, str]) -> bool:
    """Return whether a step's only task is a shell or a notebook, in which the command was given.

    A terminal (`srun --pty`) tells, and so does the job's name: its program's, or as chosen.
    """
    name = environ.get("SLURM_JOB_NAME", "")
    return "SLURM_PTY_PORT" in environ or name in _SHELLS or "jupyter" in name.lower()


def _first_host(environ: Mapping[str, str], machines: int) -> str:
    """Return the first of a list such as `node[03-05,9],other`; one machine is this one."""
    if machines == 1:
        return "127.0.0.1"
    nodes = environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
    return re.sub(r"\[(\d+)[^\]]*\].*", r"\1", nodes).split(",")[0]


def _require_count(started: Rank, devices: int, nodes: int, given: str) -> Rank:
    """Refuse another number of processes than there are devices, per machine and in all.

    Raises:
        DeviceError: In the first process.
        SystemExit: In the others.
    """
    if started.world == devices * nodes and started.per_node == devices:
        return started
    per_node = started.per_node if started.world % started.per_node == 0 else started.world
    machines = started.world // per_node
    fix = f"trainer.devices={per_node}" + (f" trainer.num_nodes={machines}" if nodes > 1 else "")
    if machines > 1 and nodes == 1:
        fix += f" trainer.num_nodes={machines}"
    flag = {"srun": f"srun --nodes={nodes} --ntasks={devices * nodes}",
            "torchrun": f"torchrun --nproc-per-node={devices}"}[started.starter]  # fmt: skip
    if not started.first:  # the first one says it
        raise SystemExit(DeviceError.status)
    given += f" trainer.num_nodes={nodes}" if nodes > 1 else ""
    raise DeviceError(
        f"trainer.devices={given} needs {_processes(devices * nodes, nodes)}; {started.starter} "
        f"has started {_processes(started.world, machines)}.\n"
        f"Start this command with {flag}, or use {fix}."
    )


def _processes(count: int, machines: int) -> str:
    on = f" on {machines} machines" if machines > 1 else ""
    return f"{count} process{'es' if count > 1 else ''}{on}"


def _by_hand(devices: int, nodes: int, environ: Mapping[str, str]) -> Rank:
    """Return the rank of a process that somebody started on this machine, and perhaps on others.

    Raises:
        DeviceError: Others are needed, and nothing names the first machine.
    """
    devices = max(0, devices)
    if nodes == 1:
        return Rank(world=devices, per_node=devices)
    node, port = environ.get("NODE_RANK", ""), environ.get("MASTER_PORT", "")
    address = environ.get("MASTER_ADDR", "")
    if not (node.isdecimal() and int(node) < nodes and port.isdecimal() and address):
        raise DeviceError(
            f"trainer.num_nodes={nodes}: nothing has started this command on the other machines, "
            "and it would wait for them for ever.\n"
            f"Start it with srun or `torchrun --nnodes={nodes}`, or use trainer.num_nodes=1."
        )
    return Rank(
        number=int(node) * devices,
        world=nodes * devices,
        per_node=devices,
        node=int(node),
        address=address,
        port=int(port),
    )
