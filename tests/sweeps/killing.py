"""Starts a command again and again, killing it at random moments, until it ends by itself.

Run as a program: `python killing.py SEED MOST_SECONDS ARGUMENT...`. The heavy imports are done
once, and each attempt is a fork: killing is what is tested, not importing. Prints the number of
kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time


def attempt(arguments: list[str], seconds: float) -> int | None:
    """Run the command in a fork for at most `seconds`; its status, or None where it was killed."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        from flair2_exp.cli.main import main

        status = 0
        try:
            main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(status)
    status_of_child = wait(child, seconds)
    if status_of_child is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return status_of_child


def wait(child: int, seconds: float) -> int | None:
    """Wait for a child process for at most `seconds`; its status, or None where it still runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def kill_until_done() -> None:
    """Kill until done; after many kills let it end."""
    seed, most, arguments = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    import lightning
    import mlflow
    import segmentation_models_pytorch
    import torch

    import flair2_exp.lifecycle.experiment
    import flair2_exp.training.task

    assert all((lightning, mlflow, segmentation_models_pytorch, flair2_exp.lifecycle.experiment))
    torch.set_num_threads(1)
    moments, kills = random.Random(seed), 0
    while True:
        seconds = moments.uniform(1.0, most) if kills < 12 else 3600.0
        status = attempt(arguments, seconds)
        if status is not None:
            print(f"kills: {kills}", flush=True)
            sys.exit(status)
        kills += 1


if __name__ == "__main__":
    kill_until_done()
