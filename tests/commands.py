"""Commands as a user types them, in the test's own process.

Starting Python and importing torch takes seconds a command; tests start a process only where that
is what they test.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig

from flair2_exp.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


def answer(*arguments: str) -> Answer:
    """Run a command; what Hydra sets for a whole process is put back at the end."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with _process_put_back(), redirect_stdout(out), redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
    return Answer(status, out.getvalue(), err.getvalue())


def forked(action: Callable[[], object]) -> int:
    """Do something in a copy of this process; return its exit status, or the negative signal."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # not reached by what ends its process
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def _process_put_back() -> Iterator[None]:
    root, hydra = logging.getLogger(), HydraConfig.instance()
    handlers, level, config = root.handlers[:], root.level, hydra.cfg
    path = sys.path[:]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        hydra.cfg = config
        sys.path[:] = path
        own = "flair2_exp.projects"  # whose finders go; others are of what was imported meanwhile
        sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != own]
