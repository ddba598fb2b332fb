"""Jobs on a real Ray: on a cluster with pretended GPUs, and on one of this machine alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.config.engines import RayConfig
from flair2_exp.engines.engine import ACTIVE, DONE, ENDED, START, Ending
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.engines.pool import Pool
from flair2_exp.engines.ray import Ray
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_metrics
from tests.configs import SMALL_SAMPLE
from tests.sweeps.commands import command as run_command

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]

if find_spec("ray") is None:  # it reads its environment when it is imported, which is too early
    pytest.skip("the extra `ray` is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[2]
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Of the cluster that the tests start: on 127.0.0.1 alone."""

JOB = """
import json, os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1])

def end(status):
    (folder / "run.json").write_text(json.dumps({"format": 3, "tags": {}, "status": status}))

def stops(*_):
    with (folder / "signals").open("a") as file:
        file.write("TERM\\n")
    time.sleep(0.5)
    end("KILLED")
    (folder / "checkpoint").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, stops)
own = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "MINE", "RAY_AUTH_TOKEN")}
own |= {"pid": os.getpid(), "parent": os.getppid()}
(folder / "begun.json").write_text(json.dumps(own))
print("at work", flush=True)
while not (folder / "go").exists():
    time.sleep(0.02)
(folder / "metrics.json").write_text('{"val/miou": 0.5}')
end("FINISHED")
"""


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)
    return value


@dataclass
class Jobs:
    """Jobs of a script that stands for the package: it begins, and ends when it is let go."""

    root: Path

    def __post_init__(self) -> None:
        (self.root / "flair2_exp").mkdir()
        (self.root / "flair2_exp" / "__init__.py").touch()
        (self.root / "flair2_exp" / "__main__.py").write_text(JOB)

    def command(self, number: int, **options: Any) -> JobCommand:
        folder = RunFolder(self.root / f"run_{number}")
        words = (str(folder.path),)
        return JobCommand(number, f"s/{number}", folder, words, self.root, test=False, **options)

    def begun(self, command: JobCommand) -> dict[str, Any]:
        """What a job says of itself, once it is at work."""
        path = command.folder.path / "begun.json"
        wait_until(lambda: path.exists() and path.read_text().endswith("}"))
        return dict(json.loads(path.read_text()))

    def let_go(self, *commands: JobCommand) -> None:
        for command in commands:
            command.folder.path.mkdir(exist_ok=True)
            (command.folder.path / "go").touch()


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster with two pretended GPUs and four cores."""
    port, folder = free_port(), Path("/tmp") / f"ray-test-{os.getpid()}"  # sockets' paths are short
    words = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    options = ("--include-dashboard=false", "--num-gpus=2", "--num-cpus=4")
    words += [*options, f"--port={port}", f"--temp-dir={folder}"]
    words += [f"--object-store-memory={80 * 2**20}", "--node-ip-address=127.0.0.1"]
    before = {name: os.environ.get(name) for name in LOCAL}
    os.environ.update(LOCAL)
    head = subprocess.Popen(
        words, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert head.stdout is not None
    lines = []
    for line in head.stdout:
        lines.append(line)
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail("".join(lines))
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.communicate(timeout=60)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def engines(address: str) -> Iterator[Callable[..., Ray]]:
    """Makes engines on the cluster."""
    made: list[Ray] = []

    def make(**options: Any) -> Ray:
        for engine in made:  # a process is in one cluster at a time
            engine.close()
        made.append(Ray(RayConfig(address=address, **options)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def drain(pool: Pool) -> list[tuple[JobCommand, Ending]]:
    """Let a pool run until all its jobs have ended."""
    ended: list[tuple[JobCommand, Ending]] = []

    def empty() -> bool:
        ended.extend(pool.poll())
        return not len(pool)

    wait_until(empty)
    return ended


def test_jobs_run_so_many_at_a_time_each_in_its_folder(
    jobs: Jobs, engines: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "of the driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "of the driver")
    before = signal.getsignal(signal.SIGTERM)
    engine = engines(at_once=3)
    pool = Pool(engine, retries=0)
    commands = [jobs.command(number) for number in range(4)]
    for each in commands:
        each.folder.path.mkdir()
        each.folder.output.write_text("earlier\n")
        pool.add(each)
    pool.start()
    assert signal.getsignal(signal.SIGTERM) == before
    told = [jobs.begun(each) for each in commands[:3]]
    assert pool.poll() == []
    assert not (commands[3].folder.path / "begun.json").exists()
    assert len({each["pid"] for each in told}) == 3
    assert {(each["MINE"], each["CUDA_VISIBLE_DEVICES"]) for each in told} == {
        ("of the driver", "of the driver")
    }
    jobs.let_go(commands[1])
    ended = wait_until(pool.poll)
    assert [(command.number, ending.cause) for command, ending in ended] == [(1, DONE)]
    jobs.let_go(*commands)
    assert {ending.cause for _, ending in drain(pool)} == {DONE}
    lines = commands[0].folder.output.read_text().splitlines()
    assert lines[0] == "earlier"
    assert lines[1].startswith(f"{START}1, ")
    assert lines[2] == "at work"


def test_each_job_sees_the_gpus_that_ray_chose(jobs: Jobs, engines: Callable[..., Ray]) -> None:
    pool = Pool(engines(), retries=0)
    commands = [jobs.command(number, gpus=1.0) for number in range(3)]
    assert pool.capacity(commands[0]) == 2
    for each in commands:
        pool.add(each)
    pool.start()
    seen = {jobs.begun(each)["CUDA_VISIBLE_DEVICES"] for each in commands[:2]}
    assert seen == {"0", "1"}
    assert pool.running() == 2
    jobs.let_go(*commands)
    drain(pool)


@pytest.mark.parametrize(
    ("options", "wanted", "capacity"),
    [
        ({"gpus_per_job": 0.5}, 1.0, 4),
        ({"gpus_per_job": 0.5, "at_once": 3}, 1.0, 3),
        ({}, 2.0, 1),
        ({}, -1.0, 1),
        ({}, 0.0, 2),  # two of the four cores each
        ({"at_once": 3}, 0.0, 3),
        ({"at_once": 8}, 0.0, 8),
        ({"cores_per_job": 1}, 0.0, 4),
        ({"cores_per_job": 3}, 1.0, 1),
    ],
)
def test_the_room_for_jobs_follows_from_their_gpus_and_cores(
    jobs: Jobs, engines: Callable[..., Ray], options: dict[str, Any], wanted: float, capacity: int
) -> None:
    engine = engines(**options)
    command = jobs.command(0, gpus=wanted)
    engine.require([command])
    assert engine.capacity(command) == capacity


def test_shared_gpus_hold_two_jobs(jobs: Jobs, engines: Callable[..., Ray]) -> None:
    pool = Pool(engines(gpus_per_job=0.5), retries=0)
    commands = [jobs.command(number, gpus=1.0) for number in range(4)]
    for each in commands:
        pool.add(each)
    pool.start()
    seen = sorted(jobs.begun(each)["CUDA_VISIBLE_DEVICES"] for each in commands)
    assert seen == ["0", "0", "1", "1"]
    jobs.let_go(*commands)
    drain(pool)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("victim", ["worker", "leash"])
def test_a_job_whose_worker_is_killed_writes_its_checkpoint_and_is_started_again(
    jobs: Jobs, engines: Callable[..., Ray], victim: str
) -> None:
    pool = Pool(engines(), retries=1)
    command = jobs.command(0)
    pool.add(command)
    pool.start()
    leash = jobs.begun(command)["parent"]
    begun = command.folder.path / "begun.json"
    begun.unlink()
    os.kill(parent_of(leash) if victim == "worker" else leash, signal.SIGKILL)

    def again() -> bool:
        assert pool.poll() == []
        return begun.exists()

    wait_until(again)
    assert (command.folder.path / "signals").read_text() == "TERM\n"
    assert (command.folder.path / "checkpoint").exists()
    submission = Submission.read(command.folder)
    assert submission is not None
    assert submission.attempt == 2
    jobs.let_go(command)
    assert [ending.cause for _, ending in drain(pool)] == [DONE]


def test_a_killed_job_is_started_again(jobs: Jobs, engines: Callable[..., Ray]) -> None:
    pool = Pool(engines(), retries=1)
    command = jobs.command(0)
    pool.add(command)
    pool.start()
    pid = jobs.begun(command)["pid"]
    (command.folder.path / "begun.json").unlink()
    os.kill(pid, signal.SIGKILL)
    jobs.let_go(command)
    assert [ending.cause for _, ending in drain(pool)] == [DONE]
    assert command.folder.output.read_text().count(START) == 2


@pytest.mark.parametrize("here", [True, False], ids=["this machine", "another one"])
def test_a_stop_is_one_signal_to_each_job_and_takes_the_queued_back(
    jobs: Jobs, engines: Callable[..., Ray], here: bool
) -> None:
    engine = engines(at_once=8, cores_per_job=2)  # Ray has room for two
    commands = [jobs.command(number) for number in range(3)]
    engine.capacity = lambda command: 3  # type: ignore[method-assign] (the third waits at Ray)
    pool = Pool(engine, retries=2)
    for each in commands:
        pool.add(each)
    pool.start()
    for each in commands[:2]:
        jobs.begun(each)
    if not here:
        for each in commands:  # where its process cannot be seen
            submission = Submission.read(each.folder)
            assert submission is not None
            submission.details.pop("process", None)
            submission.write(each.folder)
    pool.stop()
    for each in commands[:2]:
        assert wait_until((each.folder.path / "checkpoint").exists)
        assert (each.folder.path / "signals").read_text() == "TERM\n"
    assert not (commands[2].folder.path / "begun.json").exists()
    assert len(pool) == 0


DRIVER = """
import sys, time
from pathlib import Path
from flair2_exp.config.engines import RayConfig
from flair2_exp.engines.job import JobCommand
from flair2_exp.engines.ray import Ray
from flair2_exp.lifecycle.folder import RunFolder

root, address = Path(sys.argv[1]), sys.argv[2] or None
folder = RunFolder(root / "run_0")
command = JobCommand(0, "s/0", folder, (str(folder.path),), root, test=False)
engine = Ray(RayConfig(address=address))
engine.require([command])
engine.start([command], [1])
time.sleep(600)
"""


def drive(jobs: Jobs, address: str) -> subprocess.Popen[str]:
    """Start a command with one job, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(jobs.root), address],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, text=True,
    )  # fmt: skip


def test_a_job_ends_with_a_checkpoint_when_its_command_is_killed(
    jobs: Jobs, engines: Callable[..., Ray], address: str
) -> None:
    command = jobs.command(0)
    driver = drive(jobs, address)
    pid = jobs.begun(command)["pid"]
    engine = engines()
    submission = wait_until(lambda: with_process(command))
    assert engine.states({"0": submission}) == {"0": ACTIVE}
    driver.kill()
    driver.wait()
    pool = Pool(engine, retries=1)
    # The same command, given again at once: the job is at its checkpoint still.
    pool.add(command)
    jobs.let_go(command) if not lives(pid) else None
    wait_until((command.folder.path / "checkpoint").exists)
    assert (command.folder.path / "signals").read_text() == "TERM\n"
    jobs.let_go(command)
    assert [ending.cause for _, ending in drain(pool)] == [DONE]
    assert engine.states({"0": submission}) == {"0": ENDED}


def with_process(command: JobCommand) -> Submission | None:
    submission = Submission.read(command.folder)
    return submission if submission is not None and "process" in submission.details else None


def listens_beyond_this_machine(pids: Sequence[int]) -> list[str]:
    """The addresses beyond the loopback at which processes listen."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            target = os.readlink(entry) if entry.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            loopback = columns[1].startswith(("0100007F:", "0" * 24 + "01000000:"))
            mapped = columns[1].startswith("0000000000000000FFFF00000100007F:")
            if columns[3] == "0A" and columns[9] in inodes and not (loopback or mapped):
                found.append(columns[1])
    return found


def descendants(pid: int) -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = parent_of(int(path.name))
        except OSError:
            continue
    tree, waiting = [], [pid]
    while waiting:
        waiting += [child for child, parent in parents.items() if parent == waiting[0]]
        tree.append(waiting.pop(0))
    return tree


def test_a_cluster_of_this_machine_is_for_this_command_alone(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens on the loopback only, behind a token, and dies with its command."""
    for name in LOCAL:
        monkeypatch.delenv(name, raising=False)
    command = jobs.command(0)
    driver = drive(jobs, "")
    begun = jobs.begun(command)
    assert begun["RAY_AUTH_TOKEN"] is None
    processes = descendants(driver.pid)
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in processes}
    assert len(processes) > 4
    assert listens_beyond_this_machine(processes) == []
    driver.kill()
    driver.wait()
    wait_until((command.folder.path / "checkpoint").exists)
    # Ray's agents learn of it late, and by themselves.
    rest = [pid for pid, name in names.items() if "Agent" not in name]
    wait_until(lambda: not [pid for pid in rest if lives(pid)])
    assert (command.folder.path / "signals").read_text() == "TERM\n"


def test_what_cannot_be_is_said_in_a_line_or_two(
    jobs: Jobs, engines: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = jobs.command(0)
    wanted: list[tuple[Callable[[], object], str]] = [
        (lambda: engines().require([replace(command, gpus=4.0)]), "wants 4 GPUs, and no machine"),
        (lambda: engines().require([replace(command, nodes=2)]), "hydra/launcher=slurm"),
        (lambda: engines(cores_per_job=5).require([command]), "cores_per_job=5: no machine"),
        (lambda: RayConfig(address="ray://head:10001"), "without a scheme"),
        (lambda: RayConfig(gpus_per_job=1.5), "expected a whole number"),
    ]
    nowhere = Ray(RayConfig(address=f"127.0.0.1:{free_port()}"))
    wanted.append((lambda: nowhere.require([command]), "no Ray cluster answers there"))
    for call, message in wanted:
        with pytest.raises(ConfigError, match=message) as caught:
            call()
        assert len(str(caught.value).splitlines()) <= 2
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'flair2-exp\[ray\]'"):
        Ray(RayConfig()).require([command])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_on_ray_scores_as_on_slots(tmp_path: Path) -> None:
    scores = {}
    for engine, options in {"ray": ["at_once=3"], "slots": ["slots=3"]}.items():
        done = run_command(
            tmp_path / engine, "--multirun", "model=unet", "data=aerial_only", "preset=debug",
            "trainer=cpu", "seed=1,2,3", f"hydra/launcher={engine}", "sweep.name=same",
            *(f"hydra.launcher.{each}" for each in options), *SMALL_SAMPLE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        folders = sorted((tmp_path / engine / "multirun" / "same").glob("*seed=*"))
        metrics = [read_metrics(RunFolder(path)) for path in folders]
        scores[engine] = [
            {name: value for name, value in each.items() if name.startswith(("val/", "test/"))}
            for each in metrics
        ]
        assert len(folders) == 3
    assert scores["ray"] == scores["slots"]
    assert all(scores["ray"])
