from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from flair2_exp.optuna_sweeper.process import start_time
from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.tags import Tag

HERE = WriterProcess.this()


def writer(**changes: object) -> WriterProcess:
    """This process but for some of its attributes."""
    return replace(HERE, process=replace(HERE.process, **changes))  # type: ignore[arg-type]


def test_a_process_goes_through_tags_and_back() -> None:
    assert WriterProcess.from_tags(HERE.tags()) == HERE
    assert not HERE.has_ended(shared_store=False)


@pytest.mark.parametrize("missing", [Tag.HOST, Tag.PID, Tag.PROCESS])
def test_a_run_of_another_program_names_no_process(missing: str) -> None:
    tags = {name: text for name, text in HERE.tags().items() if name != missing}
    assert WriterProcess.from_tags(tags) is None


def test_a_living_process_has_not_ended_and_a_killed_one_has() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        neighbour = writer(pid=child.pid, start=start_time(child.pid))
        assert not neighbour.has_ended(shared_store=True)
        child.kill()
        child.wait()
        assert neighbour.has_ended(shared_store=True)


def test_processes_elsewhere_are_left_alone() -> None:
    assert not writer(host="another", pid=1).has_ended(shared_store=False)
    assert not writer(namespace="pid:[1]", start="1").has_ended(shared_store=False)
    former = writer(start="1")
    assert former.has_ended(shared_store=False)
    assert not replace(former, machine="another").has_ended(shared_store=False)


@pytest.mark.parametrize(("machine", "shared", "ended"), [
    ("abc", True, True),
    ("abc", False, True),
    ("", False, True),
    ("", True, False),  # may be another machine of that name
])  # fmt: skip
def test_a_restart_ends_all_processes(
    machine: str, shared: bool, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(HERE, machine=machine)
    monkeypatch.setattr(WriterProcess, "this", classmethod(lambda cls: here))
    before = replace(here, process=replace(here.process, boot="an earlier one"))
    assert before.has_ended(shared_store=shared) == ended
