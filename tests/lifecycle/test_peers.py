"""Lines between processes, without a training: what is said on them, and what a broken one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flair2_exp.errors import DataError, DeviceError
from flair2_exp.lifecycle import peers
from flair2_exp.lifecycle.peers import End, PeerError, Peers
from flair2_exp.ranks import Rank
from flair2_exp.signals import Terminated

ROOT = Path(__file__).parents[2]
FOLDER = Path("/runs/one")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = server.getsockname()[1]
    return int(found) - 1  # the lines' port is the next one


@pytest.fixture(autouse=True)
def no_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MEETING", 20.0)
    monkeypatch.setattr(peers, "GRACE", 20.0)


def _srun(port: int, number: int) -> Rank:
    return Rank(number=number, world=3, local=number, per_node=3, starter="srun", port=port)


def test_all_processes_learn_why_one_failed(port: int) -> None:
    found: dict[int, BaseException] = {}

    def process(number: int) -> None:
        try:
            with Peers(_srun(port, number), FOLDER) as lines:
                lines.meet()
                if number == 1:
                    raise DataError("the patch is damaged")
                while lines.lost is None:  # the test's own limit is that of its threads
                    time.sleep(0.01)
                try:
                    raise RuntimeError("connection closed")
                except RuntimeError as error:
                    raise lines.cause(error) from error
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=process, args=(number,), daemon=True) for number in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert isinstance(found[1], DataError)
    for number in (0, 2):
        assert isinstance(found[number], PeerError)
        assert str(found[number]) == "process 1 of 3 ended: the patch is damaged"


def test_a_process_in_another_folder_and_one_that_never_comes_are_refused(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = Rank(world=2, per_node=2, starter="srun", port=port)
    other = Rank(number=1, world=2, local=1, per_node=2, starter="srun", port=port)
    elsewhere = pytest.raises(DeviceError, match=r"process 1 works in /runs/two, this one in /runs")
    with Peers(rank, FOLDER) as first, Peers(other, Path("/runs/two")), elsewhere:
        first.meet()
    monkeypatch.setattr(peers, "MEETING", 0.1)
    with Peers(rank, FOLDER) as first, pytest.raises(DeviceError, match=r"(?s)0 s for.*MASTER_PO"):
        first.meet()


def test_a_signal_to_one_process_is_one_to_all_and_a_mistake_of_ones_own_stays() -> None:
    assert isinstance(End(1, 143).exception(2), Terminated)
    assert isinstance(End(1, 130).exception(2), KeyboardInterrupt)
    lines = Peers(Rank(world=2, per_node=2), FOLDER)
    lines.lost = End(1, 1, "it diverged")
    own = DataError("it diverged")
    assert lines.cause(own) is own


@pytest.mark.parametrize("ends", ["closes", "says"])
def test_a_process_that_waits_for_ever_is_ended_by_force_with_the_reason(ends: str) -> None:
    code = (
        "import socket, sys, time\nfrom pathlib import Path\n"
        "from flair2_exp.ranks import Rank\nfrom flair2_exp.lifecycle import peers\n"
        "peers.GRACE = 0.2\n"
        "line = socket.socket(fileno=int(sys.argv[1]))\n"
        "rank = Rank(number=1, world=2, local=1, per_node=2)\n"
        "with peers.Peers(rank, Path('/runs/one'), line) as lines:\n"
        "    lines.on_stuck = lambda error: print('stuck', flush=True)\n"
        "    time.sleep(60)\n"
    )
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        theirs.close()
        assert b'"number": 1' in ours.recv(1000)
        if ends == "says":
            ours.sendall(b'{"number": 0, "status": 143, "reason": "asked to end"}\n')
            expected = (143, "flair2-exp: process 0 of 2 ended: asked to end")
        else:
            ours.close()
            expected = (1, "process 0 of 2 ended: it said nothing")
        began = time.monotonic()
        out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert (process.returncode, out) == (expected[0], "stuck\n")
    assert expected[1] in err
