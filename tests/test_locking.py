from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.locking import FILE, locked, wait_until_free

HOLDER = """
import os, sys, time
from pathlib import Path
from flair2_exp.locking import locked
with locked(Path(sys.argv[1])):
    child = os.fork() if len(sys.argv) > 2 else 0
    if len(sys.argv) > 2 and child == 0:
        time.sleep(60)
    print("held", child, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDER, str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_a_second_process_is_told_who_holds_the_folder_and_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sweep"
    with holder(folder) as process:
        assert heard(process)[0] == "held"
        told = f"in use by process {process.pid} on {socket.gethostname()}"
        with pytest.raises(ConfigError, match=told) as refused, locked(folder, "take a walk"):
            pass
        assert str(refused.value).splitlines()[1] == "Wait for it or end it, or take a walk."


def test_waiting_for_a_folder_ends_with_its_holder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wait_until_free(tmp_path / "nowhere")
    with holder(tmp_path) as process:
        heard(process)
        killing = threading.Timer(0.5, process.kill)
        killing.start()
        wait_until_free(tmp_path)
        assert killing.finished.is_set()
    assert f"waiting for process {process.pid}" in caplog.text
    wait_until_free(tmp_path)
    with locked(tmp_path):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        heard(process)
        process.kill()
        process.wait()
        with locked(tmp_path) as held:
            assert held is True
            assert f"process {os.getpid()} " in (tmp_path / FILE).read_text()


def test_a_child_that_outlives_the_killed_holder_keeps_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path, "with a child") as process:
        child = int(heard(process)[1])
        try:
            time.sleep(0.2)  # for the child to get past the fork
            process.kill()
            process.wait()
            with locked(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_fork_does_not_give_up_its_parents_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(ConfigError, match="in use"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_folder_removed_by_its_holder_can_be_held_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder):
        shutil.rmtree(folder)
    with locked(folder), pytest.raises(ConfigError, match="in use"), locked(folder):
        pass


def test_a_lock_on_a_removed_file_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, files = fcntl.flock, []

    def late(file: object, how: int) -> None:
        if not files:  # the holder before us ends, and removes its folder, just now
            (tmp_path / FILE).unlink()
        files.append(file)
        flock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path), pytest.raises(ConfigError, match="in use"), locked(tmp_path):
        pass
    assert len(files) == 3


def test_without_locks_the_work_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING), locked(tmp_path), locked(tmp_path) as held:
        assert held is False
    assert "no locks on this file system" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to .*file"), locked(tmp_path / "file"):
        pass
