"""One file over HTTP, resumed where it broke off, and in its place only once it is checked.

Bytes go to `NAME.part`. A later call, also of another process, asks for the rest; the MD5 of the
whole tells whether all parts belong together, so that a file without one starts over.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from flair2_exp.errors import DataError

_LOG = logging.getLogger(__name__)

Report = Callable[[str, int, int | None], None]
"""Called with the step (`downloading`, `checking`), the bytes done and their total (or None)."""

TRIES: Final = 6
"""Tries in a row that bring no new byte before a transfer gives up."""

WAIT: Final = 1.0
"""Seconds before another try; doubled each time, up to a minute."""

_TIMEOUT: Final = (15.0, 60.0)  # seconds to connect, and without a byte
_CHUNK: Final = 1 << 16  # bytes; no more than this is lost when a connection breaks
_TEMPORARY: Final = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE: Final = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")


def fetch(url: str, target: Path, sizes: range, md5: str | None, report: Report) -> None:
    """Download a file, or the rest of it, and put it in place once it is checked.

    Args:
        url: An http or https address; a user name and a password in it are sent, never shown.
        target: The file to write. It appears only when complete and checked.
        sizes: The counts of bytes that the file may have.
        md5: Its MD5 in hexadecimal, where one is published. A file with another one is removed and
            fetched once more from its first byte.
        report: Called as bytes come in, and as they are read again for their MD5.

    Raises:
        DataError: The server refuses, keeps failing, or sends another file than the expected one.
            The bytes so far stay for the next call, unless they are proven wrong.
        OSError: The file cannot be written.
    """
    part = target.with_name(target.name + ".part")
    transfer = _Transfer(url, part, sizes, report)
    if md5 is None:
        part.unlink(missing_ok=True)
    for _ in range(2):
        transfer.run()
        if md5 in (None, actual := md5_of(part, report)):
            os.replace(part, target)
            return
        _LOG.warning("%s: wrong MD5 %s.", target.name, actual)
        part.unlink()
    raise DataError(
        f"{transfer.address} has MD5 {actual} where {md5} is published, twice in a row.\n"
        "The archive was replaced or is damaged at the source: try another --base-url."
    )


def md5_of(path: Path, report: Report) -> str:
    """Return the MD5 of a file, in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    total = path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            report("checking", file.tell(), total)
    return digest.hexdigest()


def _masked(text: str) -> str:
    """Return an address, or an error about one, without its user, password and query."""
    return re.sub(r"\?\S+", "?***", re.sub(r"(\w+://)?.*@", r"\1***@", text))


class _Transfer:
    """What a file's requests share."""

    def __init__(self, url: str, part: Path, sizes: range, report: Report) -> None:
        self.url = url
        self.address = _masked(url)
        self.part = part
        self.sizes = sizes
        self.report = report

    def run(self) -> None:
        """Fetch until the file is complete.

        Raises:
            DataError: See `fetch`.
        """
        retry = Retry(
            total=TRIES - 1,
            backoff_factor=WAIT,
            backoff_max=60,
            status_forcelist=_TEMPORARY,
            raise_on_status=False,
            respect_retry_after_header=False,  # it may ask for a day
        )
        failures, furthest, complete = 0, self._size(), False
        with requests.Session() as session:
            session.max_redirects = 5
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry))
            while not complete:
                if failures == TRIES:
                    raise DataError(
                        f"{self.address}: gave up after {TRIES} tries in a row without a new byte."
                        "\nThe bytes so far are kept: the same command resumes there."
                    )
                if failures:
                    time.sleep(min(WAIT * 2 ** (failures - 1), 60))
                with contextlib.closing(self._request(session)) as response:
                    complete = self._receive(response)
                size = self._size()  # going over the same bytes again is no progress
                failures = 0 if size > furthest else failures + 1
                furthest = max(furthest, size)
        self._require_size(self._size())

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _request(self, session: requests.Session) -> requests.Response:
        """Ask for the rest of the file, or for all of it.

        Raises:
            DataError: No answer, or one that cannot be the file.
        """
        headers = {"Accept-Encoding": "identity"}
        if size := self._size():
            headers["Range"] = f"bytes={size}-"
        try:
            response = session.get(self.url, headers=headers, stream=True, timeout=_TIMEOUT)
        except requests.RequestException as error:
            cause = error.args[0] if error.args else error
            reason = _masked(str(getattr(cause, "reason", cause)))
            raise DataError(
                f"{self.address} cannot be fetched ({reason}).\n"
                "Check the connection and --base-url: the same command resumes there."
            ) from error
        fault = _fault(response, "Range" in headers)
        if fault:
            response.close()
            raise DataError(
                f"{self.address}: the server {fault}.\n"
                "Check the address, or name a mirror with --base-url."
            )
        return response

    def _receive(self, response: requests.Response) -> bool:
        """Append a body to the part; return whether the file is complete."""
        size = self._size()
        if response.status_code == 200:  # the body is the whole file, whatever was requested
            size, length = 0, response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        else:
            span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            total = int(span[2]) if span else None
            if response.status_code == 416 and size == total:
                return True
            if span is None or span[1] != str(size):  # not what follows the bytes on disk
                self.part.unlink()
                return False
        if total is not None:
            self._require_size(total)
        try:
            with self.part.open("ab" if size else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    size += len(chunk)
                    if size >= self.sizes.stop:
                        self._require_size(size)
                    file.write(chunk)
                    self.report("downloading", size, total)
        except requests.RequestException as error:
            _LOG.warning("%s: interrupted (%s); trying again.", self.address, type(error).__name__)
            return False
        return total in (None, size)

    def _require_size(self, size: int) -> None:
        """Refuse as many bytes as the file cannot have, and keep none of them."""
        if size not in self.sizes:
            self.part.unlink(missing_ok=True)
            raise DataError(
                f"{self.address}: the server sends {size:,} bytes where {self.sizes.start:,} to "
                f"{self.sizes.stop - 1:,} are expected.\nThis is another file: check --base-url."
            )


def _fault(response: requests.Response, ranged: bool) -> str | None:
    """Return why an answer cannot be the file, or None."""
    status, headers = response.status_code, response.headers
    addresses = [hop.url for hop in (*response.history, response)]
    if addresses[0].startswith("https:") and any(url.startswith("http:") for url in addresses):
        return "redirects from https to http, which is not encrypted"
    if status != 200 and not (ranged and status in (206, 416)):
        return f"answers {status} ({response.reason})"
    if headers.get("Content-Encoding", "identity") != "identity":
        return f"encodes the file as {headers['Content-Encoding']!r}, which nobody requested"
    if status == 200 and headers.get("Content-Type", "").startswith("text/html"):
        return "sends a web page instead of the file"
    return None
