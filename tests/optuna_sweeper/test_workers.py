"""Whole processes that share a study, and what happens when one of them is killed."""

from __future__ import annotations

import collections
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flair2_exp.optuna_sweeper import SweepError, storage
from flair2_exp.optuna_sweeper.study import RETRY_OF
from tests.optuna_sweeper.toy import APP, states, trials_of

ROOT = Path(__file__).parents[2]
PASSWORD = "correct-horse"


@dataclass
class Application:
    """The toy application in a folder, and the processes that run it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "app.py").write_text(APP)

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "app.py",
                "-m",
                "hydra.sweep.dir=sweep",
                "hydra.sweeper.poll=0.1",
                *overrides,
            ],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def evaluations(self) -> list[tuple[int, str]]:
        """Process id and parameter of every evaluation that was begun."""
        path = self.folder / "evaluated"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    def hold(self, process: subprocess.Popen[str]) -> Callable[[], None]:
        """Make a process stand still in a trial; the function that lets it go on."""
        file = self.folder / f"hold{process.pid}"
        file.touch()
        self.wait_until((self.folder / f"holding{process.pid}").exists)
        return file.unlink

    def kill_in_a_trial(self, process: subprocess.Popen[str]) -> str:
        """Kill a process in the middle of a trial; the trial's parameter."""
        self.hold(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return [x for pid, x in self.evaluations() if pid == process.pid][-1]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            dead = [p for p in self.processes if p.poll() not in (None, 0, -9)]
            assert not dead, dead[0].communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    result = Application(tmp_path)
    yield result
    for process in result.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def check_each_ran_once_but(application: Application, retried: set[str]) -> None:
    counts = collections.Counter(x for _, x in application.evaluations())
    assert {x for x, count in counts.items() if count > 1} == retried
    assert all(count <= 2 for count in counts.values())


def test_a_killed_search_goes_on_with_the_trial_it_lost(application: Application) -> None:
    arguments = ["x=interval(0,1)", "hydra.sweeper.n_trials=6"]
    first = application.start(*arguments)
    application.wait_until(lambda: len(application.evaluations()) >= 3)
    lost = application.kill_in_a_trial(first)
    output = application.finish(application.start(*arguments))
    assert "its process died; it is closed and tried again" in output
    trials = trials_of(str(application.folder / "sweep" / "optuna.journal"), "app")
    assert sorted(states(trials)) == ["COMPLETE"] * 6 + ["FAIL"]
    check_each_ran_once_but(application, {lost})
    # The second attempt goes on in the folder of the first.
    folders = {path.parent.name for path in (application.folder / "sweep").glob("*/.hydra")}
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert folders == {str(trial.user_attrs.get(RETRY_OF, trial.number)) for trial in done}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_search_and_burns_no_trial(
    application: Application, number: signal.Signals
) -> None:
    arguments = ["x=interval(0,1)", "hydra.sweeper.n_trials=4", "hydra.sweeper.max_failures=1"]
    first = application.start(*arguments)
    application.wait_until(lambda: len(application.evaluations()) >= 2)
    application.hold(first)
    first.send_signal(number)
    output, _ = first.communicate(timeout=60)
    assert first.returncode in (-number, 128 + number), output
    begun = application.evaluations()
    application.finish(application.start(*arguments))
    trials = trials_of(str(application.folder / "sweep" / "optuna.journal"), "app")
    assert sorted(states(trials)) == ["COMPLETE"] * 4 + ["FAIL"]
    check_each_ran_once_but(application, {begun[-1][1]})


def share_and_kill(application: Application, total: int, *arguments: str) -> str:
    """Two workers, one killed half way in a trial and replaced; the parameter that was lost."""
    arguments = (
        "x=interval(0,1)", f"hydra.sweeper.n_trials={total}",
        "hydra.sweeper.on_create=app.make_parent", *arguments,
    )  # fmt: skip
    victim, other = application.start(*arguments), application.start(*arguments)
    application.wait_until(
        lambda: (
            len({pid for pid, _ in application.evaluations()}) == 2
            and len(application.evaluations()) >= total // 2
        )
    )
    release = application.hold(other)  # so that there is something left for the replacement
    lost = application.kill_in_a_trial(victim)
    replacement = application.start(*arguments)
    application.wait_until(lambda: replacement.pid in {pid for pid, _ in application.evaluations()})
    release()
    for process in (other, replacement):
        application.finish(process)
    (parent,) = (application.folder / "parents").read_text().split()
    assert int(parent) in {victim.pid, other.pid}
    return lost


def test_two_workers_share_one_journal(application: Application) -> None:
    lost = share_and_kill(application, 10)
    trials = trials_of(str(application.folder / "sweep" / "optuna.journal"), "app")
    assert states(trials).count("COMPLETE") == 10
    assert states(trials).count("RUNNING") == 0
    check_each_ran_once_but(application, {lost})


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server on loopback that asks for the password."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [
        Path(found).parent for found in [shutil.which("initdb")] if found
    ]
    if not binaries:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    password_file = folder / "password"
    password_file.write_text(PASSWORD)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_as: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        shutil.chown(password_file, "postgres")
        run_as = ["runuser", "-u", "postgres", "--"]
    data = str(folder / "data")

    def run(*command: str) -> None:
        subprocess.run(
            [*run_as, *command], check=True, cwd="/", capture_output=True, text=True, timeout=60
        )

    run(
        str(binaries[-1] / "initdb"),
        "-D",
        data,
        "-U",
        "tuner",
        "--auth=scram-sha-256",
        f"--pwfile={password_file}",
        "--no-sync",
    )
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    control = [str(binaries[-1] / "pg_ctl"), "-D", data, "-w"]
    run(*control, "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql://tuner@127.0.0.1:{port}/postgres"
    run(*control, "-m", "immediate", "stop")
    shutil.rmtree(folder)


def test_two_workers_share_postgresql_and_one_is_killed(
    application: Application, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    application.environment["PGPASSWORD"] = PASSWORD
    lost = share_and_kill(application, 24, f"hydra.sweeper.storage={postgres}")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    trials = trials_of(postgres, "app")
    assert states(trials).count("COMPLETE") == 24
    assert states(trials).count("RUNNING") == states(trials).count("WAITING") == 0
    check_each_ran_once_but(application, {lost})
    retries = [t for t in trials if "retry_of" in t.user_attrs and "withdrawn" not in t.user_attrs]
    assert [t.params["x"] for t in retries] == [float(lost)]
    assert len({pid for pid, _ in application.evaluations()}) == 3
    for path in (application.folder / "sweep").rglob("*"):
        assert path.is_dir() or PASSWORD not in path.read_text(), path


def test_the_password_may_stand_in_a_file(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pgpass"
    path.write_text(f"*:*:*:*:{PASSWORD}\n")
    path.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(path))
    storage._open.clear()
    storage.open_storage(postgres)


def test_a_wrong_password_is_told_and_not_repeated(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "wrong-horse")
    storage._open.clear()
    with pytest.raises(SweepError, match="password authentication failed") as caught:
        storage.open_storage(postgres)
    assert "wrong-horse" not in str(caught.value)


def test_a_database_without_rights_is_told_in_one_line(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE closed")
        connection.execute(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    with psycopg.connect(postgres.replace("/postgres", "/closed"), autocommit=True) as connection:
        connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    url = postgres.replace("tuner", "guest").replace("/postgres", "/closed")
    with pytest.raises(SweepError, match=r"permission denied|no schema") as caught:
        storage.open_storage(url)
    assert len(str(caught.value).splitlines()) == 1
