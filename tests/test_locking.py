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
from flair2_exp.locking import FILE, file_lock, locked, wait_until_free

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


def answer(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_a_second_process_learns_who_holds_the_folder_and_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sweep"
    with holder(folder) as process:
        assert answer(process)[0] == "held"
        words = f"in use by process {process.pid} on {socket.gethostname()}"
        with pytest.raises(ConfigError, match=words) as refused, locked(folder, "take a walk"):
            pass
        assert str(refused.value).splitlines()[1] == "Wait for it or end it, or take a walk."


def test_waiting_for_a_folder_ends_with_its_holder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wait_until_free(tmp_path / "nowhere")
    with holder(tmp_path) as process:
        answer(process)
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
        answer(process)
        process.kill()
        process.wait()
        with locked(tmp_path) as exclusive:
            assert exclusive is True
            assert f"process {os.getpid()} " in (tmp_path / FILE).read_text()


def test_a_child_that_outlives_the_killed_holder_keeps_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path, "with a child") as process:
        child = int(answer(process)[1])
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
    assert len(files) == 4  # the removed one, that of the holder, and twice that of the refused


def test_without_locks_the_work_continues_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING), locked(tmp_path), locked(tmp_path) as exclusive:
        assert exclusive is False
    assert "no locks on this file system" in caplog.text


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to .*file"), locked(tmp_path / "file"):
        pass


def test_a_shared_lock_admits_others_that_share_and_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with pytest.raises(FileNotFoundError), file_lock(path, shared=True):
        pass
    with file_lock(path) as supported:
        assert supported is True
        with pytest.raises(BlockingIOError), file_lock(path, shared=True, blocking=False):
            pass
    with file_lock(path, shared=True), file_lock(path, shared=True, blocking=False):  # noqa: SIM117
        with pytest.raises(BlockingIOError), file_lock(path, blocking=False):
            pass


def test_an_error_within_the_context_is_not_taken_for_the_locks(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="mine"), locked(tmp_path):
        raise BlockingIOError("mine")
    with locked(tmp_path):
        pass


def test_a_look_at_who_holds_a_folder_keeps_nobody_from_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    begun = threading.Event()

    def looks() -> None:
        with file_lock(tmp_path / FILE, shared=True, blocking=False):
            begun.set()
            time.sleep(0.02)

    thread = threading.Thread(target=looks)
    thread.start()
    begun.wait()
    with locked(tmp_path) as supported:
        assert supported
    thread.join()
