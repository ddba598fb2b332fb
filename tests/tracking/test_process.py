from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flair2_exp.tracking.process import WriterProcess, _start_time


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that ends when its input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def as_writer(pid: int) -> WriterProcess:
    return dataclasses.replace(WriterProcess.this(), pid=pid, start=_start_time(pid))


def test_a_process_goes_through_tags_and_back() -> None:
    here = WriterProcess.this()
    assert WriterProcess.from_tags(here.tags()) == here
    assert not here.has_ended(shared_store=False)


@pytest.mark.parametrize("missing", ["flair2.host", "flair2.pid", "flair2.process"])
def test_a_run_of_another_program_names_no_process(missing: str) -> None:
    tags = {name: text for name, text in WriterProcess.this().tags().items() if name != missing}
    assert WriterProcess.from_tags(tags) is None


def test_a_living_process_has_not_ended_and_a_killed_one_has(
    neighbour: subprocess.Popen[bytes],
) -> None:
    writer = as_writer(neighbour.pid)
    assert not writer.has_ended(shared_store=True)
    neighbour.kill()
    neighbour.wait()
    assert writer.has_ended(shared_store=True)


def test_a_zombie_has_ended(neighbour: subprocess.Popen[bytes]) -> None:
    writer = as_writer(neighbour.pid)
    neighbour.communicate()  # ends it and reaps it ...
    unreaped = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    assert unreaped.stdout is not None
    born = as_writer(unreaped.pid)
    unreaped.stdout.read()  # ... this one has closed its output and is not waited for
    for _ in range(1000):
        if born.has_ended(shared_store=False):
            break
    assert writer.has_ended(shared_store=False)
    unreaped.wait()
    assert born.has_ended(shared_store=False)


def test_a_number_used_again_does_not_keep_the_former_process_alive(
    neighbour: subprocess.Popen[bytes],
) -> None:
    former = dataclasses.replace(as_writer(neighbour.pid), start="12")
    assert former.has_ended(shared_store=True)


def test_processes_elsewhere_are_left_alone() -> None:
    here = WriterProcess.this()
    for change in (
        {"host": "another", "pid": 1},
        {"machine": "another", "start": "1"},
        {"namespace": "pid:[1]", "start": "1"},
    ):
        assert not dataclasses.replace(here, **change).has_ended(shared_store=False)


@pytest.mark.parametrize(("machine", "shared", "ended"), [
    ("abc", True, True),
    ("abc", False, True),
    ("", False, True),
    ("", True, False),  # may be another machine of that name
])  # fmt: skip
def test_a_restart_ends_all_processes(
    machine: str, shared: bool, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = dataclasses.replace(WriterProcess.this(), machine=machine)
    monkeypatch.setattr(WriterProcess, "this", classmethod(lambda cls: here))
    before = dataclasses.replace(here, boot="an earlier one")
    assert before.has_ended(shared_store=shared) == ended
