"""Zip archives from elsewhere, unpacked so that nothing lands outside the folder meant for it.

An archive is judged by its directory before a byte is written: names, kinds of members, their
number and sizes. While unpacking, no member may grow beyond the size it announced, and its checksum
must hold.
"""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from flair2_exp.errors import DataError
from flair2_exp.progress import Progress

RATIO: Final = 200
"""Unpacked bytes per byte of archive. Masks of few classes reach about 35 (their pixels' 20 GB are
published as 0.6 GB); one member by itself may reach deflate's ceiling of 1032."""

_JUNK: Final = frozenset({"__MACOSX", ".DS_Store"})  # what a Mac adds to archives; left out
_DAMAGE: Final = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError, ValueError
)  # fmt: skip


def inspect(archive: Path, limit: int) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files of an archive by their paths, once all of it proves harmless.

    Args:
        archive: A zip file.
        limit: Bytes that its files may have together.

    Raises:
        DataError: It is not a readable zip file, holds too many bytes, a link or another special
            file, or a path that is absolute, leads upwards or occurs twice.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise DataError(
            f"{archive} is not a readable zip file ({error}).\n"
            "It is truncated or damaged: remove it and download it again."
        ) from error
    members = {}
    for entry in entries:
        name = entry.orig_filename  # zipfile cuts the other one at its first NUL
        path = PurePosixPath(name)
        upwards = path.is_absolute() or ".." in path.parts or not path.parts
        if upwards or "\\" in name or not name.isprintable():
            raise _refusal(archive, f"the path {name!r}")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refusal(archive, f"{name!r}, which is a link or another special file")
        if path in members:
            raise _refusal(archive, f"{name!r} twice")
        if _JUNK.isdisjoint(path.parts):
            members[path] = entry
    for path in members:
        if not members.keys().isdisjoint(path.parents):
            raise _refusal(archive, f"{str(path)!r}, whose folder is a file")
    total = sum(entry.file_size for entry in entries)
    if total > limit:
        raise _refusal(archive, f"{total:,} bytes unpacked, more than {limit:,}")
    if total > RATIO * archive.stat().st_size:
        raise _refusal(archive, f"a compression of more than {RATIO} to 1")
    return members


def unpack(
    archive: Path,
    members: Mapping[PurePosixPath, zipfile.ZipInfo],
    folder: Path,
    report: Progress,
) -> None:
    """Write the files of an archive into a folder, which is emptied first.

    Only regular files and folders are made, with the permissions of any new file.

    Args:
        archive: The zip file that `members` were read from.
        members: What `inspect` returned for it.
        folder: Where to; made anew.
        report: Called with the bytes written so far and their total, after each file.

    Raises:
        DataError: A member is damaged or encrypted. The next call starts over.
        OSError: A file cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done, total = 0, sum(entry.file_size for entry in members.values())
    with zipfile.ZipFile(archive) as zipped:
        for path, entry in members.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with zipped.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)  # zipfile stops at the announced size
            except _DAMAGE as error:
                # Damage has no number (bz2), or is a place before the file's first byte (EINVAL).
                if getattr(error, "errno", None) not in (None, errno.EINVAL):
                    raise
                raise DataError(
                    f"{archive}: {path} cannot be read ({error}).\n"
                    "Remove the archive and download it again."
                ) from error
            done += entry.file_size
            report(done, total)


def _refusal(archive: Path, content: str) -> DataError:
    return DataError(
        f"{archive} holds {content}.\n"
        "No published archive does: remove it, or check --base-url. It was not unpacked."
    )
