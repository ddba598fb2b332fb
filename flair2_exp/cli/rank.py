"""A further process of a training on several devices, as `lifecycle/peers.py` starts it.

It reads what the first process has composed and checked from its standard input; a command given
again would compose anew, and a sweep's would run the sweep again.
"""

from __future__ import annotations

import logging
import socket
import sys


def main() -> None:
    """Be one process of a training; the exit status is the command's."""
    from flair2_exp import streams
    from flair2_exp.cli.main import explained

    streams.use_utf8()
    streams.settle()
    with explained():
        _run(socket.socket(fileno=int(sys.argv[1])))


class _Unheard:
    """Stands for the trial to which the first process alone reports."""

    def report(self, value: float, step: int) -> bool:
        """Let training go on: whether it does, the first process says to all."""
        return False

    def prune(self, step: int) -> None:
        """Leave that to the first process."""


def _run(line: socket.socket) -> None:
    import pickle

    from flair2_exp.config.compose import register
    from flair2_exp.lifecycle.experiment import Membership, run
    from flair2_exp.lifecycle.peers import PeerError
    from flair2_exp.projects import make_importable
    from flair2_exp.signals import Terminated, number_of

    register()
    job = pickle.load(sys.stdin.buffer)
    for project in job.projects:
        make_importable(project / "conf")
    logging.basicConfig(level=logging.WARNING, format=f"process {job.rank.number}: %(message)s")
    try:
        membership = Membership(reporter=_Unheard()) if job.reported else None
        run(job.config, job.folder, job.overrides, membership, rank=job.rank, line=line)
    except (KeyboardInterrupt, Terminated) as error:
        sys.exit(128 + number_of(error))  # the first process says so
    except PeerError as error:
        if error.explained:
            sys.exit(error.status)
        raise


if __name__ == "__main__":
    main()
