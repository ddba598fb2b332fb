from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from flair2_exp.optuna_sweeper.process import Process, start_time


def test_this_process_lives_and_comes_back_from_plain_values() -> None:
    this = Process.this()
    assert this.pid == os.getpid()
    assert this.lives() is True
    assert Process.of_plain(json.loads(json.dumps(this.plain()))) == this


@pytest.mark.parametrize("values", [None, "a process", {"pid": 1}, 7])
def test_what_is_not_a_process_is_none(values: object) -> None:
    assert Process.of_plain(values) is None


def test_a_number_that_another_process_has_now_is_not_the_process() -> None:
    assert replace(Process.this(), start="1").lives() is False


@pytest.mark.parametrize("place", ["host", "boot", "namespace"])
def test_of_a_process_elsewhere_nothing_is_known(place: str) -> None:
    assert replace(Process.this(), **{place: "elsewhere"}).lives() is None


def test_a_process_that_ended_is_dead_also_before_anybody_waited_for_it() -> None:
    code = (
        f"import json; from {Process.__module__} import Process; "
        "print(json.dumps(Process.this().plain()))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    process = Process.of_plain(json.loads(child.stdout.read()))  # to the end: it exits
    assert process is not None
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.lives() is False  # a zombie
    child.wait()
    assert process.lives() is False
    assert start_time(child.pid) == ""


def test_without_proc_a_number_in_use_is_all_that_is_known() -> None:
    this = replace(Process.this(), start="")
    assert this.lives() is True
    child = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    child.wait()
    assert replace(this, pid=child.pid).lives() is False
    assert replace(this, pid=1).lives() is True


def test_the_module_imports_the_standard_library_alone() -> None:
    path = sys.modules[Process.__module__].__file__
    code = (
        f"import runpy, sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; "
        f"runpy.run_path({path!r}, run_name='process')"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
