from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from flair2_exp import slurm
from flair2_exp.signals import (
    Interruption,
    Preempted,
    Terminated,
    held_back,
    interrupt_of,
    signals_as_exceptions,
    status_of,
)


def chained(last: BaseException, first: BaseException) -> BaseException:
    try:
        try:
            raise first
        except BaseException:
            raise last  # noqa: B904
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    ("exception", "status"),
    [
        (None, "FINISHED"),
        (SystemExit(), "FINISHED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(2), "FAILED"),
        (SystemExit("a message"), "FAILED"),
        (ValueError(), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Terminated(), "KILLED"),
        (Terminated(signal.SIGUSR2), "KILLED"),
        (Preempted(signal.SIGUSR1), "PREEMPTED"),
        (chained(Preempted(signal.SIGTERM), Terminated()), "PREEMPTED"),
        (chained(SystemExit(1), KeyboardInterrupt()), "KILLED"),  # what Lightning makes of Ctrl-C
        (chained(SystemExit(1), ValueError()), "FAILED"),
    ],
)
def test_a_run_ends_as_its_exception_says(exception: BaseException | None, status: str) -> None:
    assert status_of(exception) == status


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)]
)
def test_a_signal_raises_inside_the_context_and_the_handler_before_comes_back(
    number: int, status: int
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Terminated) as caught, signals_as_exceptions():  # noqa: PT012
        os.kill(os.getpid(), number)
        signal.pause()
    assert caught.value.code == status
    assert signal.getsignal(number) == before


def test_another_programs_handler_of_a_clusters_signal_stays() -> None:
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: numbers.append(number))
    try:
        with signals_as_exceptions() as interruption:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.01)
            assert interruption.exception is None
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert numbers == [signal.SIGUSR2]


def test_a_job_of_slurms_goes_by_the_first_of_its_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(slurm.JOB, "12_3")
    with signals_as_exceptions() as interruption, interruption.postponed():
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert isinstance(interruption.exception, Terminated)
        assert interruption.exception.number == signal.SIGUSR1


@pytest.mark.parametrize("again", [True, False])
def test_slurm_is_asked_once_whether_it_starts_the_job_again(
    again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def goes_on(number: int) -> bool:
        asked.append(number)
        return again

    monkeypatch.setattr(slurm, "goes_on", goes_on)
    interruption = Interruption()
    error = RuntimeError("a worker was killed")
    assert interruption.outcome(error) is error
    interruption.exception = Terminated(signal.SIGUSR1)
    ends = [interruption.outcome(error) for _ in range(2)]
    assert ends[0] is ends[1]
    assert isinstance(ends[0], Preempted) == again
    assert isinstance(ends[0], Terminated)
    assert ends[0].code == 138
    assert asked == [signal.SIGUSR1]


def test_what_a_signal_raised_is_found_behind_what_became_of_it() -> None:
    interrupt = KeyboardInterrupt()
    assert interrupt_of(chained(SystemExit(1), interrupt)) is interrupt
    error = chained(RuntimeError(), ValueError())
    assert interrupt_of(error) is error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_postponed_signal_waits_to_be_looked_at(number: int) -> None:
    with signals_as_exceptions() as interruption:
        with interruption.postponed():
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert isinstance(interruption.exception, Terminated | KeyboardInterrupt)
    with signals_as_exceptions() as interruption:
        assert interruption.exception is None


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_as_exceptions() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert interruption.exception is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_inner_context_is_the_outer_one() -> None:
    with signals_as_exceptions() as outer:
        with signals_as_exceptions() as inner:
            assert inner is outer
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_leaves_at_once() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            with signals_as_exceptions():
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                finally:
                    os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(1)  # not reached: the second signal has ended the process
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143


def test_a_forked_child_just_ends() -> None:
    with signals_as_exceptions():
        pid = os.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143


def test_in_another_thread_nothing_is_installed() -> None:
    before, handlers = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with signals_as_exceptions():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_a_signal_that_is_held_back_raises_at_the_end() -> None:
    reached = []

    def work() -> None:
        with signals_as_exceptions(), held_back():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached
    with held_back():  # of no run: nothing to hold back
        pass


def test_ctrl_c_before_a_command_has_begun_costs_one_line() -> None:
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'flair2_exp.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from flair2_exp.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "flair2-exp: interrupted\n")
