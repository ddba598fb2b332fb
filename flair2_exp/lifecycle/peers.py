"""The processes of a training on several devices: started, and ended when one of them ends.

A process that waits for another in a collective operation waits for ever, or half an hour, where
that one has died. So the first process of all holds a line (a socket) to each other one, which the
kernel closes with the process however that ends. On it each says how it ended. Who learns that
another has failed ends too: by itself where the collective fails, as it does on the processor; else
a thread ends the process after `GRACE` seconds. Under torchrun, which ends its processes itself,
there are no lines.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from flair2_exp.config.experiment import Config
from flair2_exp.errors import DeviceError, FlairError
from flair2_exp.projects import OURS, importable
from flair2_exp.ranks import Rank
from flair2_exp.signals import SIGNALS, Terminated, exception_of
from flair2_exp.tracking.scrub import scrub

GRACE: Final = 10.0
"""Seconds that a process has to end by itself once another has failed."""
MEETING: Final = 120.0
"""Seconds that a process which is ready to train waits for others that srun started with it."""

CHILD: Final = "flair2_exp.cli.rank"
"""The program of a process that another one starts."""

_sockets: Final[set[socket.socket]] = set()


def _close_sockets() -> None:
    """Close the lines in a fork: a data worker that outlives its parent would hold them open."""
    for each in _sockets:
        each.close()
    _sockets.clear()


os.register_at_fork(after_in_child=_close_sockets)


class PeerError(FlairError):
    """Another process of the training ended, so that this one cannot go on.

    Attributes:
        explained: Whether that process said why, to the user too.
    """

    def __init__(self, message: str, *, explained: bool) -> None:
        super().__init__(message)
        self.explained = explained


@dataclass(frozen=True)
class Job:
    """What a process needs to know to be one of a training."""

    config: Config
    folder: Path
    overrides: tuple[str, ...]
    rank: Rank
    projects: tuple[Path, ...]
    """Whose modules a config may name (`projects.make_importable`)."""
    reported: bool = False
    """Whether the first process reports to a search, which may end the training early."""


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        number: Which.
        status: As a shell says it: 0 well, 143 terminated, 130 interrupted.
        reason: In words; empty where it could say nothing.
    """

    number: int
    status: int = 1
    reason: str = ""

    def exception(self, world: int) -> BaseException:
        """Return what ends another process for that."""
        if self.status - 128 in SIGNALS:
            return exception_of(self.status - 128)
        why = self.reason or "it said nothing: killed, perhaps for want of memory"
        message = f"process {self.number} of {world} ended: {why}"
        if not self.reason:
            message += "\nThe same command, in the same folder, resumes from the last checkpoint."
        return PeerError(message, explained=bool(self.reason))


class Peers:
    """This process's lines to the others of its training; a context.

    Args:
        rank: Of this process.
        folder: Of the run: all must have the same.
        line: To the process that has started this one.

    Attributes:
        lost: How another one failed; None while none has.
        on_stuck: Is called, from a thread, before this process is ended by force.
    """

    def __init__(self, rank: Rank, folder: Path, line: socket.socket | None = None) -> None:
        self.rank = rank
        self.lost: End | None = None
        self.on_stuck: Callable[[BaseException], None] = _nothing
        self._folder = folder
        self._given = line
        self._server: socket.socket | None = None
        self._lines: dict[int, socket.socket] = {}
        self._met: dict[int, str] = {}
        self._ended: set[int] = set()
        self._children: list[subprocess.Popen[bytes]] = []
        self._change = threading.Condition()
        self._settled = False

    def __enter__(self) -> Peers:
        """Open the lines of processes that are there already."""
        rank = self.rank
        if self._given is not None:
            self._take(0, self._given)
        elif rank.starter == "srun" and not rank.alone:
            if rank.first:
                self._listen()
            else:
                self._in_thread(self._call)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the others how this process ended, and wait for those that it has started."""
        self.settle()
        end = self._end_of(error)
        if end.status and self._server is not None:  # some may not have called yet
            self._wait(lambda: len(self._met) >= self.rank.world - 1, GRACE)
        for line in list(self._lines.values()):
            self._say(line, end)
        self._leave(GRACE if end.status else 2 * GRACE)
        for line in [*self._lines.values(), *([self._server] if self._server else [])]:
            _sockets.discard(line)
            with suppress(OSError):  # else the thread that reads it would hold it open
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def start(self, config: Config, overrides: Sequence[str], *, reported: bool = False) -> None:
        """Start the other processes of this machine, where that is this one's to do.

        Args:
            config: The experiment's.
            overrides: Hydra's, as typed by the user.
            reported: Whether the first process reports to a search.
        """
        if not self.rank.starts_others:
            return
        if not self.rank.port:
            self.rank = replace(self.rank, port=_free_port())
        places = filter(None, (str(OURS.parent), os.environ.get("PYTHONPATH")))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        for local in range(1, self.rank.per_node):
            rank = replace(self.rank, number=self.rank.number + local, local=local)
            ours, theirs = socket.socketpair()
            with theirs:
                child = subprocess.Popen(
                    [sys.executable, "-m", CHILD, str(theirs.fileno())],
                    stdin=subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            self._children.append(child)
            self._take(rank.number, ours)
            job = Job(config, self._folder, tuple(overrides), rank, importable(), reported)
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin:
                pickle.dump(job, child.stdin)

    def meet(self) -> None:
        """Wait until all others that srun has started are there, before waiting within torch.

        Raises:
            DeviceError: One does not come, or works in another folder.
            PeerError: One has failed.
        """
        if self.rank.starter != "srun" or self.rank.alone:
            return
        expected = self.rank.world - 1 if self.rank.first else 1
        come = self._wait(lambda: self.lost is not None or len(self._met) >= expected, MEETING)
        self.require_all()
        if not come:
            whom = "the first process" if not self.rank.first else "all other processes"
            raise DeviceError(
                f"process {self.rank.number} of {self.rank.world} waited {MEETING:.0f} s for "
                f"{whom} at {self.rank.address}:{self.rank.port + 1}.\nIf another program "
                "has that port, set MASTER_PORT to a free one before srun."
            )
        for number, folder in self._met.items():
            if folder != str(self._folder):
                raise DeviceError(
                    f"process {number} works in {folder}, this one in {self._folder}: give all "
                    "the same folder with hydra.run.dir=FOLDER."
                )

    def require_all(self) -> None:
        """Raise where another process has failed."""
        if self.lost is not None:
            raise self.lost.exception(self.rank.world)

    def cause(self, error: BaseException) -> BaseException:
        """Return why this process ends: another one's failure, where the error came of that.

        A collective operation fails as soon as the other process is gone, perhaps before its line
        says so.
        """
        own = isinstance(error, FlairError | KeyboardInterrupt | Terminated)
        if own or self.rank.alone:
            return error
        if isinstance(error, RuntimeError):
            self._wait(lambda: self.lost is not None, 1.0)
        return error if self.lost is None else self.lost.exception(self.rank.world)

    def settle(self) -> None:
        """Let this process end by itself from here on, however long it takes."""
        self._settled = True

    def _listen(self) -> None:
        try:
            # On one machine nothing outside it can call.
            inside = self.rank.address == "127.0.0.1"
            server = socket.create_server(
                ("127.0.0.1" if inside else "", self.rank.port + 1), backlog=self.rank.world
            )
        except OSError as error:
            raise DeviceError(
                f"port {self.rank.port + 1}, at which the processes meet: {error.strerror}.\n"
                "Set MASTER_PORT to a free one, with a free one after it, before srun."
            ) from error
        self._server = server
        _sockets.add(server)
        self._in_thread(self._accept)

    def _accept(self) -> None:
        server = self._server
        while server is not None:
            try:
                line, _ = server.accept()
            except OSError:
                return
            self._in_thread(self._read, line, -1)

    def _call(self) -> None:
        """Call the first process until it answers."""
        place = (self.rank.address, self.rank.port + 1)
        until = time.monotonic() + MEETING
        while not self._settled and time.monotonic() < until:
            try:
                line = socket.create_connection(place, timeout=5.0)
            except OSError:
                time.sleep(0.2)
                continue
            line.settimeout(None)
            self._take(0, line)
            return

    def _take(self, number: int, line: socket.socket) -> None:
        """Take a line, and say who is there."""
        _sockets.add(line)
        self._lines[number] = line
        self._send(line, {"number": self.rank.number, "folder": str(self._folder)})
        self._in_thread(self._read, line, number)

    def _in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=function, args=arguments, daemon=True, name="peers").start()

    def _read(self, line: socket.socket, number: int) -> None:
        """Read what another process says, to its end; -1 is one that has not said its number."""
        end = None
        with suppress(OSError, ValueError, KeyError), line.makefile(encoding="utf-8") as lines:
            for text in lines:
                message = json.loads(text)
                if "folder" in message:
                    number = int(message["number"])
                    self._note_meeting(number, line, message["folder"])
                else:
                    end = End(**message)
                    self._note(end)
        if end is None and number >= 0:
            self._note(End(number))

    def _note_meeting(self, number: int, line: socket.socket, folder: str) -> None:
        with self._change:
            if number not in self._lines:
                _sockets.add(line)
                self._lines[number] = line
                self._send(line, {"number": self.rank.number, "folder": str(self._folder)})
            self._met[number] = folder
            self._change.notify_all()

    def _note(self, end: End) -> None:
        """Note how another process ended; where it failed, pass that on and see that this ends."""
        with self._change:
            self._ended.add(end.number)
            news = bool(end.status) and self.lost is None and not self._settled
            if news:
                self.lost = end
            self._change.notify_all()
        if not news:
            return
        for number, line in list(self._lines.items()):
            if number != end.number and self.rank.first:
                self._say(line, end)
        self._in_thread(self._end_by_force)

    def _end_by_force(self) -> None:
        """End a process whose main thread waits in an operation that will never end."""
        time.sleep(GRACE)
        if self._settled or self.lost is None:
            return
        error = self.lost.exception(self.rank.world)
        with suppress(Exception):
            self.on_stuck(error)
        message = f"process {self.lost.number} of {self.rank.world} ended: {self.lost.reason}"
        message = str(error) if isinstance(error, PeerError) else message
        print(f"flair2-exp: {scrub(message)}", file=sys.stderr)
        sys.stderr.flush()
        for child in self._children:
            child.kill()
        os._exit(self.lost.status)

    def _end_of(self, error: BaseException | None) -> End:
        number = self.rank.number
        if self.lost is not None and error is not None:  # pass on why, not that it was passed on
            return self.lost
        if error is None:
            return End(number, 0)
        if isinstance(error, KeyboardInterrupt):
            return End(number, 128 + signal.SIGINT, "interrupted")
        if isinstance(error, SystemExit):
            code = error.code
            return End(number, code if isinstance(code, int) else 1, "asked to end")
        status = error.status if isinstance(error, FlairError) else 1
        words = str(error) if isinstance(error, FlairError) else f"{type(error).__name__}: {error}"
        return End(number, status, scrub(words))

    def _leave(self, seconds: float) -> None:
        """Wait for the processes that this one has started; kill what does not end."""
        until = time.monotonic() + seconds
        for child in self._children:
            try:
                child.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _wait(self, holds: Callable[[], bool], seconds: float) -> bool:
        with self._change:
            return self._change.wait_for(holds, seconds)

    def _say(self, line: socket.socket, end: End) -> None:
        self._send(line, {"number": end.number, "status": end.status, "reason": end.reason})

    @staticmethod
    def _send(line: socket.socket, content: dict[str, Any]) -> None:
        with suppress(OSError):  # it is gone, which its line says
            line.sendall(json.dumps(content).encode() + b"\n")


def _nothing(error: BaseException) -> None:
    """Stand in for what is to be done before a process is ended by force."""


def _free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
