"""Archives that are sound, damaged, or mean harm."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair2_exp.data.download import unpack
from flair2_exp.errors import DataError
from tests.data.download.servers import BODY, zipped


def unpacked(archive: Path, folder: Path, limit: int = 10_000_000) -> dict[str, bytes]:
    unpack.unpack(archive, unpack.inspect(archive, limit), folder, lambda done, total: None)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_sound_archive_unpacks_to_its_files_alone(tmp_path: Path, method: int) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "half").write_bytes(b"left by an interrupted call")
    files = {"a/b/c.bin": BODY, "a/empty": b"", "é.txt": b"accents"}
    mac = {"__MACOSX/a/._b": b"2", "a/.DS_Store": b"3", "a/": b""}
    assert unpacked(zipped(tmp_path / "a.zip", files | mac, method), tmp_path / "out") == files


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "..", "a/..", "//evil", "a\\..\\evil", "a\nb", "e\x07"],
)
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = zipped(tmp_path / "a.zip", {"sound": b"1", zipfile.ZipInfo(name): b"2"})
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
    archive = zipped(tmp_path / "a.zip", {"sound": b"1", info: b"/etc/hostname"})
    with pytest.raises(DataError, match="'link', which is a link or another special file"):
        unpacked(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_permissions_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("program")
    info.external_attr = (stat.S_IFREG | 0o4777) << 16
    unpacked(zipped(tmp_path / "a.zip", {info: b"1"}), tmp_path / "out")
    assert (tmp_path / "out" / "program").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize(
    ("limit", "fault"),
    [
        (1_000_000, "3,000,000 bytes unpacked, more than 1,000,000"),
        (10_000_000, "a compression of more than 200 to 1"),
    ],
)
def test_a_bomb_is_refused_before_a_byte_is_written(tmp_path: Path, limit: int, fault: str) -> None:
    archive = zipped(tmp_path / "a.zip", {name: bytes(1_000_000) for name in "abc"})
    with pytest.raises(DataError, match=fault):
        unpacked(archive, tmp_path / "out", limit)
    assert not (tmp_path / "out").exists()


def test_a_member_cannot_grow_beyond_what_it_announced(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a": bytes(1_000_000)})
    lie = archive.read_bytes().replace((1_000_000).to_bytes(4, "little"), b"\x0a\0\0\0")
    archive.write_bytes(lie)
    with pytest.raises(DataError, match="a cannot be read"):
        unpacked(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a").stat().st_size <= 10


@pytest.mark.parametrize(
    ("second", "fault"), [("a/./b", "'a/./b' twice"), ("a/b/c", "'a/b/c', whose folder is a file")]
)
def test_two_files_in_one_place_are_refused(tmp_path: Path, second: str, fault: str) -> None:
    archive = zipped(tmp_path / "a.zip", {"a/b": b"1", second: b"2"})
    with pytest.raises(DataError, match=fault):
        unpacked(archive, tmp_path / "out")


@pytest.mark.parametrize(("offset", "value"), [(6, 1), (8, 77)])
def test_encryption_and_unknown_compressions_are_refused(
    tmp_path: Path, offset: int, value: int
) -> None:
    archive = zipped(tmp_path / "a.zip", {"odd": b"x"}, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    for start in (content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02") + 2):
        content[start + offset] = value
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match="odd cannot be read"):
        unpacked(archive, tmp_path / "out")


def test_a_place_before_the_first_byte_is_damage(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a": BODY[:500], "d/b": bytes(400)})
    content = bytearray(archive.read_bytes())
    content[-4] ^= 2  # of the directory's offset, from which zipfile reckons all others
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"cannot be read|not a readable zip file"):
        unpacked(archive, tmp_path / "out")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_archive_never_writes_wrong_bytes_nor_anything_outside(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("a")
    files = {"a": BODY[:500], "d/b": bytes(400)}
    archive = zipped(folder / "a.zip", files)
    content = bytearray(archive.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if truncated := data.draw(st.booleans()):
        del content[position:]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    archive.write_bytes(bytes(content))
    try:
        written = unpacked(archive, folder / "in" / "out")
    except DataError:
        written = {}
    assert not (truncated and written)
    # A flipped bit in a name is no wrong byte of a file; its content still must be right.
    assert all(body in files.values() for body in written.values())
    outside = [path for path in folder.rglob("*") if folder / "in" not in (path, *path.parents)]
    assert outside == [archive]
