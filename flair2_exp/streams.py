"""What surrounds a command, its streams and variables: none of that is a reason to fail its work.

A terminal may lack a letter, a reader such as `head` may leave, a shell may close the output, the
disk under a redirection may be full, a variable may be meant for another program.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final, NoReturn

_NAMES: Final = ("stdout", "stderr")


class _Output(io.FileIO):
    """A stream's file that drops everything from the first write on that fails.

    Attributes:
        error: Of that write; None as long as all is written.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> Any:
        """Write, or drop."""
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)


_outputs: Final[dict[str, _Output]] = {}


def settle() -> None:
    """Prepare this process's streams and variables; that may be repeated.

    What the streams' encoding lacks is escaped, what cannot be written is dropped, and a stream
    that the shell has closed leads nowhere. A stream that somebody has put in their place is left
    alone.
    """
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend cannot be imported elsewhere
    # Threads that wait for each other hold their core, spinning 300,000 times, before they give it
    # away: on a machine that others use as well, trainings took 25 times as long. A fifteenth of
    # that costs an idle machine nothing; none at all (OMP_WAIT_POLICY=PASSIVE) half as much time
    # again. Read when torch is imported.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "20000"
    if os.environ.pop("PYTHONWARNINGS", ""):  # as errors, those of libraries would end a run
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would get what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in _NAMES:
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper:
            stream.flush()
            _outputs[name] = _Output(stream.fileno(), "w", closefd=False)
            settled = io.TextIOWrapper(
                io.BufferedWriter(_outputs[name]),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, settled)


def use_utf8() -> None:
    """Start this process anew in Python's UTF-8 mode where the locale has file names in another.

    Else no folder could be called `é`: not by us, and not by the databases that we write.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable and sys.orig_argv:
        command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONUTF8": "1"})


def loss() -> int:
    """Return the exit status of a command whose output is all it is for; 0 where all was written.

    141, as of a program that SIGPIPE ends, where the reader has left; 1 for another reason, which
    is named on standard error.
    """
    sys.stdout.flush()
    error = _outputs["stdout"].error if "stdout" in _outputs else None
    if error is None:
        return 0
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    print(f"error: the output cannot be written: {error.strerror}.", file=sys.stderr)
    return 1


def run(main: Callable[[], int]) -> NoReturn:
    """Run a script's `main` with settled streams, and exit with its status, or with `loss`."""
    use_utf8()
    settle()
    status = main()
    sys.exit(status or loss())
