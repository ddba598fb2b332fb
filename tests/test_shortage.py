"""What the machine ran out of, by the errors in which that shows."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from flair2_exp.config.explain import explain
from flair2_exp.shortage import reserved, shortage

SHM = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
BUS = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit."
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), "the disk is full: .* MB free of"),
        (OSError("4093600 requested and 335808 written"), "the disk is full"),
        (OSError(errno.EDQUOT, "quota", "/tmp/x"), "the disk is full: .* MB free of"),
        (OSError(errno.ENOSPC, "full", "/none/a", None, "/tmp/b"), "the disk is full"),
        (ValueError("(sqlite3.OperationalError) database or disk is full"), "the disk is full"),
        (RuntimeError(SHM), "shared memory is full: .*--shm-size"),
        (RuntimeError(BUS), "shared memory is full: .*data.workers=0"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files: .*ulimit -n"),
        (RuntimeError("</torch_1>: Too many open files (24)"), "too many .*data.workers=0"),
    ],
    ids=str,
)
def test_what_ran_out_is_named_with_what_helps(error: Exception, message: str) -> None:
    wrapped = RuntimeError("in a worker")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        text = shortage(each)
        assert text is not None
        assert re.match(message, text)
        assert len(str(explain(each)).splitlines()) == 2


def test_other_errors_have_other_reasons() -> None:
    assert shortage(OSError(errno.EACCES, "denied")) is None
    assert shortage(ValueError("Bus")) is None


def test_reserved_room_is_given_back_before_the_last_words(tmp_path: Path) -> None:
    file = tmp_path / "reserve"
    with reserved(file, 100):
        assert file.stat().st_size == 100
    assert not file.exists()
