"""One file over HTTP: resumed where it broke off, and believed only when its bytes prove right.

Bytes go to `NAME.part`; beside it `NAME.part.json` remembers which version of the file they belong
to. A later call asks for the rest (`Range`), of that version only (`If-Range`), and starts over
wherever the server's answer does not fit what is already there. Rules from RFC 9110, sections 13
and 14.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import urljoin, urlsplit

from flair2_exp.errors import DataError

if TYPE_CHECKING:
    import requests

_LOG = logging.getLogger(__name__)

Report = Callable[[int, int | None], None]
"""Called with the bytes done so far and their total (None where unknown)."""

CHUNK: Final = 1 << 16
"""Bytes read at once: no more than this is lost when a connection breaks."""

SIZE_TOLERANCE: Final = 0.1
"""Published sizes are rounded, and whether a GB is 10^9 or 2^30 bytes (7.4 % more) is not said."""

_REDIRECTS: Final = 5
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class Patience:
    """How long a transfer keeps trying.

    Attributes:
        attempts: Tries in a row that bring no new bytes before it gives up.
        wait: Seconds before the second try; doubled before each further one.
        longest_wait: Seconds that no wait exceeds, not even one the server asks for.
        timeout: Seconds to connect, and seconds without a byte.
    """

    attempts: int = 6
    wait: float = 1.0
    longest_wait: float = 60.0
    timeout: tuple[float, float] = (15.0, 60.0)


class _TryAgainError(Exception):
    """This try failed; another may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    limit: int | None = None,
    md5: str | None = None,
    patience: Patience | None = None,
    report: Report | None = None,
    checking: Report | None = None,
) -> None:
    """Download a file, or the rest of it, and put it in place once it is proven.

    Args:
        url: An http or https address.
        target: The file to write. It appears only when complete and checked.
        size: Published size in bytes, rounded: what the server announces, and what it sends, must
            be within `SIZE_TOLERANCE`.
        limit: Bytes that must not be exceeded where no size is published.
        md5: Published MD5 of the whole file, in hexadecimal. A file with another one is removed
            and fetched once more from its first byte.
        patience: How long to keep trying.
        report: Called as bytes come in.
        checking: Called as the bytes of an earlier call are read again for their digest.

    Raises:
        DataError: The server refuses, keeps failing, redirects to where it must not, or sends
            another file than the published one; or the disk is full. What came in stays for the
            next call, unless it is proven wrong.
    """
    for last in (False, True):
        bounds = _Bounds(size, limit)
        transfer = _Transfer(url, target, bounds, md5, patience or Patience(), report)
        transfer.remember(checking)
        transfer.run()
        received = transfer.digest.hexdigest()
        if md5 in (None, received):
            os.replace(transfer.part, target)
            transfer.state.unlink(missing_ok=True)
            return
        transfer.forget()
        if not last:
            _LOG.warning("%s: wrong MD5, once more from the start", target.name)
    raise DataError(
        f"{url} has MD5 {received} where {md5} is published, twice in a row.\n"
        "The archive was replaced or is damaged at the source: try another --base-url."
    )


def md5_of(path: Path, report: Report | None = None) -> str:
    """Return the MD5 of a file, in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    _feed(digest, path, report)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Bounds:
    """How many bytes the published file may have: about `size`, or at most `limit`."""

    size: int | None
    limit: int | None

    @property
    def most(self) -> float:
        if self.size is not None:
            return self.size * (1 + SIZE_TOLERANCE)
        return math.inf if self.limit is None else self.limit

    def __contains__(self, count: int) -> bool:
        least = 0.0 if self.size is None else self.size * (1 - SIZE_TOLERANCE)
        return least <= count <= self.most

    def __str__(self) -> str:
        if self.size is not None:
            return f"about {self.size:,} are published"
        return f"at most {self.limit:,} are expected"


class _Transfer:
    """One file's bytes so far: how many, their digest, and the version they belong to."""

    def __init__(
        self,
        url: str,
        target: Path,
        bounds: _Bounds,
        md5: str | None,
        patience: Patience,
        report: Report | None,
    ) -> None:
        self.url = url
        self.bounds = bounds
        self.md5 = md5
        self.patience = patience
        self.report = report or (lambda done, total: None)
        self.part = target.with_name(target.name + ".part")
        self.state = target.with_name(target.name + ".part.json")
        self.offset = 0
        self.furthest = 0
        self.total: int | None = None
        self.validator: str | None = None
        self.ranges = True
        self.digest = hashlib.md5(usedforsecurity=False)

    def run(self) -> None:
        """Fetch until the file is complete.

        Raises:
            DataError: See `fetch`.
        """
        import requests
        import urllib3

        failures = 0
        with requests.Session() as session:
            while self.total is None or self.offset < self.total:
                before = self.furthest
                try:
                    if self._attempt(session):
                        break
                except (
                    _TryAgainError,
                    requests.RequestException,
                    urllib3.exceptions.HTTPError,
                ) as error:
                    failures = 0 if self.furthest > before else failures + 1
                    self._pause(failures, error)
        self._require_published(self.offset, "sent")

    def forget(self) -> None:
        """Drop every byte fetched so far."""
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)
        self.offset = 0
        self.total = None
        self.validator = None
        self.digest = hashlib.md5(usedforsecurity=False)

    def _distrust(self, reason: str) -> _TryAgainError:
        """Drop what came in and ask for no more parts: this server's ranges do not fit."""
        self.ranges = False
        self.forget()
        return _TryAgainError(f"{reason}; starting over")

    def remember(self, report: Report | None) -> None:
        """Take up an earlier call's bytes, where they are known to belong to this address."""
        try:
            state = json.loads(self.state.read_text("utf-8"))
            size = self.part.stat().st_size
            total, validator = state["total"], state["validator"]
            most = self.bounds.most if total is None else total
            usable = state["url"] == self.url and size <= most
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        if not usable:
            self.forget()
            return
        self.total, self.validator = total, validator
        self.offset = self.furthest = size
        _feed(self.digest, self.part, report)

    def _attempt(self, session: requests.Session) -> bool:
        """Send one request; return True when a body of unannounced length came to its end."""
        headers = {"Accept-Encoding": "identity"}
        # Without a validator nothing but the MD5 tells two versions of a file apart.
        resumable = self.ranges and (self.validator is not None or self.md5 is not None)
        if self.offset and resumable:
            headers["Range"] = f"bytes={self.offset}-"
            if self.validator is not None:
                headers["If-Range"] = self.validator
        response = _follow(session, self.url, headers, self.patience.timeout)
        with contextlib.closing(response):
            end = self._agree(response, ranged="Range" in headers)
            self._receive(response, end)
        if end is None:
            return True
        if self.offset < end:
            raise _TryAgainError("the connection closed early")
        return False

    def _agree(self, response: requests.Response, *, ranged: bool) -> int | None:
        """Judge an answer's head and place `offset`; returns where its body must end."""
        status = response.status_code
        if status in _PASSING:
            raise _TryAgainError(f"the server answers {status}", _retry_after(response))
        if ranged and status == 416:
            raise self._distrust("the server has fewer bytes than were fetched")
        if status != 200 and not (ranged and status == 206):
            raise DataError(
                f"{self.url}: the server answers {status} ({response.reason}).\n"
                "Check the address, or name a mirror with --base-url."
            )
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise _TryAgainError(f"the body is encoded as {encoding!r}, which nobody requested")
        return self._agree_rest(response) if status == 206 else self._agree_whole(response)

    def _agree_whole(self, response: requests.Response) -> int | None:
        """Take a 200: the body is the whole file, whatever was requested."""
        self.forget()
        length = response.headers.get("Content-Length", "")
        self.total = int(length) if length.isdecimal() else None
        self.validator = _validator(response)
        if self.total is not None:
            self._require_published(self.total, "offers")
        state = {"url": self.url, "total": self.total, "validator": self.validator}
        self.part.write_bytes(b"")
        self.state.write_text(json.dumps(state), "utf-8")
        return self.total

    def _agree_rest(self, response: requests.Response) -> int:
        """Take a 206: the body must be what follows the bytes at hand, of the same version."""
        span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if span is not None:
            first, last = int(span[1]), int(span[2])
            total = None if span[3] == "*" else int(span[3])
            same = None in (self.validator, _validator(response)) or (
                self.validator == _validator(response)
            )
            fits = self.offset == first <= last and (total is None or last < total)
            if fits and same and (self.total is None or total in (None, self.total)):
                self.total = self.total or total  # the whole file came without its length
                return last + 1
        raise self._distrust("the server sent another range than the one requested")

    def _require_published(self, count: int, verb: str) -> None:
        """Refuse as many bytes as the published file cannot have, and keep none of them."""
        if count in self.bounds:
            return
        self.forget()
        raise DataError(
            f"{self.url}: the server {verb} {count:,} bytes where {self.bounds}.\n"
            "This is another file: check --base-url."
        )

    def _receive(self, response: requests.Response, end: int | None) -> None:
        """Append a body to the part, never beyond `end`."""
        self.report(self.offset, self.total)
        with self.part.open("ab") as file:
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                if end is not None and self.offset + len(chunk) > end:
                    raise self._distrust("the body is longer than announced")
                if self.offset + len(chunk) > self.bounds.most:  # nobody announced an end
                    self._require_published(self.offset + len(chunk), "sent")
                self._write(file, chunk)
                self.digest.update(chunk)
                self.offset += len(chunk)
                self.furthest = max(self.furthest, self.offset)
                self.report(self.offset, self.total)

    def _write(self, file: BinaryIO, chunk: bytes) -> None:
        try:
            file.write(chunk)
        except OSError as error:
            raise DataError(
                f"{self.part}: {error.strerror} after {self.offset:,} bytes.\n"
                "Make room: the same command resumes there."
            ) from error

    def _pause(self, failures: int, error: Exception) -> None:
        if failures >= self.patience.attempts:
            raise DataError(
                f"{self.url}: gave up after {failures} tries in a row without a new byte "
                f"({_brief(error)}).\nWhat came in is kept: the same command resumes there."
            ) from error
        requested = error.wait if isinstance(error, _TryAgainError) else 0.0
        wait = min(
            max(self.patience.wait * 2 ** max(failures - 1, 0), requested),
            self.patience.longest_wait,
        )
        _LOG.warning("%s; trying again in %.3g s", _brief(error), wait)
        time.sleep(wait)


def _follow(
    session: requests.Session, url: str, headers: dict[str, str], timeout: tuple[float, float]
) -> requests.Response:
    """Get an address through its redirects, each of them judged before it is followed.

    Raises:
        DataError: An address that is neither http nor https, a step from https down to http, a
            redirect to nowhere, or too many of them.
    """
    _require_http(url, url)
    here = url
    for _ in range(_REDIRECTS + 1):
        response = session.get(
            here, headers=headers, stream=True, allow_redirects=False, timeout=timeout
        )
        if response.status_code not in _MOVED:
            return response
        location = response.headers.get("Location")
        response.close()
        if not location:
            raise DataError(f"{here} redirects to nowhere; check --base-url.")
        there = urljoin(here, location)
        _require_http(there, url)
        if urlsplit(here).scheme == "https" and urlsplit(there).scheme == "http":
            raise DataError(
                f"{url} redirects from https to {there}, which is not encrypted; not followed."
            )
        here = there
    raise DataError(f"{url} redirects more than {_REDIRECTS} times; check --base-url.")


def _require_http(address: str, origin: str) -> None:
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and parts.hostname:
        return
    where = "" if address == origin else f" (redirected from {origin})"
    raise DataError(f"{address!r}{where} is not an http or https address; not followed.")


def _validator(response: requests.Response) -> str | None:
    """Return what names this version of the file, as If-Range takes it: strong ETag, or date."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float:
    """Return the seconds the server wants us to wait; a date, its other form, is read as none."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _brief(error: Exception) -> str:
    """Return an error's first hundred characters: the libraries' repeat each other at length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:99] + "…"


def _feed(digest: hashlib._Hash, path: Path, report: Report | None) -> None:
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            if report is not None:
                report(done, total)
