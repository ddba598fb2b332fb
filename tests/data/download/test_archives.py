"""Archives from a server on loopback to their places, by the package and by the command."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from flair2_exp.config.data import DatasetConfig
from flair2_exp.data.download import archives, unpack
from flair2_exp.data.download.archives import ARCHIVES, Archive, download, placement, select
from flair2_exp.data.layout import locate
from flair2_exp.errors import ConfigError, DataError
from tests.commands import Answer as Done
from tests.commands import answer
from tests.data.download.servers import Answer, Request, Server, md5, ranged, zipped
from tests.data.trees import write_tree

SEN = "flair_sen_train"


def entry(name: str, content: bytes, unpacked: int = 5_000_000) -> Archive:
    return Archive("part", name, len(content), unpacked, md5(content))


def serve(server: Server, contents: dict[str, bytes]) -> None:
    def plan(number: int, request: Request) -> Answer:
        name = request.path.removeprefix("/").removesuffix(".zip")
        return ranged(contents[name], request) if name in contents else Answer(404)

    server.plan = plan


@pytest.fixture
def sen(server: Server, tmp_path: Path) -> Archive:
    files = {f"{SEN}/D004_2021/a.npy": b"1", f"{SEN}/D006_2020/b.npy": b"2"}
    content = zipped(tmp_path / "made" / "sen.zip", files).read_bytes()
    serve(server, {SEN: content})
    return entry(SEN, content)


def contents_of(path: Path) -> dict[str, bytes]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def test_an_archive_is_fetched_unpacked_and_removed(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    to = tmp_path / "to"
    assert download(to, [sen], base_url=server.url + "/") == [f"{SEN}: unpacked to {SEN}"]
    assert contents_of(to / SEN) == {"D004_2021/a.npy": b"1", "D006_2020/b.npy": b"2"}
    assert sorted(path.name for path in to.iterdir()) == [".flair2", SEN]
    assert {path.name for path in (to / ".flair2").iterdir()} == {".lock", f"{SEN}.json"}


def test_a_second_call_changes_nothing(server: Server, tmp_path: Path, sen: Archive) -> None:
    download(tmp_path / "to", [sen], base_url=server.url)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "to").rglob("*")}
    lines = download(tmp_path / "to", [sen], base_url=server.url)
    assert lines == [f"{SEN}: there already: {SEN}"]
    assert len(server.requests) == 1
    del times[tmp_path / "to" / ".flair2" / ".lock"]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_an_archive_that_is_kept_is_used_by_the_next_call(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    to = tmp_path / "to"
    download(to, [sen], base_url=server.url, keep_archives=True)
    assert md5((to / f"{SEN}.zip").read_bytes()) == sen.md5
    shutil.rmtree(to / SEN)
    assert download(to, [sen], base_url=server.url) == [f"{SEN}: unpacked to {SEN}"]
    assert len(server.requests) == 1
    assert (to / f"{SEN}.zip").exists(), "what lay there before is the user's"


def test_a_wrong_archive_of_the_user_is_refused_and_left(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    archive = zipped(tmp_path / "to" / f"{SEN}.zip", {"other": b""})
    with pytest.raises(DataError, match=r"is not the published archive.*\nRemove it"):
        download(tmp_path / "to", [sen], base_url=server.url)
    assert archive.exists()


def test_what_stands_in_the_way_is_named_before_a_byte_is_fetched(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    mine = tmp_path / "to" / SEN / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    other = dataclasses.replace(sen, name="first")
    with pytest.raises(DataError, match=rf"{SEN} is there already, and not from .*\nMove it away"):
        download(tmp_path / "to", [other, sen], base_url=server.url)
    assert mine.read_text() == "mine"
    assert server.requests == []


@pytest.mark.parametrize("step", ["downloading", "checking", "unpacking"])
def test_a_call_stopped_at_any_step_is_resumed(
    server: Server, tmp_path: Path, sen: Archive, step: str
) -> None:
    def stop(name: str, now: str, done: int, total: int | None) -> None:
        if now == step and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "to", [sen], base_url=server.url, report=stop)
    assert not (tmp_path / "to" / SEN).exists()
    download(tmp_path / "to", [sen], base_url=server.url)
    assert len(contents_of(tmp_path / "to" / SEN)) == 2
    assert [request.first for request in server.requests] in ([0], [0, sen.size])
    assert not list((tmp_path / "to").rglob("*.zip*"))


@pytest.mark.parametrize("last", ["flair_2_toy_dataset", "table.json", "flair_2_toy_dataset.zip"])
def test_a_call_stopped_while_it_moves_is_resumed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """Before the first move, between two of them, and before the archive's."""
    files = {"flair_2_toy_dataset/x": b"1", "table.json": b"{}"}
    content = zipped(tmp_path / "made.zip", files).read_bytes()
    serve(server, {"flair_2_toy_dataset": content})
    toy, to = entry("flair_2_toy_dataset", content), tmp_path / "to"
    replace = os.replace

    def stop(source: Path, target: Path) -> None:
        if target == to / last:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            download(to, [toy], base_url=server.url, keep_archives=True)
    assert (to / ".flair2" / "flair_2_toy_dataset").exists()
    download(to, [toy], base_url=server.url)
    assert contents_of(to / "flair_2_toy_dataset") == {"x": b"1"}
    assert (to / "table.json").read_bytes() == b"{}"
    assert len(server.requests) == 1
    assert len(list((to / ".flair2").iterdir())) == 2, "the lock and the plan"


def test_what_came_into_the_way_after_unpacking_is_not_overwritten(
    server: Server, tmp_path: Path, sen: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "to" / SEN / "mine"

    def unpack_late(*arguments: Any) -> None:
        real(*arguments)
        mine.parent.mkdir()
        mine.write_text("mine")

    real = unpack.unpack
    with monkeypatch.context() as patch:
        patch.setattr(unpack, "unpack", unpack_late)
        with pytest.raises(DataError, match=rf"{SEN} is there already, and not from"):
            download(tmp_path / "to", [sen], base_url=server.url)
    assert mine.read_text() == "mine"
    shutil.rmtree(mine.parent)
    download(tmp_path / "to", [sen], base_url=server.url)
    assert len(contents_of(mine.parent)) == 2
    assert len(server.requests) == 1


def test_a_hostile_archive_leaves_the_destination_empty(server: Server, tmp_path: Path) -> None:
    content = zipped(tmp_path / "evil.zip", {"../evil": b"x"}).read_bytes()
    serve(server, {SEN: content})
    with pytest.raises(DataError, match="holds the path"):
        download(tmp_path / "to", [entry(SEN, content)], base_url=server.url)
    assert [path.name for path in (tmp_path / "to").iterdir()] == [".flair2"]
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(("keep", "needed"), [(False, 2_000_000), (True, 2_300_000)])
def test_a_disk_too_small_is_named_before_a_byte_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool, needed: int
) -> None:
    archives = [
        Archive("a", "a", 300_000, 700_000, None),
        Archive("b", "b", 500_000, 800_000, None),
    ]
    usage = shutil.disk_usage(tmp_path)
    for free, message in (
        (needed - 1, "free; 2 archives and their files need about"),
        (needed, "answers 404"),
    ):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: usage._replace(free=free))
        with pytest.raises(DataError, match=message):
            download(tmp_path, archives, base_url=server.url, keep_archives=keep)
        assert bool(server.requests) is (free == needed)


def test_a_disk_too_small_for_the_files_is_named_before_unpacking(
    server: Server, tmp_path: Path, sen: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    frees = iter([10**9, 1])
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=next(frees)))
    with pytest.raises(DataError, match=rf"free; the files of {SEN}\.zip need"):
        download(tmp_path / "to", [sen], base_url=server.url)
    assert not (tmp_path / "to" / SEN).exists()


@pytest.mark.parametrize("place", ["a file", "a file/below", "/proc/none"])
def test_a_destination_that_cannot_be_written_is_named(
    tmp_path: Path, sen: Archive, place: str
) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(DataError, match=r"(a file|/proc).* cannot be written \(.*\nChoose") as info:
        download(tmp_path / place, [sen])
    assert str(info.value).count("\n") == 1


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["shutil.copyfileobj", "os.replace"])
def test_a_disk_that_fills_up_is_named_and_the_next_call_resumes(
    server: Server,
    tmp_path: Path,
    sen: Archive,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        with pytest.raises(DataError, match=r"cannot be written \(No space left.*\n.*resumes"):
            download(tmp_path, [sen], base_url=server.url)
    download(tmp_path, [sen], base_url=server.url)
    assert len(contents_of(tmp_path / SEN)) == 2
    assert [request.first for request in server.requests] in ([0], [0, sen.size])


def test_two_downloads_into_one_folder_do_not_meet(
    server: Server, tmp_path: Path, sen: Archive
) -> None:
    messages: list[str] = []

    def report(name: str, step: str, done: int, total: int | None) -> None:
        with pytest.raises(ConfigError) as info:
            download(tmp_path / "to", [sen], base_url=server.url)
        messages.append(str(info.value))

    download(tmp_path / "to", [sen], base_url=server.url, report=report)
    assert messages
    assert all("is in use by process" in message for message in messages)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([f"{SEN}/D004_2021/a", f"{SEN}/D006_2020/b"], ((SEN, SEN),)),
        (["data/D004_2021/a", "data/D006_2020/b"], (("data", SEN),)),
        (["D004_2021/a", "D006_2020/b"], ((".", SEN),)),
        (["D004_2021/a"], ((".", SEN),)),
        ([f"{SEN}/D004_2021/a", "readme.txt"], ((SEN, SEN), ("readme.txt", "readme.txt"))),
    ],
)
def test_an_archive_finds_its_place_however_it_is_laid_out(
    paths: list[str], expected: tuple[tuple[str, str], ...]
) -> None:
    archive = Archive("sen_train", SEN, None, 1, None)
    assert placement(archive, Path(), [PurePosixPath(path) for path in paths]) == expected


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("paths", [[], ["a.txt"], ["a.json", "b.json"]])
def test_an_archive_without_its_content_is_refused(paths: list[str], table: bool) -> None:
    archive = Archive("metadata", "flair_2_aerial_metadata", None, 1, None, table=table)
    files = [PurePosixPath(path) for path in paths]
    if paths and not table:
        assert placement(archive, Path("a.zip"), files) == ((".", archive.name),)
        return
    fault = r"holds \d JSON files, where one belongs" if table else "is empty"
    with pytest.raises(DataError, match=rf"a\.zip {fault}.*\nRemove it"):
        placement(archive, Path("a.zip"), files)


@pytest.mark.parametrize("nested", [True, False])
def test_a_release_fetched_whole_is_found_by_the_layout(
    server: Server, tmp_path: Path, nested: bool
) -> None:
    made = tmp_path / "made"
    write_tree(made)
    archives, contents = [], {}
    for archive in select(["all"]):
        if archive.table:
            word = "centroids" if archive.part == "centroids" else "metadata"
            (path,) = made.glob(f"*{word}*.json")
            files = {f"{archive.name}/{path.name}" if nested else path.name: path.read_bytes()}
        else:
            prefix = f"{archive.name}/" if nested else ""
            inside = contents_of(made / archive.name)
            files = {prefix + name: content for name, content in inside.items()}
        content = zipped(tmp_path / "zips" / archive.name, files).read_bytes()
        contents[archive.name] = content
        archives.append(
            dataclasses.replace(archive, size=len(content), md5=md5(content), unpacked=10**6)
        )
    serve(server, contents)
    download(tmp_path / "to", archives, base_url=server.url)
    here, there = (locate(DatasetConfig(root=str(folder))) for folder in (tmp_path / "to", made))
    assert here.keys() == there.keys()
    for part, path in there.items():
        assert here[part].name == path.name
        assert contents_of(here[part]) == contents_of(path)


def test_parts_are_chosen_by_name() -> None:
    chosen = [archive.part for archive in select(["sen_test", "aerial_train", "sen_test"])]
    assert chosen == ["aerial_train", "sen_test"]
    assert [a.part for a in select(["all"])] == [a.part for a in ARCHIVES if a.part != "toy"]
    assert select(["all", "toy"]) == ARCHIVES


def test_the_table_holds_well_formed_sums() -> None:
    assert len({archive.name for archive in ARCHIVES}) == len(ARCHIVES) == 9
    for archive in ARCHIVES:
        assert archive.md5 is None or (len(archive.md5) == 32 and int(archive.md5, 16))
        assert archive.size is None or archive.unpacked >= archive.size
        assert (archive.size or 10**8) in archive.sizes
        assert (archive.size or 10**8) * 12 // 10 not in archive.sizes
    assert [archive.part for archive in ARCHIVES if archive.table] == ["metadata", "centroids"]


# --- the command line -------------------------------------------------------------------------


def test_the_command_downloads_then_finds_all_there(
    server: Server,
    tmp_path: Path,
    sen: Archive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archives, "select", lambda parts: [sen])
    command = [str(tmp_path / "to"), "--parts", "toy", "--base-url", server.url]
    for line in (f"{SEN}: unpacked to {SEN}\n", f"{SEN}: there already: {SEN}\n"):
        assert answer("download", *command) == Done(0, line, "")


def test_the_command_names_a_failure_in_two_lines_without_the_password(
    server: Server, tmp_path: Path
) -> None:
    url = server.url.replace("//", "//user:secret@")
    done = answer("download", str(tmp_path), "--parts", "centroids", "--base-url", url)
    assert done.status == 1
    message = done.err
    address = server.url.replace("//", "//***@")
    assert message.startswith(
        f"flair2-exp: {address}/flair_2_centroids_sp_to_patch.zip: the server"
    )
    assert message.count("\n") == 2
    assert "secret" not in message
    files = (path for path in tmp_path.rglob("*") if path.is_file())
    assert not any(b"secret" in path.read_bytes() for path in files)


def test_the_command_stopped_by_its_user_says_how_to_resume(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "download", stopped)
    done = answer("download", str(tmp_path), "--parts", "toy")
    assert done.status == 130
    assert "the same command resumes here" in done.err


@pytest.mark.parametrize("arguments", [[], ["to"], ["to", "--parts", "sat"], ["to", "--part"]])
def test_wrong_usage_ends_with_status_two(arguments: list[str]) -> None:
    assert answer("download", *arguments).status == 2


def test_the_list_names_every_archive() -> None:
    listing = answer("download", "--list").out
    assert all(archive.name in listing for archive in ARCHIVES)
    assert all(archive.md5 in listing for archive in ARCHIVES if archive.md5)


def test_help_does_not_load_torch() -> None:
    code = "import sys; import flair2_exp.data.download.archives; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
