"""The published archives of FLAIR #2: fetched, checked, unpacked, and each only once.

A folder that archives are downloaded into looks like this while work is in progress:

    DEST/.flair2/flair_sen_train.zip.part  the bytes so far
    DEST/.flair2/flair_sen_train.zip       the archive, once its size and MD5 are right
    DEST/.flair2/flair_sen_train/          the files being unpacked
    DEST/.flair2/flair_sen_train.json      where they go, once all are unpacked
    DEST/flair_sen_train/                  the files in place, moved there whole
    DEST/flair_sen_train.zip               an archive of the user's, or one that is kept

Interrupted at any point, the same call resumes there. How the published archives are laid out
inside cannot be checked without fetching them (their links were not reachable when this was
written): archives with a top folder of their own name, of another name and without any are all put
in the same place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from flair2_exp.data.download import transfer, unpack
from flair2_exp.errors import DataError
from flair2_exp.files import write_text
from flair2_exp.locking import locked

BASE_URL: Final = (
    "https://storage.gra.cloud.ovh.net/v1/AUTH_366279ce616242ebb14161b7991a8461"
    "/defi-ia/flair_data_2/"
)
"""Where the archives are published."""

Report = Callable[[str, str, int, int | None], None]
"""Called with the archive's name, the step (`downloading`, `checking`, `unpacking`), the bytes
done and their total (None where unknown)."""

Moves = tuple[tuple[str, str], ...]
"""Pairs of a path in an archive (`.` for all of it) and one in the destination."""

_STATE: Final = ".flair2"
_DOMAIN: Final = re.compile(r"D\d{3}_\d{4}")


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        part: What the command line calls it.
        name: Its file's name without `.zip`, and the folder it unpacks to.
        size: Published size in bytes, rounded; None where none is published.
        unpacked: Bytes to expect when unpacked; twice as many are refused.
        md5: Published MD5; None where none is published.
        table: Whether it holds one JSON file for the top of the tree, not a folder.
    """

    part: str
    name: str
    size: int | None
    unpacked: int
    md5: str | None
    table: bool = False

    @property
    def sizes(self) -> range:
        """Return the counts of bytes that its file may have: 10 % around the published size.

        Sizes are rounded, and a GB may be 2^30 bytes, 7.4 % more than 10^9. Where none is
        published: a zip file is hardly larger than what it holds.
        """
        if self.size is None:
            return range(self.unpacked + 1)
        return range(self.size * 9 // 10, self.size * 11 // 10 + 1)


# Sizes in MB. Unpacked, aerial patches and masks: their uncompressed pixels; series: twice the
# archive, an estimate; the others: generous guesses.
_ROWS: Final[tuple[tuple[str, str, float | None, int, str | None], ...]] = (
    ("aerial_train", "flair_aerial_train", 50_700, 80_890, "0f575b360800f58add19c08f05e18429"),
    ("aerial_test", "flair_2_aerial_test", 13_400, 21_040, "a647e0ba7e5345b28c48d7887ee79888"),
    ("sen_train", "flair_sen_train", 22_800, 45_600, "56fbbd465726ea4dfeea02734edd7cc5"),
    ("sen_test", "flair_2_sen_test", 6_000, 12_000, "aae8649dbe457620a76269d915d07624"),
    ("labels_train", "flair_labels_train", 485, 16_180, "80d3cd2ee117a61128faa08cbb842c0c"),
    ("labels_test", "flair_2_labels_test", 108, 4_210, "394a769ffcb4a783335eecd3f8baef57"),
    ("metadata", "flair_2_aerial_metadata", 16.1, 500, None),
    ("centroids", "flair_2_centroids_sp_to_patch", None, 100, "f8ba3b176197c254b6c165c97e93c759"),
    ("toy", "flair_2_toy_dataset", 1_600, 4_000, "ffde17f275fc258dce19331b5e17e10a"),
)

ARCHIVES: Final = tuple(
    Archive(
        part,
        name,
        None if size is None else round(size * 10**6),
        unpacked * 10**6,
        md5,
        table=part in ("metadata", "centroids"),
    )
    for part, name, size, unpacked, md5 in _ROWS
)
"""Everything published; sizes and MD5 sums as the data set's page gives them."""


def select(parts: Sequence[str]) -> tuple[Archive, ...]:
    """Return the archives of some parts; `all` are all but the toy set, which repeats some."""
    return tuple(
        archive
        for archive in ARCHIVES
        if archive.part in parts or ("all" in parts and archive.part != "toy")
    )


def download(
    destination: Path,
    archives: Sequence[Archive],
    *,
    base_url: str = BASE_URL,
    keep_archives: bool = False,
    report: Report = lambda name, step, done, total: None,
) -> list[str]:
    """Fetch archives and unpack them into a folder that `layout.locate` then understands.

    An archive that lies in the folder already (fetched by other means) is checked and unpacked
    without the network. What is complete is left alone.

    Args:
        destination: The folder; made if missing.
        archives: What to fetch, as from `select`.
        base_url: Address that `NAME.zip` is appended to.
        keep_archives: Whether archives stay once they are unpacked. One that was there before is
            never removed.
        report: Called as bytes are fetched, checked and unpacked.

    Returns:
        What was done, one line per archive.

    Raises:
        DataError: Not enough disk, a folder that cannot be written, a failing or wrong server, a
            wrong, damaged or hostile archive, or something of the same name in the way.
        ConfigError: Another process is at work in the folder.
    """
    state = destination / _STATE
    jobs = [_Job(destination, archive, keep_archives, report) for archive in archives]
    try:
        state.mkdir(parents=True, exist_ok=True)
        with locked(state, "choose another folder"):
            sizes = [job.missing_bytes() for job in jobs]
            zipped = [size for size, _ in sizes]
            # Without --keep-archives one archive at a time lies beside the unpacked files.
            total = sum(zipped) if keep_archives else max(zipped, default=0)
            total += sum(files for _, files in sizes)
            _require_space(destination, total, f"{len(jobs)} archives and their files")
            for job in jobs:
                job.require_place()
            return [job.run(base_url) for job in jobs]
    except OSError as error:
        raise DataError(
            f"{error.filename or destination} cannot be written ({error.strerror}).\n"
            "Choose another destination, or make room: the same command resumes there."
        ) from error


class _Job:
    """One archive on its way to its place."""

    def __init__(self, destination: Path, archive: Archive, keep: bool, report: Report) -> None:
        self.destination = destination
        self.archive = archive
        self.keep = keep
        self.report = partial(report, archive.name)
        self.work = destination / _STATE / archive.name
        self.plan_file = destination / _STATE / f"{archive.name}.json"
        self.file = destination / _STATE / f"{archive.name}.zip"
        self.user_file = destination / f"{archive.name}.zip"

    def run(self, base_url: str) -> str:
        """Do what is left to do, and return a line about it.

        Raises:
            DataError: See `download`.
        """
        plan = self.plan()
        unpacked = plan is None or self.work.exists()
        if plan is None:
            plan = self._unpack(self._obtain(f"{base_url.rstrip('/')}/{self.archive.name}.zip"))
        moves = [move for move in plan if (self.work / move[0]).exists()]
        self._require_free(target for _, target in moves)  # an earlier call may have unpacked
        for source, target in moves:
            os.replace(self.work / source, self.destination / target)
        if self.keep and self.file.exists():
            os.replace(self.file, self.user_file)
        self.file.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)  # the last step: without it, all is done
        places = ", ".join(target for _, target in plan)
        return f"{self.archive.name}: {'unpacked to' if unpacked else 'there already:'} {places}"

    def plan(self) -> Moves | None:
        """Return where the unpacked files go or went; None where they must be unpacked."""
        try:
            pairs = json.loads(self.plan_file.read_text("utf-8"))
            plan = tuple((str(source), str(target)) for source, target in pairs)
        except (OSError, ValueError, TypeError):
            return None
        placed = all((self.destination / target).exists() for _, target in plan)
        return plan if placed or self.work.exists() else None

    def require_place(self) -> None:
        """Refuse, before a byte is fetched, what stands where the archive's folder goes."""
        if not self.archive.table and self.plan() is None:
            self._require_free([self.archive.name])

    def missing_bytes(self) -> tuple[int, int]:
        """Return disk that the archive and its files still need, as far as known beforehand."""
        if self.plan() is not None:
            return 0, 0
        paths = (self.user_file, self.file, self.file.with_name(self.file.name + ".part"))
        present = sum(path.stat().st_size for path in paths if path.exists())
        return max((self.archive.size or 0) - present, 0), self.archive.unpacked

    def _obtain(self, url: str) -> Path:
        """Return the archive, checked; it is fetched unless it is there."""
        md5 = self.archive.md5
        if not self.file.exists() and self.user_file.exists():
            if md5 and transfer.md5_of(self.user_file, self.report) != md5:
                raise DataError(
                    f"{self.user_file} is not the published archive: its MD5 is not {md5}.\n"
                    "Remove it, and it is downloaded."
                )
            return self.user_file
        if not self.file.exists():
            transfer.fetch(url, self.file, self.archive.sizes, md5, self.report)
        return self.file

    def _unpack(self, file: Path) -> Moves:
        """Unpack the archive into the work folder, and plan where each file goes."""
        self.plan_file.unlink(missing_ok=True)
        members = unpack.inspect(file, 2 * self.archive.unpacked)
        plan = placement(self.archive, file, list(members))
        self._require_free(target for _, target in plan)
        size = sum(entry.file_size for entry in members.values())
        _require_space(self.destination, size, f"the files of {file.name}")
        unpack.unpack(file, members, self.work, partial(self.report, "unpacking"))
        write_text(self.plan_file, json.dumps(plan))
        return plan

    def _require_free(self, targets: Iterable[str]) -> None:
        """Refuse to replace what somebody else put there."""
        for target in targets:
            if (self.destination / target).exists():
                raise DataError(
                    f"{self.destination / target} is there already, and not from "
                    f"{self.file.name}.\nMove it away, or choose another destination."
                )


def placement(archive: Archive, file: Path, paths: Sequence[PurePosixPath]) -> Moves:
    """Return where an archive's content goes, however its file is laid out inside.

    Raises:
        DataError: Nothing in it, or a table's archive without a JSON file.
    """
    if archive.table:
        tables = [path for path in paths if path.suffix == ".json"]
        if len(tables) != 1:
            raise DataError(
                f"{file} holds {len(tables)} JSON files, where one belongs.\n"
                "Remove it, or check --base-url: it is not the published archive."
            )
        return ((str(tables[0]), tables[0].name),)
    if not paths:
        raise DataError(f"{file} is empty.\nRemove it, and try another --base-url.")
    tops = list(dict.fromkeys(path.parts[0] for path in paths))
    nested = {path.parts[0] for path in paths if len(path.parts) > 1}
    if archive.name in nested:
        return tuple((top, top) for top in tops)
    if len(tops) == 1 and tops[0] in nested and not _DOMAIN.fullmatch(tops[0]):
        return ((tops[0], archive.name),)
    return ((".", archive.name),)


def _require_space(destination: Path, needed: int, content: str) -> None:
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise DataError(
            f"{destination} has {free / 1e9:,.1f} GB free; {content} need about "
            f"{needed / 1e9:,.1f} GB.\nMake room, choose fewer parts or another destination."
        )
