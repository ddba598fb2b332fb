"""A server on loopback that answers as a test plans, and zip files for it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
import zipfile
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

BODY = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


@dataclasses.dataclass
class Answer:
    """What a server sends: fewer bytes than its length says where `cut` is set."""

    status: int
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    chunked: bool = False
    repeats: int = 1
    """Times that a chunked body is sent."""


@dataclasses.dataclass
class Request:
    """What a server was asked."""

    path: str
    range: str | None
    authorization: str | None = None

    @property
    def first(self) -> int:
        """The first byte asked for."""
        return int(self.range.removeprefix("bytes=").removesuffix("-")) if self.range else 0


class Server:
    """An HTTP server on loopback that answers its n-th request as its plan says."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.plan: Callable[[int, Request], Answer] = lambda number, request: Answer(404)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                request = Request(
                    self.path, self.headers.get("Range"), self.headers.get("Authorization")
                )
                outer.requests.append(request)
                answer = outer.plan(len(outer.requests), request)
                self.close_connection = True
                self.send_response(answer.status)
                headers = {"Content-Length": str(len(answer.body))}
                if answer.chunked:
                    headers = {"Transfer-Encoding": "chunked"}
                for name, value in (headers | {"Connection": "close"} | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the client had enough
                    if answer.chunked:
                        chunk = f"{len(answer.body):x}\r\n".encode() + answer.body + b"\r\n"
                        for _ in range(answer.repeats):
                            self.wfile.write(chunk)
                        self.wfile.write(b"" if answer.cut else b"0\r\n\r\n")
                    else:
                        self.wfile.write(answer.body[: answer.cut])

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def ranged(body: bytes, request: Request) -> Answer:
    """A correct server's answer: the range asked for, else the whole."""
    if request.range is None:
        return Answer(200, body=body)
    if request.first >= len(body):
        return Answer(416, {"Content-Range": f"bytes */{len(body)}"})
    span = f"bytes {request.first}-{len(body) - 1}/{len(body)}"
    return Answer(206, {"Content-Range": span}, body[request.first :])


def cut(answer: Answer, at: int) -> Answer:
    return dataclasses.replace(answer, cut=at)


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def zipped(path: Path, files: Mapping[Any, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write files under their names, or their ZipInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
