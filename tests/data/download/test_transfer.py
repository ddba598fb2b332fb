"""Transfers from servers on loopback that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from flair2_exp.data.download import transfer
from flair2_exp.errors import DataError
from tests.data.download.servers import BODY, OTHER, Answer, Request, Server, cut, md5, ranged


def fetch(
    url: str,
    target: Path,
    *,
    md5: str | None = md5(BODY),
    sizes: range = range(1_000_000),
    report: transfer.Report = lambda step, done, total: None,
) -> None:
    transfer.fetch(url, target, sizes, md5, report)


def test_a_sound_file_arrives_whole_and_leaves_nothing_beside_it(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: ranged(BODY, request)
    steps: list[tuple[str, int, int | None]] = []
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", report=lambda *step: steps.append(step))
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    for name in ("downloading", "checking"):
        assert [step for step in steps if step[0] == name][-1] == (name, len(BODY), len(BODY))


def test_a_dropped_connection_resumes_from_the_bytes_on_disk(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: cut(ranged(BODY, request), 100_000)
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    starts = [request.first for request in server.requests]
    assert starts == sorted(set(starts)), "every request asks for more than the one before"
    assert len(starts) > 2


def test_a_later_call_resumes_where_the_earlier_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: cut(ranged(BODY, request), 150_000) if n == 1 else Answer(503)
    with pytest.raises(DataError, match="answers 503"):
        fetch(f"{server.url}/a", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    size = (tmp_path / "a.part").stat().st_size
    assert 0 < size <= 150_000
    server.plan = lambda n, request: ranged(BODY, request)
    fetch(f"{server.url}/a", tmp_path / "a")
    assert server.requests[-1].first == size
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize(
    ("part", "firsts"),
    [
        (BODY, [300_000]),
        (OTHER[:1000], [1000, 0]),
        (OTHER, [300_000, 0]),
        (BODY + BODY, [600_000, 0]),
    ],
)
def test_a_whole_part_is_taken_and_one_of_another_file_is_not(
    server: Server, tmp_path: Path, part: bytes, firsts: list[int]
) -> None:
    (tmp_path / "a.part").write_bytes(part)
    server.plan = lambda n, request: ranged(BODY, request)
    fetch(f"{server.url}/a", tmp_path / "a")
    assert [request.first for request in server.requests] == firsts
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_part_without_a_published_md5_is_not_built_upon(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(OTHER[:1000])
    server.plan = lambda n, request: ranged(BODY, request)
    fetch(f"{server.url}/a", tmp_path / "a", md5=None)
    assert [request.range for request in server.requests] == [None]
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("cuts", [(200_000, 200_000), (100_000, 200_000)])
def test_a_server_that_never_gets_further_is_given_up(
    server: Server, tmp_path: Path, cuts: tuple[int, int]
) -> None:
    """Further than ever before: going over the same bytes again is no progress."""
    server.plan = lambda n, request: Answer(200, body=BODY, cut=cuts[n % 2] if n < 20 else None)
    with pytest.raises(DataError, match="gave up after 3 tries in a row without a new byte"):
        fetch(f"{server.url}/a", tmp_path / "a")
    assert len(server.requests) == 4, "the first brought bytes, three more did not"


def spanning(span: str, body: Callable[[Request], bytes]) -> Callable[[Request], Answer]:
    return lambda request: Answer(
        206, {"Content-Range": span.format(first=request.first)}, body(request)
    )


LIES: dict[str, Callable[[Request], Answer]] = {
    "another offset": spanning("bytes 0-299999/300000", lambda request: BODY),
    "no range": lambda request: Answer(206, {}, BODY[request.first :]),
    "nonsense": spanning("bytes */x", lambda request: BODY),
    "fewer bytes than fetched": lambda request: Answer(416, {"Content-Range": "bytes */1000"}),
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
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.range is None for request in server.requests] == [True, False, True]


def test_a_body_of_unannounced_length_is_resumed_and_taken_to_its_end(
    server: Server, tmp_path: Path
) -> None:
    server.plan = lambda n, request: (
        ranged(BODY, request)
        if request.range
        else Answer(200, body=BODY[:200_000], chunked=True, cut=1)
    )
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.first for request in server.requests] == [0, 200_000]
    server.plan = lambda n, request: Answer(200, body=BODY, chunked=True)
    fetch(f"{server.url}/b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (Answer(200, body=BODY[:200_000], chunked=True), None),
        (Answer(200, body=BODY[:200_000], chunked=True, repeats=100), None),
        (Answer(200, body=BODY[:250_000]), None),
        (Answer(200, body=BODY + OTHER), None),
        (Answer(206, {"Content-Range": "bytes 1-339999/340000"}, BODY), b"x"),
    ],
)
def test_a_file_of_another_size_than_expected_is_refused_at_once(
    server: Server, tmp_path: Path, answer: Answer, part: bytes | None
) -> None:
    if part is not None:
        (tmp_path / "a.part").write_bytes(part)
    server.plan = lambda n, request: answer
    counts = [0]
    with pytest.raises(DataError, match=r"bytes where 270,000 to 330,000 are expected") as caught:
        fetch(
            f"{server.url}/a",
            tmp_path / "a",
            sizes=range(270_000, 330_001),
            report=lambda step, done, total: counts.append(done),
        )
    assert str(caught.value).count("\n") == 1
    assert max(counts) <= 330_000
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes_are_fetched_once_more_and_never_kept(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: ranged(OTHER if n == 1 else BODY, request)
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    with pytest.raises(DataError, match=f"MD5 {md5(BODY)} where {md5(OTHER)} is published"):
        fetch(f"{server.url}/b", tmp_path / "b", md5=md5(OTHER))
    assert len(server.requests) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [(Answer(status), f"answers {status}") for status in (400, 401, 403, 404, 410)]
    + [
        (Answer(206, {"Content-Range": "bytes 10-11/12"}, b"xx"), "answers 206"),
        (Answer(301), "answers 301"),
        (Answer(200, {"Content-Encoding": "gzip"}, BODY), "encodes the file as 'gzip'"),
        (Answer(200, {"Content-Type": "text/html; charset=utf-8"}, BODY), "sends a web page"),
    ],
)
def test_an_answer_that_is_not_the_file_is_refused_at_once(
    server: Server, tmp_path: Path, answer: Answer, fault: str
) -> None:
    server.plan = lambda n, request: answer
    with pytest.raises(DataError, match=rf"the server {fault}.*\n.*--base-url"):
        fetch(f"{server.url}/a", tmp_path / "a")
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_temporary_failure_is_tried_again(server: Server, tmp_path: Path, status: int) -> None:
    server.plan = lambda n, request: (
        Answer(status, {"Retry-After": "86400"}) if n < 3 else ranged(BODY, request)
    )
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/a", "Connection refused"),
        ("file:///etc/hostname", "No connection adapters"),
        ("ftp://127.0.0.1/a", "No connection adapters"),
        ("a.zip", "No scheme supplied"),
        ("user:secret@a.zip", "***@"),
    ],
)
def test_an_address_without_a_server_is_named(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(DataError, match=r"cannot be fetched \(.*\n.*--base-url") as caught:
        fetch(url, tmp_path / "a")
    assert reason in str(caught.value)
    assert str(caught.value).startswith(url.replace("user:secret", "***"))
    assert "secret" not in str(caught.value)


def test_a_redirect_is_followed_with_its_range(server: Server, tmp_path: Path) -> None:
    server.plan = lambda n, request: (
        Answer(302, {"Location": "/elsewhere/b"})
        if request.path == "/a"
        else cut(ranged(BODY, request), 200_000)
    )
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests[-1].path == "/elsewhere/b"
    assert server.requests[-1].first > 0


@pytest.mark.parametrize(
    ("location", "fault"),
    [("/a", "Exceeded 5 redirects"), ("file:///etc/hostname", "No connection adapters")],
)
def test_a_redirect_that_leads_astray_is_not_followed(
    server: Server, tmp_path: Path, location: str, fault: str
) -> None:
    server.plan = lambda n, request: Answer(301, {"Location": location})
    with pytest.raises(DataError, match=fault):
        fetch(f"{server.url}/a", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_file_that_came_without_encryption_is_refused_where_it_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(self: requests.Session, url: str, **_: object) -> requests.Response:
        first, last = requests.Response(), requests.Response()
        first.url, last.url = url, "http://127.0.0.1/a"
        last.status_code, last.raw, last.history = 200, BytesIO(BODY), [first]
        return last

    monkeypatch.setattr(requests.Session, "get", get)
    with pytest.raises(DataError, match="redirects from https to http"):
        fetch("https://127.0.0.1/a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("password", ["secret", "sec@ret", "s e@c'ret"])
@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(403), "answers 403"),
        (Answer(200, body=b"xx", cut=1), "gave up"),
        (Answer(200, body=OTHER), "twice in a row"),
        (Answer(302, {"Location": "http://127.0.0.1:9/?token=secret"}), "cannot be fetched"),
        (Answer(302, {"Location": "ftp://user:secret@127.0.0.1"}), "cannot be fetched"),
    ],
)
def test_credentials_are_sent_and_never_shown(
    server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    answer: Answer,
    fault: str,
    password: str,
) -> None:
    server.plan = lambda n, request: answer
    url = server.url.replace("//", f"//user:{password}@")
    with pytest.raises(DataError, match=fault) as caught:
        fetch(f"{url}/a.zip", tmp_path / "a.zip")
    assert str(caught.value).startswith(server.url.replace("//", "//***@"))
    assert (server.requests[0].authorization or "").startswith("Basic ")
    texts = str(caught.value) + "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("flair2_exp")
    )
    assert not any(word in texts for word in ("user", "sec", "ret'", "token"))


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 299_999), max_size=4), obeys=st.lists(st.booleans(), max_size=4)
)
def test_whatever_breaks_the_file_arrives_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], obeys: list[bool]
) -> None:
    def plan(number: int, request: Request) -> Answer:
        obedient = number > len(obeys) or obeys[number - 1]
        answer = ranged(BODY, request if obedient else Request(request.path, None))
        return cut(answer, cuts[number - 1]) if number <= len(cuts) else answer

    running = Server()
    try:
        running.plan = plan
        target = tmp_path_factory.mktemp("a") / "a"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transfer, "TRIES", 10)
            patch.setattr(transfer, "WAIT", 0.0)
            fetch(f"{running.url}/a", target)
    finally:
        running.close()
    assert target.read_bytes() == BODY
