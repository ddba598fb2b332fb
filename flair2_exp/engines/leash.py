"""Runs a command that ends with whoever started it: `python leash.py FD COMMAND …`.

A job of a Ray worker must not outlive it, and must not die as it does: Ray ends workers, and the
children that it finds, with SIGKILL. Linux sends a process a signal when its parent dies
(PR_SET_PDEATHSIG of prctl(2)): here SIGTERM, at which a job writes its checkpoint and ends. This
process stands between the two and dies of the worker's death, or of a signal; by its own death the
job gets one SIGTERM, and never a second one, which would end it at once. Nothing of the package is
imported. It writes the job's process number to the file descriptor FD.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def leash(parent: int) -> None:
    """Ask for a SIGTERM when the parent of that number dies, or has died."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """Run the command, and return its exit status as a shell gives it."""
    number, *command = arguments
    held = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)  # until there is a job that gets it
    leash(int(os.environ.pop("FLAIR2_LEASH")))
    me = os.getpid()

    def before() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        leash(me)

    # Safe here: this process has no threads.
    job = subprocess.Popen(command, preexec_fn=before)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    os.write(int(number), str(job.pid).encode())
    os.close(int(number))
    status = job.wait()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
