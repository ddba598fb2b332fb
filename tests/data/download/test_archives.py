"""The downloader against servers on loopback that misbehave, and archives that mean harm."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair2_exp.config.data import DatasetConfig
from flair2_exp.data.download import transfer, unpack
from flair2_exp.data.download.archives import (
    ARCHIVES,
    Archive,
    Outcome,
    download,
    placement,
    select,
)
from flair2_exp.data.download.transfer import Patience, fetch
from flair2_exp.data.layout import locate
from flair2_exp.errors import ConfigError, DataError
from tests.data.trees import write_tree

QUICK = Patience(attempts=3, wait=0.001, longest_wait=0.01, timeout=(2.0, 2.0))
BODY = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


@dataclasses.dataclass
class Answer:
    """What a server sends: fewer bytes than its length says where `cut` is set."""

    status: int
    headers: dict[str, str]
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
    if_range: str | None

    @property
    def first(self) -> int:
        """The first byte asked for."""
        return int(self.range.removeprefix("bytes=").removesuffix("-")) if self.range else 0


Plan = Callable[[int, Request], Answer]


class Server:
    """An HTTP server on loopback that answers its n-th request as its plan says."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.plan: Plan = lambda number, request: Answer(404, {})
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = Request(self.path, self.headers.get("Range"), self.headers.get("If-Range"))
                outer.requests.append(asked)
                answer = outer.plan(len(outer.requests), asked)
                self.close_connection = True
                self.send_response(answer.status)
                headers = {"Content-Length": str(len(answer.body)), "Connection": "close"}
                if answer.chunked:
                    headers = {"Transfer-Encoding": "chunked", "Connection": "close"}
                for name, value in (headers | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if answer.chunked:
                    chunk = f"{len(answer.body):x}\r\n".encode() + answer.body + b"\r\n"
                    with contextlib.suppress(ConnectionError):  # the client had enough
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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.close()


def ranged(body: bytes, request: Request, *, etag: str = '"v1"') -> Answer:
    """A correct server's answer: the range asked for of the version asked for, else the whole."""
    if request.range is None or (request.if_range not in (None, etag)):
        return Answer(200, {"ETag": etag}, body)
    rest = body[request.first :]
    span = f"bytes {request.first}-{len(body) - 1}/{len(body)}"
    return Answer(206, {"ETag": etag, "Content-Range": span}, rest)


def cut(answer: Answer, at: int) -> Answer:
    return dataclasses.replace(answer, cut=at)


# --- transfer ---------------------------------------------------------------------------------


def test_a_sound_file_arrives_whole_and_leaves_nothing_beside_it(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: ranged(BODY, request)
    seen: list[tuple[int, int | None]] = []
    fetch(
        f"{server.url}/a.zip",
        tmp_path / "a.zip",
        size=305_000,
        md5=md5(BODY),
        report=lambda done, total: seen.append((done, total)),
    )
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))


def test_a_dropped_connection_goes_on_from_the_bytes_at_hand(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: cut(ranged(BODY, request), 100_000)
    fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    starts = [request.first for request in server.requests]
    assert starts == sorted(set(starts)), "every request asks for more than the one before"
    assert len(starts) > 2
    assert all(request.if_range == '"v1"' for request in server.requests[1:])


def test_a_later_call_goes_on_and_hashes_the_part_already_there(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: (
        cut(ranged(BODY, request), 150_000) if n == 1 else Answer(503, {})
    )
    with pytest.raises(DataError, match="gave up after 3 tries"):
        fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    held = (tmp_path / "a.part").stat().st_size
    assert 0 < held <= 150_000
    server.plan = lambda n, request: ranged(BODY, request)
    read: list[tuple[int, int | None]] = []
    fetch(
        f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK,
        checking=lambda done, total: read.append((done, total)),
    )  # fmt: skip
    assert read[-1] == (held, held)
    assert server.requests[-1].first == held
    assert (tmp_path / "a").read_bytes() == BODY


def test_an_interrupted_call_leaves_what_it_got_for_the_next(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: ranged(BODY, request)

    def interrupt(done: int, total: int | None) -> None:
        if done > 120_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/a", tmp_path / "a", report=interrupt)
    assert not (tmp_path / "a").exists()
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert server.requests[-1].first > 120_000
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_part_that_is_complete_already_needs_no_network(server: Server, tmp_path: Path) -> None:
    state = {"url": f"{server.url}/a", "total": len(BODY), "validator": None}
    (tmp_path / "a.part").write_bytes(BODY)
    (tmp_path / "a.part.json").write_text(json.dumps(state))
    fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests == []


@pytest.mark.parametrize("state", [None, "{", "[]", '{"url": "http://127.0.0.1/b"}', "null"])
def test_a_part_of_unknown_origin_is_not_built_upon(
    server: Server, tmp_path: Path, state: str | None
) -> None:
    (tmp_path / "a.part").write_bytes(OTHER[:1000])
    if state is not None:
        (tmp_path / "a.part.json").write_text(state)
    server.plan = lambda n, request: ranged(BODY, request)
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests[0].range is None


def test_two_versions_of_a_file_are_never_mixed(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: (
        cut(ranged(BODY, request), 200_000) if n == 1 else ranged(OTHER, request, etag='"v2"')
    )
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == OTHER


def test_a_server_that_ignores_if_range_is_caught_by_its_new_etag(
    server: Server, tmp_path: Path
) -> None:
    def plan(number: int, request: Request) -> Answer:
        if number == 1:
            return cut(ranged(BODY, request), 200_000)
        return ranged(OTHER, dataclasses.replace(request, if_range=None), etag='"v2"')

    server.plan = plan
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == OTHER


def test_without_etag_date_and_md5_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: Answer(200, {}, BODY, cut=100_000 if n == 1 else None)
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.range for request in server.requests] == [None, None]


def test_a_weak_etag_is_not_taken_for_a_proof(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: Answer(
        200, {"ETag": 'W/"v1"'}, BODY, cut=100_000 if n == 1 else None
    )
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert [request.range for request in server.requests] == [None, None]


def test_a_server_that_ignores_ranges_starts_the_file_over(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: Answer(
        200, {"ETag": '"v1"'}, BODY, cut=200_000 if n == 1 else None
    )
    fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert server.requests[1].first > 0
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("cuts", [(200_000, 200_000), (100_000, 200_000)])
def test_a_server_that_never_gets_further_is_given_up(
    server: Server, tmp_path: Path, cuts: tuple[int, int]
) -> None:
    """Further than ever before: going over the same bytes again is no progress."""

    def plan(number: int, request: Request) -> Answer:
        return Answer(200, {"ETag": '"v1"'}, BODY, cut=cuts[number % 2] if number < 20 else None)

    server.plan = plan
    with pytest.raises(DataError, match="gave up after 3 tries in a row without a new byte"):
        fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert len(server.requests) == 4, "the first brought bytes, three more did not"


LIES: dict[str, Callable[[Request], Answer]] = {
    "another offset": lambda request: Answer(
        206, {"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}, BODY
    ),
    "another total": lambda request: Answer(
        206, {"Content-Range": f"bytes {request.first}-{len(BODY)}/{len(BODY) + 1}"}, BODY
    ),
    "backwards": lambda request: Answer(
        206, {"Content-Range": f"bytes {request.first}-{request.first - 1}/{len(BODY)}"}, BODY
    ),
    "beyond the end": lambda request: Answer(
        206, {"Content-Range": f"bytes {request.first}-{len(BODY)}/{len(BODY)}"}, BODY
    ),
    "no range told": lambda request: Answer(206, {}, BODY[request.first :]),
    "nonsense": lambda request: Answer(206, {"Content-Range": "bytes */x"}, BODY),
    "other bytes than told": lambda request: Answer(
        206,
        {"Content-Range": f"bytes {request.first}-{len(BODY) - 1}/{len(BODY)}"},
        BODY,
    ),
    "fewer bytes than fetched": lambda request: Answer(
        416, {"Content-Range": f"bytes */{request.first - 1}"}
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_about_ranges_is_asked_for_the_whole(
    server: Server, tmp_path: Path, lie: str
) -> None:
    def plan(number: int, request: Request) -> Answer:
        if number == 1:
            return cut(ranged(BODY, request), 200_000)
        return LIES[lie](request) if request.range else ranged(BODY, request)

    server.plan = plan
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.range is None for request in server.requests] == [True, False, True]


def test_a_range_that_nobody_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: Answer(
        206, {"Content-Range": f"bytes 10-{len(BODY) - 1}/{len(BODY)}"}, BODY[10:]
    )
    with pytest.raises(DataError, match="answers 206"):
        fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)


def test_a_server_may_hand_out_a_range_in_pieces(server: Server, tmp_path: Path) -> None:
    def plan(number: int, request: Request) -> Answer:
        if number == 1:
            return cut(ranged(BODY, request), 100_000)
        last = min(request.first + 70_000, len(BODY)) - 1
        span = f"bytes {request.first}-{last}/{len(BODY)}"
        return Answer(206, {"Content-Range": span}, BODY[request.first : last + 1])

    server.plan = plan
    fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_body_of_unannounced_length_is_taken_to_its_proper_end(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: Answer(200, {}, BODY, chunked=True, cut=1 if n == 1 else None)
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_file_of_unannounced_length_is_complete_with_its_last_range(
    server: Server, tmp_path: Path
) -> None:
    def plan(number: int, request: Request) -> Answer:
        if request.range:
            return ranged(BODY, request)
        return Answer(200, {"ETag": '"v1"'}, BODY[:200_000], chunked=True, cut=1)

    server.plan = plan
    fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.first for request in server.requests] == [0, 200_000]


@pytest.mark.parametrize("bound", [{"size": 300_000}, {"limit": 330_000}])
def test_a_body_of_unannounced_length_is_refused_once_it_is_too_long(
    server: Server, tmp_path: Path, bound: dict[str, int]
) -> None:
    server.plan = lambda n, request: Answer(200, {}, BODY, chunked=True, repeats=100)
    most: list[int] = []
    with pytest.raises(DataError, match=r"sent 3\d\d,\d{3} bytes where .* 3\d0,000 are") as told:
        fetch(
            f"{server.url}/a", tmp_path / "a", **bound, md5=md5(BODY), patience=QUICK,
            report=lambda done, _: most.append(done),
        )  # fmt: skip
    assert str(told.value).count("\n") == 1
    assert max(most) <= 330_000
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_body_of_unannounced_length_is_refused_where_it_ends_too_early(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: Answer(200, {}, BODY, chunked=True)
    with pytest.raises(DataError, match="sent 300,000 bytes where about 350,000 are published"):
        fetch(f"{server.url}/a", tmp_path / "a", size=350_000, patience=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_unannounced_length_that_is_too_long_already_is_dropped(
    server: Server, tmp_path: Path
) -> None:
    state = {"url": f"{server.url}/a", "total": None, "validator": '"v1"'}
    (tmp_path / "a.part").write_bytes(BODY + BODY)
    (tmp_path / "a.part.json").write_text(json.dumps(state))
    server.plan = lambda n, request: ranged(BODY, request)
    fetch(f"{server.url}/a", tmp_path / "a", size=len(BODY), patience=QUICK)
    assert [request.range for request in server.requests] == [None]


def test_wrong_bytes_are_removed_and_fetched_once_more(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: ranged(OTHER if n == 1 else BODY, request, etag=f'"{n}"')
    fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY


def test_wrong_bytes_twice_are_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: ranged(OTHER, request)
    with pytest.raises(DataError, match=f"MD5 {md5(OTHER)} where {md5(BODY)} is published"):
        fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert len(server.requests) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_was_damaged_on_disk_is_found_by_the_md5(
    server: Server, tmp_path: Path
) -> None:
    state = {"url": f"{server.url}/a", "total": len(BODY), "validator": '"v1"'}
    (tmp_path / "a.part").write_bytes(b"\0" * 1000)
    (tmp_path / "a.part.json").write_text(json.dumps(state))
    server.plan = lambda n, request: ranged(BODY, request)
    fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert [request.first for request in server.requests] == [1000, 0]
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("length", [250_000, 340_000])
def test_a_file_of_another_size_than_published_is_refused_at_once(
    server: Server, tmp_path: Path, length: int
) -> None:
    server.plan = lambda n, request: Answer(200, {}, bytes(length))
    with pytest.raises(DataError, match=f"{length:,} bytes where about 300,000"):
        fetch(f"{server.url}/a", tmp_path / "a", size=300_000, patience=QUICK)
    assert len(server.requests) == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_told_at_once(server: Server, tmp_path: Path, status: int) -> None:
    server.plan = lambda n, request: Answer(status, {})
    with pytest.raises(DataError, match=rf"answers {status}(.|\n)*--base-url"):
        fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(server: Server, tmp_path: Path, status: int) -> None:
    server.plan = lambda n, request: Answer(status, {}) if n < 3 else ranged(BODY, request)
    fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY


def test_waits_grow_and_follow_the_server_up_to_a_bound(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    replies = [{}, {"Retry-After": "30"}, {"Retry-After": "86400"}, {"Retry-After": "soon"}]
    server.plan = lambda n, request: Answer(503, replies[n - 1] if n <= 4 else {})
    patience = Patience(attempts=6, wait=1.0, longest_wait=60.0, timeout=(2.0, 2.0))
    with pytest.raises(DataError, match="gave up"):
        fetch(f"{server.url}/a", tmp_path / "a", patience=patience)
    assert waits == [1.0, 30.0, 60.0, 8.0, 16.0]


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a: gave up after 3 tries"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", patience=QUICK)


def test_an_encoded_body_is_not_taken_for_the_file(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: Answer(200, {"Content-Encoding": "gzip"}, BODY)
    with pytest.raises(DataError, match="encoded as 'gzip'"):
        fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)


def test_a_redirect_is_followed_with_its_range(server: Server, tmp_path: Path) -> None:
    def plan(number: int, request: Request) -> Answer:
        if request.path == "/a":
            return Answer(302, {"Location": "/elsewhere/b"})
        return cut(ranged(BODY, request), 200_000)

    server.plan = plan
    fetch(f"{server.url}/a", tmp_path / "a", md5=md5(BODY), patience=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests[-1].path == "/elsewhere/b"
    assert server.requests[-1].first > 0


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("/a", "redirects more than 5 times"),
        ("file:///etc/hostname", "not an http or https address"),
        ("ftp://127.0.0.1/a", "not an http or https address"),
        ("", "redirects to nowhere"),
    ],
)
def test_a_redirect_that_leads_astray_is_not_followed(
    server: Server, tmp_path: Path, location: str, complaint: str
) -> None:
    server.plan = lambda n, request: Answer(301, {"Location": location} if location else {})
    with pytest.raises(DataError, match=complaint):
        fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert not (tmp_path / "a").exists()


def test_https_is_never_left_for_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    asked: list[str] = []

    def get(self: requests.Session, url: str, **_: object) -> requests.Response:
        asked.append(url)
        response = requests.Response()
        response.status_code = 302
        response.headers["Location"] = "http://127.0.0.1/a"
        response.raw = BytesIO()
        return response

    monkeypatch.setattr(requests.Session, "get", get)
    with pytest.raises(DataError, match="from https to http://127"):
        fetch("https://127.0.0.1/a", tmp_path / "a", patience=QUICK)
    assert asked == ["https://127.0.0.1/a"]


@pytest.mark.parametrize("url", ["file:///etc/hostname", "a.zip", "ftp://127.0.0.1/a"])
def test_an_address_of_another_kind_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="not an http or https address"):
        fetch(url, tmp_path / "a", patience=QUICK)


def test_a_full_disk_is_told_and_keeps_what_came_in(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan = lambda n, request: ranged(BODY, request)
    write = transfer._Transfer._write

    def full(self: transfer._Transfer, file: BytesIO, chunk: bytes) -> None:
        class Full:
            def write(self, _: bytes) -> int:
                raise OSError(28, "No space left on device")

        write(self, Full() if self.offset > 100_000 else file, chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer._Transfer, "_write", full)
    with pytest.raises(DataError, match=r"No space left on device after 131,072 bytes"):
        fetch(f"{server.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a.part").read_bytes() == BODY[:131_072]


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 299_999), max_size=4), obeys=st.lists(st.booleans(), max_size=4)
)
def test_whatever_breaks_the_file_arrives_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], obeys: list[bool]
) -> None:
    def plan(number: int, request: Request) -> Answer:
        obedient = number > len(obeys) or obeys[number - 1]
        answer = ranged(BODY, request if obedient else Request(request.path, None, None))
        return cut(answer, cuts[number - 1]) if number <= len(cuts) else answer

    running = Server()
    try:
        running.plan = plan
        target = tmp_path_factory.mktemp("a") / "a"
        patience = dataclasses.replace(QUICK, attempts=10, wait=0.0)
        fetch(f"{running.url}/a", target, md5=md5(BODY), patience=patience)
    finally:
        running.close()
    assert target.read_bytes() == BODY


# --- archives ---------------------------------------------------------------------------------

ROOMY = unpack.Limits(size=10_000_000)


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def with_member(path: Path, info: zipfile.ZipInfo, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sound.txt", b"sound")
        archive.writestr(info, content)
    return path


def unpacked(archive: Path, folder: Path, limits: unpack.Limits = ROOMY) -> dict[str, bytes]:
    unpack.unpack(archive, unpack.inspect(archive, limits), folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_sound_archive_unpacks_to_its_files(tmp_path: Path, method: int) -> None:
    files = {"a/b/c.bin": BODY, "a/empty": b"", "é.txt": b"accents"}
    archive = zipped(tmp_path / "a.zip", files, method)
    assert unpacked(archive, tmp_path / "out") == files


def test_a_folder_left_by_an_interrupted_call_is_emptied_first(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "half").write_bytes(b"half")
    archive = zipped(tmp_path / "a.zip", {"whole": b"whole"})
    assert unpacked(archive, tmp_path / "out") == {"whole": b"whole"}


def test_what_a_mac_adds_is_left_out(tmp_path: Path) -> None:
    files = {"a/b": b"1", "__MACOSX/a/._b": b"2", "a/.DS_Store": b"3"}
    assert unpacked(zipped(tmp_path / "a.zip", files), tmp_path / "out") == {"a/b": b"1"}


EVIL_NAMES = (
    "../evil", "a/../../evil", "/evil", "..", "a/..", "//evil", "C:evil", "C:/evil",
    "a\\..\\evil", "a\nb", "evil\x07",
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = with_member(tmp_path / "a.zip", zipfile.ZipInfo(name))
    with pytest.raises(DataError, match="holds the path"):
        unpacked(archive, tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]


def test_a_name_cut_short_by_a_nul_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"innocent_evil": b"x"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"innocent_evil", b"innocent\0evil"))
    with pytest.raises(DataError, match="holds the path"):
        unpacked(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK]
)
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    archive = with_member(tmp_path / "a.zip", info, b"/etc/hostname")
    with pytest.raises(DataError, match="'link', which is a link or another special file"):
        unpacked(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_permissions_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("program")
    info.external_attr = (stat.S_IFREG | 0o4777) << 16
    unpacked(with_member(tmp_path / "a.zip", info), tmp_path / "out")
    assert (tmp_path / "out" / "program").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        (unpack.Limits(size=1_000_000), "3,000,000 bytes unpacked, more than 1,000,000"),
        (unpack.Limits(size=10_000_000, ratio=100), "more than 100 to 1"),
        (unpack.Limits(size=10_000_000, ratio=2000, members=2), "3 members, more than 2"),
    ],
)
def test_a_bomb_is_refused_before_a_byte_is_written(
    tmp_path: Path, limits: unpack.Limits, complaint: str
) -> None:
    archive = zipped(tmp_path / "a.zip", {name: bytes(1_000_000) for name in "abc"})
    with pytest.raises(DataError, match=complaint):
        unpacked(archive, tmp_path / "out", limits)
    assert not (tmp_path / "out").exists()


def test_a_member_cannot_grow_beyond_what_it_announced(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a": bytes(1_000_000)})
    lied = archive.read_bytes().replace((1_000_000).to_bytes(4, "little"), b"\x0a\0\0\0")
    archive.write_bytes(lied)
    with pytest.raises(DataError, match="a is damaged"):
        unpacked(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a").stat().st_size <= 10


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/b", b"1")
        archive.writestr("a/./b", b"2")
    with pytest.raises(DataError, match="'a/b' twice"):
        unpacked(tmp_path / "a.zip", tmp_path / "out")


def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a": b"1", "a/b": b"2"})
    with pytest.raises(DataError, match="'a' both as a file and as a folder"):
        unpacked(archive, tmp_path / "out")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"secret": b"x"}, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match="'secret', which is encrypted"):
        unpacked(archive, tmp_path / "out")


def test_a_compression_nobody_knows_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"odd": b"x"}, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(signature) + offset] = 77
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match="odd is damaged"):
        unpacked(archive, tmp_path / "out")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_truncated_archive_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("a")
    archive = zipped(folder / "a.zip", {"a": BODY[:500], "b": BODY[500:900]})
    content = archive.read_bytes()
    archive.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError, match="not a readable zip file"):
        unpacked(archive, folder / "out")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_archive_never_writes_wrong_bytes_nor_anything_outside(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("a")
    files = {"a": BODY[:500], "d/b": bytes(400)}
    archive = zipped(folder / "a.zip", files)
    content = bytearray(archive.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    archive.write_bytes(bytes(content))
    try:
        found = unpacked(archive, folder / "in" / "out")
    except DataError:
        found = {}
    # A flipped bit in a name is no wrong byte of a file; its content still must be right.
    assert all(body in files.values() for body in found.values())
    outside = [path for path in folder.rglob("*") if folder / "in" not in (path, *path.parents)]
    assert outside == [archive]


# --- the whole --------------------------------------------------------------------------------


def entry(name: str, content: bytes, part: str = "part", **changes: object) -> Archive:
    archive = Archive(part, name, len(content), 5_000_000, md5(content))
    return dataclasses.replace(archive, **changes)  # type: ignore[arg-type]


def served(server: Server, archives: dict[str, bytes]) -> None:
    def plan(number: int, request: Request) -> Answer:
        name = request.path.removeprefix("/").removesuffix(".zip")
        return ranged(archives[name], request) if name in archives else Answer(404, {})

    server.plan = plan


@pytest.fixture
def sen(server: Server, tmp_path: Path) -> Archive:
    files = {"flair_sen_train/D004_2021/a.npy": b"1", "flair_sen_train/D006_2020/b.npy": b"2"}
    content = zipped(tmp_path / "made" / "sen.zip", files).read_bytes()
    served(server, {"flair_sen_train": content})
    return entry("flair_sen_train", content)


def test_an_archive_is_fetched_unpacked_and_removed(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    to = tmp_path / "to"
    outcome = download(to, [sen], base_url=server.url + "/", patience=QUICK)
    assert outcome == (Outcome("flair_sen_train", True, True, ("flair_sen_train",)),)
    assert (to / "flair_sen_train" / "D004_2021" / "a.npy").read_bytes() == b"1"
    assert (to / "flair_sen_train" / "D006_2020" / "b.npy").read_bytes() == b"2"
    assert sorted(path.name for path in to.iterdir()) == [".flair2", "flair_sen_train"]


def test_a_second_call_does_nothing(server: Server, tmp_path: Path, sen: Archive) -> None:
    first = download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "to").rglob("*")}
    second = download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    assert second == (dataclasses.replace(first[0], fetched=False, unpacked=False),)
    assert len(server.requests) == 1
    del before[tmp_path / "to" / ".flair2" / ".lock"]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_an_unpacked_folder_that_was_removed_is_fetched_again(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    shutil.rmtree(tmp_path / "to" / "flair_sen_train")
    (again,) = download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    assert again.fetched
    assert (tmp_path / "to" / "flair_sen_train" / "D004_2021" / "a.npy").exists()


def test_archives_stay_where_that_is_asked_for(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    to = tmp_path / "to"
    download(to, [sen], base_url=server.url, keep_archives=True, patience=QUICK)
    assert md5((to / "flair_sen_train.zip").read_bytes()) == sen.md5


def test_an_archive_brought_by_other_means_is_used_and_left(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    to = tmp_path / "to"
    to.mkdir()
    shutil.copy(tmp_path / "made" / "sen.zip", to / "flair_sen_train.zip")
    (outcome,) = download(to, [sen], base_url=server.url, patience=QUICK)
    assert (outcome.fetched, outcome.unpacked) == (False, True)
    assert server.requests == []
    assert (to / "flair_sen_train.zip").exists()


def test_a_wrong_archive_brought_by_other_means_is_refused_and_left(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    to = tmp_path / "to"
    zipped(to / "flair_sen_train.zip", {"other": b""})
    with pytest.raises(DataError, match="is not the published archive"):
        download(to, [sen], base_url=server.url, patience=QUICK)
    assert (to / "flair_sen_train.zip").exists()


def test_no_archive_is_fetched_beyond_its_size_or_its_files(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    server.plan = lambda n, request: Answer(200, {}, bytes(100_000), chunked=True, repeats=200)
    for archive in (sen, dataclasses.replace(sen, size=None)):
        with pytest.raises(DataError, match="This is another file"):
            download(tmp_path / "to", [archive], base_url=server.url, patience=QUICK)
        assert not (tmp_path / "to" / "flair_sen_train.zip.part").exists()
    assert len(server.requests) == 2


def test_what_stands_in_the_way_is_not_overwritten(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    mine = tmp_path / "to" / "flair_sen_train" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    other = dataclasses.replace(sen, name="first")
    with pytest.raises(DataError, match=r"flair_sen_train is there already, and not from"):
        download(tmp_path / "to", [other, sen], base_url=server.url, patience=QUICK)
    assert mine.read_text() == "mine"
    assert server.requests == [], "told before a byte is fetched"


@pytest.mark.parametrize("step", ["downloading", "unpacking"])
def test_a_call_interrupted_at_any_step_goes_on(
    server: Server, tmp_path: Path, sen: Archive, step: str
) -> None:
    def interrupt(name: str, now: str, done: int, total: int | None) -> None:
        if now == step and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK, report=interrupt)
    assert not (tmp_path / "to" / "flair_sen_train").exists()
    download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    assert len(list((tmp_path / "to" / "flair_sen_train").rglob("*.npy"))) == 2
    assert len(server.requests) == 1, "neither the archive nor a complete part is fetched twice"
    assert not (tmp_path / "to" / "flair_sen_train.zip").exists()


def test_a_call_interrupted_between_two_moves_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"flair_2_toy_dataset/x": b"1", "table.json": b"{}"}
    content = zipped(tmp_path / "made.zip", files).read_bytes()
    served(server, {"flair_2_toy_dataset": content})
    toy = entry("flair_2_toy_dataset", content)
    replace = os.replace

    def breaking(source: Path, target: Path) -> None:
        if Path(target).name == "table.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", breaking)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "to", [toy], base_url=server.url, patience=QUICK)
    monkeypatch.undo()
    assert (tmp_path / "to" / "flair_2_toy_dataset").exists()
    download(tmp_path / "to", [toy], base_url=server.url, patience=QUICK)
    assert (tmp_path / "to" / "flair_2_toy_dataset" / "x").read_bytes() == b"1"
    assert (tmp_path / "to" / "table.json").read_bytes() == b"{}"
    assert len(server.requests) == 1


def test_what_came_into_the_way_after_unpacking_is_not_overwritten(
    server: Server, tmp_path: Path, sen: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flair2_exp.data.download.archives._Job._move", killed)
        with pytest.raises(KeyboardInterrupt):
            download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    mine = tmp_path / "to" / "flair_sen_train" / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataError, match=r"flair_sen_train is there already, and not from"):
        download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    assert mine.read_text() == "mine"
    shutil.rmtree(mine.parent)
    download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    assert len(list(mine.parent.rglob("*.npy"))) == 2


def test_a_hostile_archive_leaves_the_destination_empty(server: Server, tmp_path: Path) -> None:
    content = with_member(tmp_path / "evil.zip", zipfile.ZipInfo("../evil")).read_bytes()
    served(server, {"flair_sen_train": content})
    archive = entry("flair_sen_train", content)
    with pytest.raises(DataError, match="holds the path"):
        download(tmp_path / "to", [archive], base_url=server.url, patience=QUICK)
    kept = sorted(path.name for path in (tmp_path / "to").iterdir())
    assert kept == [".flair2", "flair_sen_train.zip"]


@pytest.mark.parametrize(("keep", "needed"), [(False, 2_000_000), (True, 2_300_000)])
def test_a_disk_too_small_is_told_before_a_byte_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool, needed: int
) -> None:
    archives = [
        Archive(part, part, size, unpacked, None)
        for part, size, unpacked in (("a", 300_000, 700_000), ("b", 500_000, 800_000))
    ]
    usage = shutil.disk_usage(tmp_path)
    for free, complains in ((needed - 1, True), (needed, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: usage._replace(free=free))
        with pytest.raises(DataError) as told:
            download(tmp_path, archives, base_url=server.url, keep_archives=keep, patience=QUICK)
        assert ("free; 2 archives and their files need about" in str(told.value)) is complains
        assert ("answers 404" in str(told.value)) is not complains


def test_a_disk_too_small_for_the_files_is_told_before_unpacking(
    server: Server, tmp_path: Path, sen: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    frees = iter([10**9, 1])
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=next(frees)))
    with pytest.raises(DataError, match=r"free; flair_sen_train\.zip need"):
        download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK)
    assert not (tmp_path / "to" / "flair_sen_train").exists()


@pytest.mark.parametrize("place", ["a file", "a file/below", "/proc/none"])
def test_a_destination_that_cannot_be_written_is_told(
    tmp_path: Path, sen: Archive, place: str
) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(DataError, match=r"(a file|/proc).* cannot be written \(.*\nChoose") as told:
        download(tmp_path / place, [sen])
    assert str(told.value).count("\n") == 1


def test_a_disk_without_room_for_a_first_byte_is_told(
    server: Server, tmp_path: Path, sen: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(transfer.Path, "write_bytes", full)
        with pytest.raises(DataError, match=r"\.part cannot be written \(No space left"):
            download(tmp_path, [sen], base_url=server.url, patience=QUICK)
    assert download(tmp_path, [sen], base_url=server.url, patience=QUICK)[0].unpacked


def test_two_downloads_into_one_folder_do_not_meet(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    complaints: list[str] = []

    def report(name: str, step: str, done: int, total: int | None) -> None:
        with pytest.raises(ConfigError) as told:
            download(tmp_path / "to", [sen], base_url=server.url)
        complaints.append(str(told.value))

    download(tmp_path / "to", [sen], base_url=server.url, patience=QUICK, report=report)
    assert complaints
    assert all("is in use by process" in complaint for complaint in complaints)


PATHS = {
    "own folder": ["flair_sen_train/D004_2021/a", "flair_sen_train/D006_2020/b"],
    "another folder": ["data/D004_2021/a", "data/D006_2020/b"],
    "no folder": ["D004_2021/a", "D006_2020/b"],
    "no folder, one domain": ["D004_2021/a"],
    "own folder and a file": ["flair_sen_train/D004_2021/a", "readme.txt"],
}


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("own folder", (("flair_sen_train", "flair_sen_train"),)),
        ("another folder", (("data", "flair_sen_train"),)),
        ("no folder", ((".", "flair_sen_train"),)),
        ("no folder, one domain", ((".", "flair_sen_train"),)),
        (
            "own folder and a file",
            (("flair_sen_train", "flair_sen_train"), ("readme.txt", "readme.txt")),
        ),
    ],
)
def test_an_archive_finds_its_place_however_it_is_laid_out(
    inside: str, expected: tuple[tuple[str, str], ...]
) -> None:
    archive = Archive("sen_train", "flair_sen_train", None, 1, None)
    assert placement(archive, [PurePosixPath(path) for path in PATHS[inside]]) == expected


@pytest.mark.parametrize("files", [[], ["a.txt"], ["a.json", "b.json"]])
def test_a_table_archive_holds_one_json_file(files: list[str]) -> None:
    archive = Archive("metadata", "flair_2_aerial_metadata", None, 1, None, table=True)
    with pytest.raises(DataError, match=r"holds \d JSON files, where one belongs"):
        placement(archive, [PurePosixPath(path) for path in files])


def contents_of(path: Path) -> dict[str, bytes]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("nested", [True, False])
def test_a_release_fetched_whole_is_found_by_the_layout(
    server: Server, tmp_path: Path, nested: bool
) -> None:
    write_tree(tmp_path / "made")
    archives, contents = [], {}
    for known in select(["all"]):
        folder = tmp_path / "made" / known.name
        if known.table:
            word = "centroids" if known.part == "centroids" else "metadata"
            (table,) = (tmp_path / "made").glob(f"*{word}*.json")
            files = {f"{known.name}/{table.name}" if nested else table.name: table.read_bytes()}
        else:
            base = folder.parent if nested else folder
            files = {
                str(path.relative_to(base)): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
        contents[known.name] = zipped(tmp_path / "zips" / known.name, files).read_bytes()
        archives.append(
            dataclasses.replace(
                known, size=len(contents[known.name]), md5=md5(contents[known.name]), unpacked=10**6
            )
        )
    served(server, contents)
    download(tmp_path / "to", archives, base_url=server.url, patience=QUICK)
    here, there = (locate(DatasetConfig(root=str(tmp_path / folder))) for folder in ("to", "made"))
    assert here.keys() == there.keys()
    for part, path in there.items():
        assert here[part].name == path.name
        assert contents_of(here[part]) == contents_of(path)


def test_parts_are_chosen_by_name() -> None:
    assert [a.part for a in select(["sen_test", "aerial_train", "sen_test"])] == [
        "aerial_train",
        "sen_test",
    ]
    assert [a.part for a in select(["all"])] == [a.part for a in ARCHIVES if a.part != "toy"]
    assert [a.part for a in select(["all", "toy"])] == [a.part for a in ARCHIVES]
    with pytest.raises(DataError, match="unknown part 'sat'; there are: aerial_train"):
        select(["sat"])
    with pytest.raises(DataError, match="no part chosen"):
        select([])


def test_the_catalogue_holds_well_formed_sums() -> None:
    assert len({archive.name for archive in ARCHIVES}) == len(ARCHIVES) == 9
    for archive in ARCHIVES:
        assert archive.md5 is None or (len(archive.md5) == 32 and int(archive.md5, 16))
        assert archive.size is None or archive.unpacked >= archive.size


# --- the command line -------------------------------------------------------------------------


@pytest.fixture
def script() -> ModuleType:
    path = Path(__file__).parents[3] / "scripts" / "download.py"
    spec = importlib.util.spec_from_file_location("download_script", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_command_downloads_then_finds_all_there(
    server: Server,
    tmp_path: Path,
    sen: Archive,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "select", lambda parts: select(parts, [sen]))
    command = [str(tmp_path / "to"), "--parts", "part", "--base-url", server.url]
    assert script.main(command) == 0
    assert capsys.readouterr() == ("flair_sen_train: unpacked to flair_sen_train\n", "")
    assert script.main(command) == 0
    assert capsys.readouterr() == ("flair_sen_train: there already: flair_sen_train\n", "")


def test_the_command_tells_a_failure_in_two_lines(
    server: Server,
    tmp_path: Path,
    script: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(tmp_path), "--parts", "centroids", "--base-url", server.url]
    assert script.main(command) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {server.url}/flair_2_centroids_sp_to_patch.zip: the server")
    assert message.count("\n") == 2


def test_the_command_stopped_by_its_user_says_how_to_go_on(
    tmp_path: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "download", stopped)
    assert script.main([str(tmp_path), "--parts", "toy"]) == 130
    assert "the same command resumes here" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["to"], ["to", "--parts", "sat"], ["to", "--part"]])
def test_wrong_usage_ends_with_status_two(script: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(arguments)
    assert ended.value.code == 2


def test_the_list_names_every_archive(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--list"]) == 0
    listing = capsys.readouterr().out
    assert all(archive.name in listing for archive in ARCHIVES)
    assert all(archive.md5 in listing for archive in ARCHIVES if archive.md5)


def test_help_and_list_do_not_load_torch() -> None:
    import subprocess

    code = "import sys; import flair2_exp.data.download.archives; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
