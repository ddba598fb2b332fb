"""The published archives of FLAIR #2: fetched, proven, unpacked, and each only once.

A folder that archives are downloaded into looks like this while work is going on:

    DEST/flair_sen_train.zip.part          the bytes so far (with what they belong to, in .json)
    DEST/flair_sen_train.zip               the archive, once its size and MD5 are right
    DEST/.flair2/flair_sen_train/          the files being unpacked
    DEST/.flair2/flair_sen_train.json      the receipt: what was fetched, and how far it got
    DEST/flair_sen_train/                  the files in place, moved there whole

Interrupted at any point, the same call resumes there. How the published archives are laid out
inside cannot be checked without fetching them (their links were not reachable when this was
written): archives with a top folder of their own name, of another name and without any are all put
in the same place.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from flair2_exp.data.download import transfer, unpack
from flair2_exp.errors import DataError
from flair2_exp.files import write_text
from flair2_exp.locking import locked

_LOG = logging.getLogger(__name__)

BASE_URL: Final = (
    "https://storage.gra.cloud.ovh.net/v1/AUTH_366279ce616242ebb14161b7991a8461"
    "/defi-ia/flair_data_2/"
)
"""Where the archives are published."""

Report = Callable[[str, str, int, int | None], None]
"""Called with the archive's name, the step (`downloading`, `checking`, `unpacking`), the bytes
done and their total (None where unknown)."""

_STATE: Final = ".flair2"
_DOMAIN: Final = re.compile(r"D\d{3}_\d{4}")
_GB: Final = 10**9
_MB: Final = 10**6


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        part: What the command line calls it.
        name: Its file's name without `.zip`, and the folder it unpacks to.
        size: Published size in bytes, rounded; None where none is published.
        unpacked: Bytes to expect when unpacked; twice as many are refused, and so is a larger
            archive where no size is published. Aerial patches and masks: their uncompressed pixels.
            Series: twice the archive, an estimate. The others: generous guesses.
        md5: Published MD5; None where none is published.
        table: Whether it holds one JSON file for the top of the tree, not a folder.
    """

    part: str
    name: str
    size: int | None
    unpacked: int
    md5: str | None
    table: bool = False


_TRAIN: Final = 61_712 * 512 * 512
_TEST: Final = 16_050 * 512 * 512

ARCHIVES: Final[tuple[Archive, ...]] = (
    Archive(
        "aerial_train", "flair_aerial_train", 50_700 * _MB, 5 * _TRAIN,
        "0f575b360800f58add19c08f05e18429",
    ),
    Archive(
        "aerial_test", "flair_2_aerial_test", 13_400 * _MB, 5 * _TEST,
        "a647e0ba7e5345b28c48d7887ee79888",
    ),
    Archive(
        "sen_train", "flair_sen_train", 22_800 * _MB, 45_600 * _MB,
        "56fbbd465726ea4dfeea02734edd7cc5",
    ),
    Archive(
        "sen_test", "flair_2_sen_test", 6_000 * _MB, 12_000 * _MB,
        "aae8649dbe457620a76269d915d07624",
    ),
    Archive(
        "labels_train", "flair_labels_train", 485 * _MB, _TRAIN,
        "80d3cd2ee117a61128faa08cbb842c0c",
    ),
    Archive(
        "labels_test", "flair_2_labels_test", 108 * _MB, _TEST,
        "394a769ffcb4a783335eecd3f8baef57",
    ),
    Archive(
        "metadata", "flair_2_aerial_metadata", 16_100_000, 500 * _MB, None, table=True
    ),
    Archive(
        "centroids", "flair_2_centroids_sp_to_patch", None, 100 * _MB,
        "f8ba3b176197c254b6c165c97e93c759", table=True,
    ),
    Archive(
        "toy", "flair_2_toy_dataset", 1_600 * _MB, 4 * _GB,
        "ffde17f275fc258dce19331b5e17e10a",
    ),
)  # fmt: skip
"""Everything published; sizes and MD5 sums as the data set's page gives them."""


@dataclass(frozen=True)
class Outcome:
    """What a call did for one archive.

    Attributes:
        archive: The archive's name.
        fetched: Whether bytes came over the network.
        unpacked: Whether files were put in place; False where they were there already.
        places: What it put at the top of the destination.
    """

    archive: str
    fetched: bool
    unpacked: bool
    places: tuple[str, ...]


@dataclass(frozen=True)
class _Receipt:
    """How far an archive got: `fetched`, `unpacked` (not yet all moved) or `complete`."""

    stage: str
    url: str
    size: int
    md5: str | None
    moves: tuple[tuple[str, str], ...] = ()


def select(parts: Sequence[str], catalogue: Sequence[Archive] = ARCHIVES) -> tuple[Archive, ...]:
    """Return the archives that some words of a command line stand for, in the catalogue's order.

    Args:
        parts: Names of parts; `all` stands for all but the toy set, which repeats some of them.
        catalogue: What there is.

    Raises:
        DataError: An unknown part, or none.
    """
    names = [archive.part for archive in catalogue]
    wanted = {part for part in parts if part != "all"}
    if "all" in parts:
        wanted |= {part for part in names if part != "toy"}
    unknown = sorted(wanted.difference(names))
    if unknown or not wanted:
        raise DataError(
            f"unknown part {unknown[0]!r}; there are: {', '.join(names)}, all."
            if unknown
            else f"no part chosen; there are: {', '.join(names)}, all."
        )
    return tuple(archive for archive in catalogue if archive.part in wanted)


def download(
    destination: Path,
    archives: Sequence[Archive],
    *,
    base_url: str = BASE_URL,
    keep_archives: bool = False,
    patience: transfer.Patience | None = None,
    report: Report | None = None,
) -> tuple[Outcome, ...]:
    """Fetch archives and unpack them into a folder that `layout.locate` then understands.

    An archive that lies in the folder already (fetched by other means) is checked and unpacked
    without the network. What is complete is left alone.

    Args:
        destination: The folder; made if missing.
        archives: What to fetch, as from `select`.
        base_url: Address that `NAME.zip` is appended to.
        keep_archives: Whether archives stay once they are unpacked. One that was there before is
            never removed.
        patience: How long to keep trying.
        report: Called as bytes are fetched, checked and unpacked.

    Returns:
        What was done, an outcome for each archive.

    Raises:
        DataError: Not enough disk, a folder that cannot be written, a failing or wrong server, a
            wrong, damaged or hostile archive, something of the same name in the way, or another
            process at work in the folder.
    """
    jobs = [
        _Job(
            destination,
            archive,
            f"{base_url.rstrip('/')}/{archive.name}.zip",
            keep_archives,
            patience or transfer.Patience(),
            report or (lambda name, step, done, total: None),
        )
        for archive in archives
    ]
    state = destination / _STATE
    try:
        state.mkdir(parents=True, exist_ok=True)
        with locked(state, "choose another folder"):
            _require_space_for_all(destination, jobs, keep_archives)
            for job in jobs:
                job.require_place()
            return tuple(job.run() for job in jobs)
    except OSError as error:
        raise DataError(
            f"{error.filename or destination} cannot be written ({error.strerror}).\n"
            "Choose another destination, or make room: the same command resumes there."
        ) from error


class _Job:
    """One archive on its way to its place."""

    def __init__(
        self,
        destination: Path,
        archive: Archive,
        url: str,
        keep: bool,
        patience: transfer.Patience,
        report: Report,
    ) -> None:
        self.destination = destination
        self.archive = archive
        self.url = url
        self.keep = keep
        self.patience = patience
        self.report = report
        self.file = destination / f"{archive.name}.zip"
        self.work = destination / _STATE / archive.name
        self.record = destination / _STATE / f"{archive.name}.json"

    def run(self) -> Outcome:
        """Do what is left to do.

        Raises:
            DataError: See `download`.
        """
        receipt = self.receipt()
        if self.is_complete(receipt):
            assert receipt is not None
            return self._outcome(receipt, fetched=False, unpacked=False)
        fetched = False
        if receipt is None or receipt.stage != "unpacked":
            fetched = not self.file.exists()
            receipt = self._unpack(self._obtain(receipt))
        self._move(receipt)
        if not self.keep and receipt.url:
            self.file.unlink(missing_ok=True)
        self._write(replace(receipt, stage="complete"))
        return self._outcome(receipt, fetched=fetched, unpacked=True)

    def receipt(self) -> _Receipt | None:
        """Return how far earlier calls got; None where nothing readable says so."""
        try:
            values = json.loads(self.record.read_text("utf-8"))
            moves = tuple((str(source), str(target)) for source, target in values.pop("moves"))
            return _Receipt(**values, moves=moves)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def is_complete(self, receipt: _Receipt | None) -> bool:
        """Return whether the files are in place, as far as the top of the tree tells."""
        return (
            receipt is not None
            and receipt.stage == "complete"
            and all((self.destination / target).exists() for _, target in receipt.moves)
        )

    def is_unpacked(self) -> bool:
        """Return whether the archive's bytes are needed no more."""
        receipt = self.receipt()
        return self.is_complete(receipt) or (receipt is not None and receipt.stage == "unpacked")

    def require_place(self) -> None:
        """Refuse, before a byte is fetched, what stands where the archive's folder goes."""
        if not (self.archive.table or self.is_unpacked()):
            self._require_free([self.archive.name])

    def missing_bytes(self) -> tuple[int, int]:
        """Return disk that the archive and its files still need, as far as known beforehand."""
        if self.is_unpacked():
            return 0, 0
        part = self.file.with_name(self.file.name + ".part")
        present = sum(path.stat().st_size for path in (self.file, part) if path.exists())
        return max((self.archive.size or 0) - present, 0), self.archive.unpacked

    def _obtain(self, receipt: _Receipt | None) -> _Receipt:
        """Put the archive into the destination, unless it is there, and prove it."""
        name, size, md5 = self.archive.name, self.archive.size, self.archive.md5
        if not self.file.exists():
            transfer.fetch(
                self.url,
                self.file,
                size=size,
                limit=self.archive.unpacked,  # a zip file is hardly larger than what it holds
                md5=md5,
                patience=self.patience,
                report=partial(self.report, name, "downloading"),
                checking=partial(self.report, name, "checking"),
            )
            receipt = _Receipt("fetched", self.url, self.file.stat().st_size, md5)
            self._write(receipt)
            return receipt
        length = self.file.stat().st_size
        if receipt is not None and receipt.stage == "fetched" and receipt.size == length:
            return receipt
        if md5 and transfer.md5_of(self.file, partial(self.report, name, "checking")) != md5:
            raise DataError(
                f"{self.file} is not the published archive: its MD5 is not {md5}.\n"
                "Remove it, and it is downloaded."
            )
        # Without an address the receipt says that the archive is the user's, not to be removed.
        return _Receipt("fetched", "", length, md5)

    def _unpack(self, receipt: _Receipt) -> _Receipt:
        """Unpack the archive into the work folder, and plan where each file goes."""
        limits = unpack.Limits(size=2 * self.archive.unpacked)
        members = unpack.inspect(self.file, limits)
        plan = placement(self.archive, [member.path for member in members])
        self._require_free(target for _, target in plan)
        _require_space(self.destination, sum(member.size for member in members), self.file.name)
        report = partial(self.report, self.archive.name, "unpacking")
        unpack.unpack(self.file, members, self.work, report=report)
        unpacked = replace(receipt, stage="unpacked", moves=plan)
        self._write(unpacked)
        return unpacked

    def _move(self, receipt: _Receipt) -> None:
        """Carry out the plan, or what an interrupted call left of it."""
        left = [move for move in receipt.moves if (self.work / move[0]).exists()]
        self._require_free(target for _, target in left)  # an earlier call may have unpacked
        for source, target in left:
            os.replace(self.work / source, self.destination / target)
        shutil.rmtree(self.work, ignore_errors=True)

    def _require_free(self, targets: Iterable[str]) -> None:
        """Refuse to replace what somebody else put there."""
        for target in targets:
            if (self.destination / target).exists():
                raise DataError(
                    f"{self.destination / target} is there already, and not from "
                    f"{self.file.name}.\nMove it away, or choose another destination."
                )

    def _write(self, receipt: _Receipt) -> None:
        write_text(self.record, json.dumps(asdict(receipt), indent=1))

    def _outcome(self, receipt: _Receipt, *, fetched: bool, unpacked: bool) -> Outcome:
        places = tuple(target for _, target in receipt.moves)
        return Outcome(self.archive.name, fetched, unpacked, places)


def placement(archive: Archive, files: Sequence[PurePosixPath]) -> tuple[tuple[str, str], ...]:
    """Return where an archive's content goes, whichever way it is laid out inside.

    Args:
        archive: The archive.
        files: The paths of its files.

    Returns:
        Pairs of a path in the archive (`.` for all of it) and one in the destination.

    Raises:
        DataError: Nothing in it, or a table's archive without a JSON file.
    """
    if archive.table:
        tables = [path for path in files if path.suffix == ".json"]
        if len(tables) != 1:
            raise DataError(
                f"{archive.name}.zip holds {len(tables)} JSON files, where one belongs."
            )
        return ((str(tables[0]), tables[0].name),)
    if not files:
        raise DataError(f"{archive.name}.zip is empty; try another --base-url.")
    tops = list(dict.fromkeys(path.parts[0] for path in files))
    nested = {path.parts[0] for path in files if len(path.parts) > 1}
    if archive.name in nested:
        return tuple((top, top) for top in tops)
    if len(tops) == 1 and tops[0] in nested and not _DOMAIN.fullmatch(tops[0]):
        return ((tops[0], archive.name),)
    return ((".", archive.name),)


def _require_space_for_all(destination: Path, jobs: Sequence[_Job], keep: bool) -> None:
    needs = [job.missing_bytes() for job in jobs]
    zipped = [archive for archive, _ in needs]
    # Without --keep-archives one archive at a time lies beside the unpacked files.
    total = (sum(zipped) if keep else max(zipped, default=0)) + sum(files for _, files in needs)
    _require_space(destination, total, f"{len(jobs)} archives and their files")


def _require_space(destination: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise DataError(
            f"{destination} has {free / _GB:,.1f} GB free; {what} need about "
            f"{needed / _GB:,.1f} GB.\nMake room, choose fewer parts or another destination."
        )
