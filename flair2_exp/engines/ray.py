"""Jobs on a Ray cluster: of other machines, or one of this machine alone.

Each job is a task of Ray's, which only starts the job's command and waits for it: Ray finds the GPU
and the cores, and sets `CUDA_VISIBLE_DEVICES`. Whether a job is done its folder says, so no result
travels; a killed worker or a lost node is a killed job, which the pool starts again. When the
command or a worker dies, the job gets SIGTERM (`leash`), and ends with a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

from flair2_exp.config.engines import RayConfig
from flair2_exp.engines import leash
from flair2_exp.engines.engine import ACTIVE, CANCELLED, ENDED, QUEUED, START, Engine
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.locking import is_held
from flair2_exp.optuna_sweeper.process import Process

log = logging.getLogger(__name__)

_KNOCK_SECONDS: Final = 10.0
_STORE_BYTES: Final = 80 * 2**20  # no data go through Ray; it takes 75 MiB or more
_LOOK_SECONDS: Final = 0.2


@dataclass
class _Task:
    ref: Any
    command: JobCommand
    written: int
    """Bytes of the job's output before this start."""


@dataclass(frozen=True)
class _Need:
    gpus: float
    cpus: float


class Ray(Engine):
    """Jobs as tasks of a Ray cluster.

    Args:
        options: `hydra.launcher`. Ray is imported, and its cluster joined, for the first job.
    """

    name: ClassVar[str] = "ray"

    def __init__(self, options: RayConfig) -> None:
        self._options = options
        self._tasks: dict[str, _Task] = {}
        self._adopted: dict[str, JobCommand] = {}

    # --- the cluster ----------------------------------------------------------------------------

    @cached_property
    def _ray(self) -> Any:
        """The library, connected."""
        return _connected(self._options.address)

    @cached_property
    def _nodes(self) -> list[_Need]:
        """What each machine of the cluster has."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [_Need(each.get("GPU", 0.0), each.get("CPU", 0.0)) for each in alive]

    def _need(self, command: JobCommand) -> _Need:
        """Return what a job asks for; without an own wish a machine's cores go with its GPUs."""
        options, gpus = self._options, command.gpus
        largest = max(self._nodes, key=lambda node: (node.gpus, node.cpus))
        if gpus < 0 or command.processes == -1:
            gpus = largest.gpus
        elif gpus > 0 and options.gpus_per_job is not None:
            gpus = options.gpus_per_job
        if not largest.gpus:
            gpus = 0.0  # trainer.accelerator=auto, and a cluster without
        most = max(node.cpus for node in self._nodes)
        if options.cores_per_job is not None:
            cpus = float(options.cores_per_job)
        elif gpus:
            cpus = largest.cpus * min(1.0, gpus / largest.gpus)
        elif options.at_once is not None:
            cpus = min(most, sum(node.cpus for node in self._nodes) / options.at_once)
        else:
            cpus = min(2.0, most)
        return _Need(gpus, float(math.floor(cpus)) if cpus >= 1 else max(cpus, 0.01))

    def require(self, commands: Sequence[JobCommand]) -> None:
        """Refuse jobs that no machine of the cluster has room for."""
        for command in commands:
            if command.nodes > 1:
                raise ConfigError(
                    f"trainer.num_nodes={command.nodes}: a job of hydra/launcher=ray is on one "
                    "machine; use hydra/launcher=slurm."
                )
            need = self._need(command)
            gpus = max(node.gpus for node in self._nodes)
            cpus = max(node.cpus for node in self._nodes)
            if need.gpus > gpus:
                raise ConfigError(
                    f"{command.title} wants {need.gpus:g} GPUs, and no machine of the Ray cluster "
                    f"has more than {gpus:g}: use trainer.devices={gpus:g} or fewer."
                )
            if need.cpus > cpus:
                raise ConfigError(
                    f"hydra.launcher.cores_per_job={need.cpus:g}: no machine of the Ray cluster "
                    f"has more than {cpus:g}."
                )

    def capacity(self, command: JobCommand) -> int:
        """Return how many jobs like this one the cluster has room for, or may have."""
        need, tiny = self._need(command), 1e-6
        room = 0
        for node in self._nodes:
            by_cpus = int(node.cpus / need.cpus + tiny)
            if 0 < need.gpus < 1:
                by_gpus = int(node.gpus) * int(1 / need.gpus + tiny)
            else:
                by_gpus = int(node.gpus // need.gpus) if need.gpus else by_cpus
            room += min(by_cpus, by_gpus)
        return max(1, min(room, self._options.at_once or room))

    # --- jobs -----------------------------------------------------------------------------------

    def start(self, commands: Sequence[JobCommand], attempts: Sequence[int]) -> int:
        """Hand jobs to Ray while there is room."""
        started = 0
        for command, attempt in zip(commands, attempts, strict=True):
            if len(self._tasks) + len(self._adopted) >= self.capacity(command):
                break
            self._start(command, attempt)
            started += 1
        return started

    def _start(self, command: JobCommand, attempt: int) -> None:
        folder, need, key = command.folder, self._need(command), secrets.token_hex(8)
        folder.path.mkdir(parents=True, exist_ok=True)
        here = Process.this()
        # Before the task, which adds the job's process to it.
        Submission(
            self.name, key, command.title, list(command.words), here.host,
            {"driver": here.plain(), "gpus": need.gpus, "cpus": need.cpus}, attempt=attempt,
        ).write(folder)  # fmt: skip
        written = folder.output.stat().st_size if folder.output.exists() else 0
        task = self._ray.remote(run_job).options(
            num_gpus=need.gpus, num_cpus=need.cpus, max_retries=0, name=command.title
        )
        ref = task.remote(
            list(command.words), str(command.cwd), dict(os.environ), str(folder), attempt,
            bool(need.gpus),
        )  # fmt: skip
        self._tasks[key] = _Task(ref, command, written)
        log.info("%s: given to Ray with %g GPUs, %g cores", command.title, need.gpus, need.cpus)

    def adopt(self, command: JobCommand, job: Submission) -> None:
        """Count a job of an earlier command's, which is about to end, among those at a time."""
        self._adopted[job.id] = command

    def states(self, jobs: Mapping[str, Submission]) -> dict[str, str]:
        """Return which jobs wait or run; those of other commands are known by their processes."""
        refs = [self._tasks[job.id].ref for job in jobs.values() if job.id in self._tasks]
        ended = set(self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else set()
        return {key: self._state(job, ended) for key, job in jobs.items()}

    def _state(self, job: Submission, ended: set[Any]) -> str:
        task, adopted = self._tasks.get(job.id), self._adopted.get(job.id)
        if task is not None and task.ref not in ended:
            output = task.command.folder.output
            begun = output.exists() and output.stat().st_size > task.written
            return ACTIVE if begun else QUEUED
        process = Process.of_plain(job.details.get("process"))
        command = task.command if task is not None else adopted
        # Its worker was killed: the job writes its checkpoint, here or on another machine.
        if (process is not None and process.lives()) or (
            command is not None and is_held(command.folder.path)
        ):
            return ACTIVE
        driver = Process.of_plain(job.details.get("driver"))
        if task is None and process is None and driver is not None and driver.lives():
            return QUEUED  # with another command, which is at work
        self._tasks.pop(job.id, None)
        self._adopted.pop(job.id, None)
        return CANCELLED if job.cancelled else ENDED

    def stop(self, jobs: Mapping[str, Submission]) -> None:
        """Send SIGTERM to the jobs' own processes, through Ray where they are elsewhere."""
        for job in jobs.values():
            process, task = Process.of_plain(job.details.get("process")), self._tasks.get(job.id)
            if process is not None and process.lives():
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGTERM)
            elif task is not None:
                self._ray.cancel(task.ref, force=False)

    def close(self) -> None:
        """Leave the cluster; one of this machine alone ends, and jobs that still run with it."""
        if "_ray" in vars(self):
            self._ray.shutdown()
            del self._ray
            self._tasks.clear()


# --- in a worker of Ray's -----------------------------------------------------------------------


def run_job(
    words: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    folder: str,
    attempt: int,
    on_gpu: bool,
) -> int:
    """Run a job's command in its folder; return its exit status.

    Args:
        words: Behind `python -m flair2_exp`.
        cwd: Where it is started.
        environment: Of the command that hands the job to Ray.
        folder: The run's.
        attempt: Which start it is.
        on_gpu: Whether Ray has chosen GPUs for it.
    """
    # What Ray chose for this worker wins: the GPUs, and as many threads as cores.
    chosen = ("CUDA_VISIBLE_DEVICES",) if on_gpu else ()
    own = {name: os.environ[name] for name in chosen if name in os.environ}
    if "OMP_NUM_THREADS" in os.environ:
        own["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    job: subprocess.Popen[bytes] | None = None
    while True:
        try:
            if job is None:
                job = _start(words, cwd, {**environment, **own}, RunFolder(Path(folder)), attempt)
            return job.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:  # of `ray.cancel`
            if job is None:
                raise
            job.terminate()  # the leash, with which the job's own signal comes


def _start(
    words: Sequence[str], cwd: str, environment: dict[str, str], folder: RunFolder, attempt: int
) -> subprocess.Popen[bytes]:
    gpus = environment.get("CUDA_VISIBLE_DEVICES", "")
    stamp, host = time.strftime("%Y-%m-%d %H:%M:%S"), socket.gethostname()
    reader, writer = os.pipe()
    with folder.output.open("ab") as output, open(reader, encoding="ascii") as number:
        output.write(f"{START}{attempt}, {stamp}, {host}, GPU {gpus or 'none'}\n".encode())
        output.flush()
        # Isolated, and without the site's packages: it starts within milliseconds.
        leashed = [sys.executable, "-I", "-S", leash.__file__, str(writer)]
        process = subprocess.Popen(
            [*leashed, sys.executable, "-m", "flair2_exp", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**environment, "FLAIR2_LEASH": str(os.getpid())},
            pass_fds=[writer],
            start_new_session=True,
        )
        os.close(writer)
        pid = int(number.read() or 0)
    submission = Submission.read(folder)
    if pid and submission is not None:
        submission.details["process"] = Process.of(pid).plain()
        submission.write(folder)
    return process


# --- the library --------------------------------------------------------------------------------


def _connected(address: str | None) -> Any:
    """Return Ray's library, connected to a cluster.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address is None or address.startswith(("127.0.0.1:", "localhost:")):
        # Nothing listens, or is looked for, beyond 127.0.0.1: Ray's name for "one machine alone",
        # read when it is imported; elsewhere than on Linux it is the default.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address is None:
        environment |= {
            # A secret of this cluster's own, in place of a file in the user's home.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
    elif address != "auto":
        _knock(address)
    with _environment(environment), _handlers_kept():
        try:
            import ray
        except ImportError:
            raise ConfigError(
                "hydra/launcher=ray: Ray is not installed: pip install 'flair2-exp[ray]'."
            ) from None
        logging.getLogger("ray").setLevel(logging.ERROR)
        local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                configure_logging=False,
                **(local if address is None else {}),
            )
        except (OSError, RuntimeError, ValueError) as error:
            named = "" if address is None else f" hydra.launcher.address={address}:"
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"hydra/launcher=ray:{named} {reason}") from None
    return ray


def _knock(address: str) -> None:
    """Refuse an address at which nothing answers: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"hydra.launcher.address={address}: no Ray cluster answers there ({error}). Expected "
            "HOST:PORT as `ray start --head` shows it, auto, or null for this machine alone."
        ) from None


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have variables within this context; Ray's own processes inherit them, jobs do not."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put this process's signal handlers back: Ray sets its own for SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
