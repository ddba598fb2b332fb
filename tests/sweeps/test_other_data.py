"""A finished sweep is that of its data: the same command on other data is refused, trains nothing
and leaves every result as it was.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.sweeps.plan import DONE, Job
from tests.commands import answer
from tests.configs import SMALL_SAMPLE
from tests.data.trees import write_tree
from tests.sweeps.made import FIXED, SUBDIR, MadeSweep
from tests.sweeps.plans import finish, planned

SWEEP = (
    "--multirun", "model=unet", "preset=debug", "trainer=cpu", "tracking=off", "sweep.name=short",
    *SMALL_SAMPLE,
)  # fmt: skip
SEEDS = ("seed=1,2", "seed=1,2,3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place of a finished sweep on the sample, and of a copy of the sample with other masks."""
    root = tmp_path_factory.mktemp("finished")
    done = answer(*SWEEP, SEEDS[0], f"paths.root={root}")
    assert done.status == 0, done.err
    (sample,) = (root / "data").glob("sample_64px_*")
    shutil.copytree(sample, root / "other")
    for mask in (root / "other").glob("flair_2_labels_test/*/*/msk/*.tif"):
        mask.unlink()
        shutil.copyfile(next((root / "other").glob("flair_labels_train/*/*/msk/*.tif")), mask)
    return root


def states(folder: Path) -> dict[Path, int]:
    """The times of change of all files below a folder."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refused(finished: Path, *line: str) -> str:
    """What a sweep's command is refused with, which trains nothing and changes nothing."""
    before = states(finished)
    done = answer(*line, f"paths.root={finished}")
    assert states(finished) == before
    assert done.status == 1
    assert len(done.err.strip().splitlines()) == 2, done.err
    assert "sweep.name=NAME" in done.err.splitlines()[1]
    return done.err


@pytest.mark.parametrize("seeds", SEEDS)
def test_another_data_set_is_refused_with_both_named(finished: Path, seeds: str) -> None:
    line = [each for each in SWEEP if not each.startswith("dataset.sample.")]
    other = f"{finished}/other"
    message = refused(finished, *line, "dataset=flair2", f"dataset.root={other}", seeds)
    (sample,) = (finished / "data").iterdir()
    assert f"holds a run of other data: sample in {sample} (fingerprint " in message
    assert f"not flair2 in {other} (fingerprint " in message


@pytest.mark.parametrize("seeds", SEEDS)
def test_another_sample_that_is_not_made_yet_is_refused_with_both_named(
    finished: Path, seeds: str
) -> None:
    message = refused(finished, *SWEEP, "dataset.sample.seed=7", seeds)
    (sample,) = (finished / "data").iterdir()
    assert f"sample in {sample} (fingerprint " in message
    assert f"not sample in {str(sample).replace('_seed0', '_seed7')}" in message


def test_a_sample_of_another_seed_in_the_same_place_is_refused(finished: Path) -> None:
    """The options of a sample decide, where its files are gone and do not tell."""
    (sample,) = (finished / "data").iterdir()
    sample.rename(finished / "away")
    try:
        root = f"dataset.root={sample}"
        assert "2 jobs, 2 done" in answer(
            *SWEEP, SEEDS[0], root, f"paths.root={finished}", "sweep.dry_run=true"
        ).out  # fmt: skip
        message = refused(finished, *SWEEP, SEEDS[0], root, "dataset.sample.seed=7")
        assert "dataset.sample.seed: 0 -> 7" in message
    finally:
        (finished / "away").rename(sample)


def test_a_changed_place_in_the_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("dataset=flair2", "model=unet", "seed=1,2")
    one, other = (write_tree(tmp_path / name, seed=at).root for at, name in enumerate("ab"))
    copy = tmp_path / "copy"
    shutil.copytree(one, copy)
    monkeypatch.setenv("FLAIR2_ROOT", str(one))
    for job in planned(tmp_path, *lines):
        assert job.fingerprint
        finish(job)
    monkeypatch.setenv("FLAIR2_ROOT", str(copy))  # the same files elsewhere are the same data
    assert [job.state for job in planned(tmp_path, *lines)] == [DONE, DONE]
    monkeypatch.setenv("FLAIR2_ROOT", str(other))
    for seeds in SEEDS:
        with pytest.raises(ConfigError) as refusal:
            planned(tmp_path, *lines[:2], seeds)
        assert f"flair2 in {one} (fingerprint" in str(refusal.value)
        assert f"not flair2 in {other} (fingerprint" in str(refusal.value)


def test_a_file_changed_in_place_with_size_and_mtime_put_back_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_000_000_000)  # so that digests are kept
    tree = write_tree(tmp_path / "tree")
    lines = ("dataset=flair2", f"dataset.root={tree.root}", "model=unet", "seed=1")
    (job,) = planned(tmp_path, *lines)
    finish(job)
    assert planned(tmp_path, *lines)[0].state == DONE
    mask = tree.mask("IMG_000005")
    before, content = mask.stat(), mask.read_bytes()
    with mask.open("r+b") as file:
        file.write(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = mask.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(ConfigError, match="holds a run of other data") as refusal:
        planned(tmp_path, *lines)
    assert len(str(refusal.value).splitlines()) == 2


def _one_byte(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def _other_split(content: bytes) -> bytes:
    return content.replace(b"train: [D006_2020]", b"train: [D004_2021]").replace(
        b"validation: [D004_2021]", b"validation: [D006_2020]"
    )


@pytest.mark.parametrize(
    ("options", "content", "change"),
    [
        ("model.weights=FILE", b"weights", _one_byte),
        ("train=false checkpoint=FILE", b"checkpoint", _one_byte),
        ("model.encoder_weights=FILE", b"weights", _one_byte),
        (
            "split=file split.file=FILE",
            b"train: [D006_2020]\nvalidation: [D004_2021]\ntest: [D015_2020]\n",
            _other_split,
        ),
    ],
)
def test_another_file_under_the_same_name_is_another_experiment(
    options: str, content: bytes, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    tree, file = write_tree(tmp_path / "tree"), tmp_path / "file"
    file.write_bytes(content)
    lines = ("dataset=flair2", f"dataset.root={tree.root}", "model=unet", "seed=1")
    named = options.replace("FILE", str(file)).split()

    def job_in(root: Path) -> tuple[Job, str]:
        (job,) = planned(root, *lines, *named)
        return job, RunRecord.of(job.config, job.fingerprint, job.folder).identity

    job, identity = job_in(tmp_path)
    finish(job)
    assert job_in(tmp_path)[0].state == DONE
    changed = change(content)
    assert len(changed) == len(content)
    assert changed != content
    (tmp_path / "fresh").write_bytes(changed)
    (tmp_path / "fresh").replace(file)
    again, other = job_in(tmp_path / "again")
    assert other != identity
    assert again.experiment != job.experiment
    with pytest.raises(ConfigError, match=r"holds a run of (another experiment|other data)"):
        job_in(tmp_path)


# Launchers to other machines, whose files are not visible from here.

ELSEWHERE = {"_target_": "a_stub.of_submitit.Launcher"}


def test_where_data_are_not_visible_their_place_tells_whether_a_job_is_done(
    made: MadeSweep,
) -> None:
    one, two = (("dataset=flair2", f"dataset.root=/elsewhere/{name}") for name in ("one", "two"))

    def works(seed: int, folder: Path) -> None:
        (job,) = planned(made.root, f"seed={seed}", *FIXED, *one, subdir=SUBDIR)
        finish(job, fingerprint="data")

    for launches in ([[1, 2, 3, 4]], []):
        made.run(works, "sweep.report=false", overrides=one, **ELSEWHERE)
        assert made.launches == launches
    with pytest.raises(ConfigError) as refusal:
        made.run(works, "sweep.report=false", overrides=two, **ELSEWHERE)
    both = "flair2 in /elsewhere/one (fingerprint data), not flair2 in /elsewhere/two"
    assert both in str(refusal.value)
    assert made.launches == []
