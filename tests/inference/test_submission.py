"""Submissions: what is written, and what is wrong with those of others."""

from __future__ import annotations

import io
import os
import re
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flair2_exp.errors import ConfigError, DataError
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.submission import (
    TIME_LIMIT,
    check_submission,
    read_ids,
    write_submission,
)
from tests.commands import forked
from tests.inference.outputs_run import predictor, run_folder, trained

__all__ = ["predictor", "trained"]  # fixtures

SIZE = 64
IDS = ["IMG_000001", "IMG_000002"]


def tiff(pixels: np.ndarray | None = None, compression: str | None = "tiff_lzw") -> bytes:
    """A prediction as the published code writes it."""
    out = io.BytesIO()
    pixels = np.full((SIZE, SIZE), 12, np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(out, format="TIFF", compression=compression)
    return out.getvalue()


def zipped(
    path: Path, files: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def problems(path: Path, ids: list[str] | None = IDS) -> dict[str, str]:
    return {each.name: each.problem for each in check_submission(path, ids, size=SIZE)}


def test_a_submission_holds_the_predicted_classes_as_the_challenge_reads_them(
    predictor: Predictor, tmp_path: Path
) -> None:
    summary = write_submission(predictor, tmp_path / "submission.zip")
    patches = {f"PRED_{each.patch_id[4:]}.tif": each for each in predictor.split("test")}
    assert (summary.patches, summary.predicted, summary.patch_size) == (len(patches),) * 2 + (64,)
    assert summary.seconds > 0
    with zipfile.ZipFile(summary.path) as archive:
        assert archive.namelist() == sorted(patches)
        for name, patch in patches.items():
            with Image.open(io.BytesIO(archive.read(name))) as image:
                assert (image.mode, image.info["compression"]) == ("L", "tiff_lzw")
                assert not {33550, 33922, 34735} & set(image.tag_v2)  # no place on the ground
                assert (np.asarray(image) == patch.prediction.classes).all()
    ids = predictor.data[0].index.ids[predictor.data[0].split.test].tolist()
    assert check_submission(summary.path, ids, size=64) == []
    assert [each.name for each in tmp_path.iterdir()] == ["submission.zip"]


def test_a_killed_submission_resumes_and_ends_with_the_same_bytes(
    predictor: Predictor, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed.zip"

    def die(done: int, _: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(lambda: write_submission(predictor, out, progress=die)) == -signal.SIGKILL
    assert not out.exists()
    # Another network does not take what this one predicted; its own remains are removed.
    turned = Predictor.from_run(trained, tta="flips", device="cpu")
    assert write_submission(turned, tmp_path / "other.zip").predicted == 4
    resumed = write_submission(predictor, out)
    assert (resumed.predicted, resumed.patches) == (2, 4)
    whole = write_submission(predictor, tmp_path / "whole.zip", batch_size=3)
    assert out.read_bytes() == whole.path.read_bytes()
    assert out.read_bytes() != (tmp_path / "other.zip").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_network_of_other_classes_and_a_file_that_is_there_are_refused(
    predictor: Predictor, trained: Path, tmp_path: Path
) -> None:
    run = run_folder(trained.parent, tmp_path / "run", "data.classes=19")
    out = tmp_path / "out" / "submission.zip"
    with pytest.raises(ConfigError, match="predicts 19 classes"):
        write_submission(Predictor.from_run(run, device="cpu"), out)
    assert not out.parent.exists()
    out.parent.mkdir()
    out.write_bytes(b"earlier")
    with pytest.raises(ConfigError, match="is there already"):
        write_submission(predictor, out)
    assert write_submission(predictor, out, overwrite=True).patches == 4


def test_a_sound_submission_has_no_problems(tmp_path: Path) -> None:
    files = [("PRED_000001.tif", tiff()), ("PRED_000002.tif", tiff())]
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = zipped(tmp_path / "sound.zip", files, compression)
        assert problems(path) == {}
        assert problems(path, None) == {}


ABOVE = np.zeros((SIZE, SIZE), np.uint8)
ABOVE[:3, 0] = (13, 13, 255)
FIRST = "PRED_000001.tif"


@pytest.mark.parametrize(("name", "content", "problem"), [
    (FIRST, tiff(ABOVE), r"3 pixels above 12 \(the highest is 255\): they vanish"),
    (FIRST, tiff(np.zeros((32, SIZE), np.uint8)), "64 x 32 pixels; expected 64 x 64"),
    (FIRST, tiff(np.zeros((SIZE, SIZE, 3), np.uint8)), "holds RGB pixels"),
    (FIRST, tiff(np.zeros((SIZE, SIZE), np.int32)), "holds I pixels"),
    (FIRST, tiff(compression=None), "compressed by raw; expected tiff_lzw"),
    (FIRST, tiff(compression="tiff_adobe_deflate"), "expected tiff_lzw"),
    (FIRST, tiff()[:100], "cannot be read as a TIFF"),
    (FIRST, b"", "cannot be read as a TIFF"),
    (FIRST, b"\x89PNG\r\n\x1a\n", "cannot be read as a TIFF"),
    (FIRST, bytes(10**7), "has 10,000,000 bytes"),
    ("predictions/PRED_000001.tif", tiff(), "flat zip"),
    ("../PRED_000001.tif", tiff(), "flat zip"),
    ("..\\PRED_000001.tif", tiff(), "flat zip"),
    ("predictions/", b"", "flat zip"),
    ("PRED_000001.png", tiff(), "expected a name such as PRED_061946.tif"),
])  # fmt: skip
def test_each_problem_of_a_file_is_named(
    name: str, content: bytes, problem: str, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "x.zip", [(name, content)], zipfile.ZIP_DEFLATED)
    texts = " ".join(each.problem for each in check_submission(path, None, size=SIZE))
    assert re.search(problem, texts)
    assert list(tmp_path.iterdir()) == [path]


def test_missing_foreign_and_repeated_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(path, [(FIRST, tiff()), (FIRST, tiff()), ("PRED_000003.tif", tiff())])
    assert problems(path) == {
        FIRST: "is there 2 times; expected once",
        "": "1 of 2 predictions are missing: PRED_000002.tif",
        "PRED_000003.tif": "is not the prediction of a test patch",
    }
    assert problems(zipped(tmp_path / "empty.zip", []), None) == {"": "the zip is empty"}


def test_a_file_that_unpacks_to_more_than_the_list_says_is_not_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", [(FIRST, bytes(50_000_000))], zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    claimed = (50_000_000).to_bytes(4, "little")
    assert content.count(claimed) == 2
    path.write_bytes(content.replace(claimed, (5_000).to_bytes(4, "little")))
    assert "cannot be" in problems(path, None)[FIRST]


@pytest.mark.parametrize(("place", "problem"), [
    (b"II*", "cannot be unpacked (Bad CRC-32"), (b"PK\3\4", "cannot be unpacked (Bad magic number"),
])  # fmt: skip
def test_damage_within_the_zip_is_a_problem_of_its_file(
    place: bytes, problem: str, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "x.zip", [(FIRST, tiff())])
    path.write_bytes(path.read_bytes().replace(place, bytes(len(place))))
    assert problems(path, None)[FIRST].startswith(problem)


def test_what_is_not_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        check_submission(tmp_path / "missing.zip")
    path = zipped(tmp_path / "x.zip", [(FIRST, tiff())])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a zip"):
        check_submission(path)


def test_ids_are_read_in_every_spelling(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("IMG_000001\n\n000002\r\nPRED_000003.tif\n")
    assert read_ids(path) == ["IMG_000001", "000002", "000003"]
    path.write_text("\n")
    with pytest.raises(DataError, match="lists no patch"):
        read_ids(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_ids(tmp_path)


def test_the_limit_is_two_and_a_half_times_the_baselines_time() -> None:
    assert divmod(int(TIME_LIMIT), 60) == (14, 52)
