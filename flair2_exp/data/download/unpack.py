"""Zip archives from elsewhere, unpacked so that nothing lands outside the folder meant for it.

An archive is judged by its directory before a byte is written: names, kinds of members, their
number and sizes. While unpacking, no member may grow beyond the size it announced, and its checksum
must hold.
"""

from __future__ import annotations

import contextlib
import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from flair2_exp.errors import DataError

Report = Callable[[int, int | None], None]
"""Called with the bytes written so far and their total."""

_COPY: Final = 1 << 20
_ENCRYPTED: Final = 0x1
_JUNK: Final = frozenset({"__MACOSX", ".DS_Store"})
"""What a Mac adds to archives; left out."""


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to.

    Attributes:
        size: Bytes of all members together.
        members: Number of files and folders.
        ratio: Unpacked bytes per byte of archive. Masks of few classes reach about 35 (their
            pixels' 20 GB are published as 0.6 GB); one member by itself may reach deflate's
            ceiling of 1032.
    """

    size: int
    members: int = 1_000_000
    ratio: float = 200.0


@dataclass(frozen=True)
class Member:
    """A file of an archive: where it goes, its size in bytes, and its entry."""

    path: PurePosixPath
    size: int
    entry: zipfile.ZipInfo


def inspect(archive: Path, limits: Limits) -> tuple[Member, ...]:
    """Return the files of an archive, in its order, once all of it proves harmless.

    Args:
        archive: A zip file.
        limits: What it may unpack to.

    Raises:
        DataError: It is not a readable zip file, is encrypted, exceeds `limits`, or holds a link or
            another special file, or a path that is absolute, leads upwards or occurs twice.
    """
    with _opened(archive) as zipped:
        entries = zipped.infolist()
        if len(entries) > limits.members:
            raise _refusal(archive, f"{len(entries):,} members, more than {limits.members:,}")
        members = [
            Member(path, entry.file_size, entry)
            for entry in entries
            if (path := _harmless(archive, entry)) is not None
        ]
    total = sum(member.size for member in members)
    if total > limits.size:
        raise _refusal(archive, f"{total:,} bytes unpacked, more than {limits.size:,}")
    if total > limits.ratio * archive.stat().st_size:
        raise _refusal(archive, f"a compression of more than {limits.ratio:.0f} to 1")
    _require_distinct(archive, members)
    return tuple(members)


def unpack(
    archive: Path, members: Sequence[Member], folder: Path, *, report: Report | None = None
) -> None:
    """Write the files of an archive into a folder, which is emptied first.

    Only regular files and folders are made, with the permissions of any new file.

    Args:
        archive: The zip file that `members` were read from.
        members: What `inspect` returned for it.
        folder: Where to; made anew.
        report: Called as bytes are written.

    Raises:
        DataError: A member is damaged, or the disk is full. The folder is left as it is: the next
            call starts over.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done, total = 0, sum(member.size for member in members)
    with _opened(archive) as zipped:
        for member in members:
            target = folder.joinpath(*member.path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with (
                _explained(archive, member.path),
                zipped.open(member.entry) as source,
                target.open("xb") as file,
            ):
                shutil.copyfileobj(source, file, _COPY)  # zipfile stops at the announced size
            done += member.size
            if report is not None:
                report(done, total)


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    with contextlib.ExitStack() as stack:
        try:
            zipped = stack.enter_context(zipfile.ZipFile(archive))
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise DataError(
                f"{archive} is not a readable zip file ({error}).\n"
                "It is truncated or damaged: remove it and download it again."
            ) from error
        yield zipped


@contextlib.contextmanager
def _explained(archive: Path, path: PurePosixPath) -> Iterator[None]:
    """Turn what goes wrong with one member into a sentence about it."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise _damage(archive, path, error) from error
    except OSError as error:
        if error.errno is None:  # bz2's way of saying that its data is damaged
            raise _damage(archive, path, error) from error
        raise DataError(f"{archive}: cannot write {path}: {error.strerror}.") from error


def _damage(archive: Path, path: PurePosixPath, error: Exception) -> DataError:
    return DataError(
        f"{archive}: {path} is damaged ({error}).\nRemove the archive and download it again."
    )


def _refusal(archive: Path, what: str) -> DataError:
    return DataError(
        f"{archive} holds {what}.\nThe published archives do not: it was not unpacked."
    )


def _harmless(archive: Path, entry: zipfile.ZipInfo) -> PurePosixPath | None:
    """Return a file's path if it may be unpacked; None for a folder and for a Mac's additions.

    Raises:
        DataError: The entry could write where it should not, or not a plain file.
    """
    # zipfile cuts a name at its first NUL: judge what the archive really says.
    name = entry.orig_filename
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or ":" in name.split("/")[0] or not name.isprintable():
        raise _refusal(archive, f"the path {name!r}")
    if ".." in path.parts or not (path.parts or entry.is_dir()):
        raise _refusal(archive, f"the path {name!r}")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refusal(archive, f"{name!r}, which is a link or another special file")
    if entry.flag_bits & _ENCRYPTED:
        raise _refusal(archive, f"{name!r}, which is encrypted")
    junk = not _JUNK.isdisjoint(path.parts)
    return None if entry.is_dir() or junk else path


def _require_distinct(archive: Path, members: Sequence[Member]) -> None:
    """Refuse two files of one name, and a file that another one uses as its folder."""
    files: set[PurePosixPath] = set()
    for member in members:
        if member.path in files:
            raise _refusal(archive, f"{str(member.path)!r} twice")
        files.add(member.path)
    for member in members:
        clash = next((parent for parent in member.path.parents if parent in files), None)
        if clash is not None:
            raise _refusal(archive, f"{str(clash)!r} both as a file and as a folder")
