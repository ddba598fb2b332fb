from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flair2_exp.files import replacing, write_bytes, write_text


def test_a_file_is_as_it_was_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as fresh:
        fresh.write_text("n")
        assert path.read_text() == "old"
        fresh.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as fresh:
            fresh.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_before_anything_is_written_is_the_one_that_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first"), replacing(tmp_path / "a.txt"):
        raise ValueError("first")
    assert os.listdir(tmp_path) == []


def test_a_process_killed_while_writing_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    program = (
        "import os, pathlib, signal, sys\n"
        "from flair2_exp.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as fresh:\n"
        "    fresh.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", program, str(path)])
    assert process.returncode == -9
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.glob("*.png")] == ["a.png"]  # no leftovers


def _write_often(path: Path, letter: str) -> None:
    for _ in range(50):
        write_text(path, letter * 100_000)


def test_of_processes_that_write_one_file_at_once_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "")
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write_often, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in ("", "a" * 100_000, "b" * 100_000)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_has_the_rights_that_any_new_one_has(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a.bin", b"\0")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


def test_folders_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "folder" / "a.bin", b"\r\n")
    assert (tmp_path / "new" / "folder" / "a.bin").read_bytes() == b"\r\n"


def test_a_text_is_written_as_it_is_and_what_is_not_text_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Δ mIoU\r\ncaf" + os.fsdecode(b"\xe9"))
    assert (tmp_path / "a.txt").read_bytes() == "Δ mIoU\r\ncaf\\udce9".encode()


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "a.txt", "")
