"""SLURM's client commands, and what a job learns of itself; nothing heavy is imported.

SLURM is asked by its own commands: they are wherever jobs are submitted, and a Python binding would
have to be built for each site's version.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Final

JOB: Final = "FLAIR2_SLURM"
"""The variable that names the job, as `1234_3`, where `hydra/launcher=slurm` has submitted it: the
variables of SLURM's own may be those of somebody's interactive allocation."""

_UNREACHABLE: Final = re.compile(
    r"unable to contact|timed out|connection (refused|reset|timed)|zero bytes were|"
    r"transport endpoint|not responding|temporarily|communication (connection )?failure",
    re.IGNORECASE,
)
"""What a client says when it was not SLURM that has refused."""


class RefusedError(Exception):
    """A client's own words on why it did not do what it was told."""


class SilentError(Exception):
    """A client that did not answer in time, or could not reach SLURM: what it did is not known."""


def call(
    words: Sequence[str],
    *,
    seconds: float = 30.0,
    lines: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run one of SLURM's client commands; return what it printed.

    Args:
        words: The command.
        seconds: How long to wait for its answer.
        lines: What it reads from standard input.
        environment: Its variables; None: this process's.

    Raises:
        RefusedError: It failed, or is not here.
        SilentError: It did not answer.
    """
    try:
        answer = subprocess.run(
            list(words),
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SilentError(f"{words[0]} did not answer within {seconds:g} seconds") from None
    except OSError as error:
        raise RefusedError(f"{words[0]}: {error.strerror}") from error
    if answer.returncode == 0:
        return answer.stdout
    prefix = re.compile(rf"^({re.escape(words[0])}: )?(error: )?")
    said = [prefix.sub("", line).strip() for line in answer.stderr.splitlines() if line.strip()]
    text = "; ".join(said) or f"{words[0]} ended with status {answer.returncode}"
    raise (SilentError if _UNREACHABLE.search(text) else RefusedError)(text)


def call_patiently(words: Sequence[str], *, tries: int = 3, lines: Sequence[str] = ()) -> str:
    """Run a client that may be run twice, again where it does not answer; see `call`."""
    for pause in range(1, tries):
        try:
            return call(words, lines=lines)
        except SilentError:
            time.sleep(pause)
    return call(words, lines=lines)


def fields_of(line: str) -> dict[str, str]:
    """Return the fields of a job as `scontrol -o show job` prints them: `JobId=12 JobName=...`."""
    return dict(re.findall(r"(?:^|\s)([A-Z][\w/:]*)=(\S*)", line))


def goes_on(number: int) -> bool:
    """Return whether SLURM starts this process's job again after a signal that ends the process.

    It does where the job makes room for another one (`PreemptTime`, of this start), or at its time
    limit, of which USR1 tells; not where somebody has cancelled it. False outside of a job of
    `hydra/launcher=slurm`.

    Args:
        number: Of the signal.
    """
    job, asked = os.environ.get(JOB), number in (signal.SIGUSR1, signal.SIGUSR2)
    if not job:
        return False
    try:  # the whole grace may be half a minute
        fields = fields_of(call(["scontrol", "-o", "show", "job", job], seconds=8.0))
    except (RefusedError, SilentError):
        return asked
    preempted, started = fields.get("PreemptTime", ""), fields.get("StartTime", "")
    if preempted[:1].isdigit() and preempted >= started:
        return True
    return asked and fields.get("JobState") == "RUNNING"  # else it is on its way out
