"""`flair2-exp ui`: MLflow's pages of the runs that are kept here, on this machine alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import Final

import click

from flair2_exp.cli.verbs import PROGRAM, option, verb
from flair2_exp.errors import ConfigError
from flair2_exp.results.finding import local_store

_HOST: Final = "127.0.0.1"
_TRIES: Final = 20
"""Ports that are tried from the wanted one on."""
_SECONDS: Final = 10.0
"""In which MLflow must end after a signal."""


@verb(
    "ui",
    examples="""
    flair2-exp ui
    flair2-exp ui --port 5001
    """,
)
@option(
    "--port", type=click.IntRange(1, 65535), default=5000, show_default=True, metavar="N",
    help="Where it answers; the next free one, where this one is taken.",
)  # fmt: skip
def command(port: int) -> int:
    """Show the runs of the local MLflow store in the browser, until Ctrl-C.

    The store is mlruns/ in the folder where you are, or in FLAIR2_EXP_ROOT. It answers on this
    machine alone (127.0.0.1); from another one, use a tunnel: `ssh -L 5000:127.0.0.1:5000 HOST`.
    """
    from flair2_exp.tracking.store import database_path, open_store

    uri = local_store()
    folder = database_path(uri).absolute().parent
    if not database_path(uri).is_file():
        raise ConfigError(
            f"{folder}: no runs here yet. Make one with `{PROGRAM} preset=tiny "
            "name=demo`, or go to the folder that has them."
        )
    free = _free_port(port)
    if free != port:
        print(f"Port {port} is taken; this is {free}.")
    from flair2_exp.tracking.view import address

    store = open_store(uri)  # which sets its paths right where the folder has moved
    print(
        f"MLflow for {folder}, until Ctrl-C (it takes some seconds to answer):\n"
        f"{address(f'{_HOST}:{free}', store)}",
        flush=True,
    )
    return _serve(uri, free)


def _free_port(wanted: int) -> int:
    """Return the first free port from the wanted one on.

    Raises:
        ConfigError: There is none near.
    """
    for port in range(wanted, min(wanted + _TRIES, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return port
    raise ConfigError(f"--port {wanted}: this and the {_TRIES - 1} after it are taken.")


def _serve(uri: str, port: int) -> int:
    """Run MLflow's server until it ends, or until Ctrl-C or SIGTERM, which end it with all it has.

    Returns:
        0 where somebody ended it, 1 where it ended by itself: it has said why.
    """
    line = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri,
        "--host", _HOST, "--port", str(port), "--workers", "1",
        "--uvicorn-opts", "--log-level warning",
    ]  # fmt: skip
    # In a session of its own, so that it and its workers are ended once, by us, without a trace.
    quiet = {"MLFLOW_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(
        line, start_new_session=True, stdout=subprocess.DEVNULL, env={**os.environ, **quiet}
    )

    def ends(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ends)
    try:
        server.wait()
        return 1
    except KeyboardInterrupt:
        print("\nMLflow has ended.")
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End a server and its workers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return
