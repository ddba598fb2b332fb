"""The splits: official, the baseline's with a seed, and from a file."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair2_exp.config.data import SplitConfig
from flair2_exp.data import splits
from flair2_exp.data.layout import Folders, Index
from flair2_exp.data.metadata import RECORD
from flair2_exp.errors import ConfigError, DataError


def made(train: list[str], test: list[str], patches: int = 2) -> Index:
    """An index of domains with one area each."""
    domains = [*train, *test]
    count = len(domains) * patches
    return Index(
        folders=Folders(),
        area_names=np.array([f"{domain}/Z1_NN" for domain in domains], dtype=np.str_),
        area_test=np.arange(len(domains)) >= len(train),
        area_series=np.ones(len(domains), dtype=np.bool_),
        ids=np.array([f"IMG_{number:06}" for number in range(count)], dtype=np.str_),
        area=np.repeat(np.arange(len(domains), dtype=np.int32), patches),
        labelled=np.ones(count, dtype=np.bool_),
        centroids=np.zeros((count, 2), dtype=np.int32),
        metadata=np.zeros(count, dtype=RECORD),
    )


def domains_of(index: Index, positions: splits.Positions) -> list[str]:
    return sorted(set(index.domains[positions].tolist()))


TRAIN = ["D004_2021", "D006_2020", "D014_2020", "D055_2018", "D091_2021"]
TEST = ["D015_2020", "D084_2021"]


def test_the_official_numbers_are_those_of_the_paper() -> None:
    assert len(splits.OFFICIAL_TRAIN) == 32
    assert len(splits.OFFICIAL_VALIDATION) == 8
    assert len(splits.OFFICIAL_TEST) == 10
    together = splits.OFFICIAL_TRAIN | splits.OFFICIAL_VALIDATION | splits.OFFICIAL_TEST
    assert len(together) == 50


def test_official_goes_by_the_number_of_the_domain_and_the_test_tree() -> None:
    index = made(TRAIN, TEST)
    divided = splits.split(index, SplitConfig(name="official"))
    assert domains_of(index, divided.train) == ["D006_2020", "D055_2018", "D091_2021"]
    assert domains_of(index, divided.validation) == ["D004_2021", "D014_2020"]
    assert domains_of(index, divided.test) == TEST
    assert divided.validation.tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize(
    ("domain", "reason"),
    [("D015_2020", "belongs to the test set"), ("D099_2020", "is not in the official split")],
)
def test_official_refuses_a_domain_without_a_place(domain: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"domain {domain} {reason}.*\n.*split=reference"):
        splits.split(made([*TRAIN, domain], TEST), SplitConfig(name="official"))


def test_reference_shuffles_the_sorted_domains_and_takes_four_fifths() -> None:
    index = made(TRAIN, TEST)
    divided = splits.split(index, SplitConfig(name="reference", seed=7))
    shuffled = sorted(TRAIN)
    random.Random(7).shuffle(shuffled)
    assert domains_of(index, divided.train) == sorted(shuffled[:4])
    assert domains_of(index, divided.validation) == shuffled[4:]
    assert domains_of(index, divided.test) == TEST


@given(st.integers(0, 2**31), st.floats(0.05, 0.95), st.integers(1, 12))
def test_reference_puts_every_patch_into_exactly_one_part(
    seed: int, fraction: float, count: int
) -> None:
    index = made([f"D{number:03}_2021" for number in range(1, count + 1)], TEST)
    options = SplitConfig(name="reference", train_fraction=fraction, seed=seed)
    parts = splits.split(index, options).parts()
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(index)))
    assert not set(domains_of(index, parts["train"])) & set(domains_of(index, parts["validation"]))


def write(path: Path, text: str) -> SplitConfig:
    path.write_text(text)
    return SplitConfig(name="file", file=str(path))


def test_a_file_names_domains_areas_and_patches(tmp_path: Path) -> None:
    index = made(TRAIN, TEST)
    options = write(
        tmp_path / "split.yaml",
        "train: [D004_2021, IMG_000013]\nvalidation: [D006_2020/Z1_NN]\ntest: [IMG_000004]\n",
    )
    divided = splits.split(index, options)
    assert divided.train.tolist() == [0, 1, 13]
    assert divided.validation.tolist() == [2, 3]
    assert divided.test.tolist() == [4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [D004_2012]", "names 'D004_2012', which the data set lacks.*nearest: D004_2021"),
        ("train: [D004_2021]\ntest: [IMG_000001]", "puts IMG_000001 into train and test"),
        ("train: D004_2021", "`train` must be a list"),
        ("training: [D004_2021]", "must hold lists `train`, `validation` and `test`"),
        ("[D004_2021]", "must hold lists"),
        ("train: [", "cannot be read as YAML"),
        ("train: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        splits.split(made(TRAIN, TEST), write(tmp_path / "split.yaml", text))


def test_a_file_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(DataError, match="this is not a file"):
            splits.split(made(TRAIN, TEST), SplitConfig(name="file", file=str(path)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split\.file=.*none\.yaml cannot be read"):
        splits.split(made(TRAIN, TEST), SplitConfig(name="file", file=str(tmp_path / "none.yaml")))
    with pytest.raises(ConfigError, match=r"split=file needs split\.file"):
        SplitConfig(name="file")


@pytest.mark.parametrize(
    ("train", "test", "options", "part", "fix"),
    [
        (["D004_2021"], TEST, SplitConfig(name="official"), "train", "Use split=reference"),
        (["D006_2021"], TEST, SplitConfig(name="official"), "validation", "Use split=reference"),
        (TRAIN, [], SplitConfig(name="official"), "test", "test=false"),
        (["D006_2021"], TEST, SplitConfig(name="reference"), "train", "split.train_fraction"),
        (TRAIN, TEST, SplitConfig(name="file", file="s.yaml"), "train", "`train:` in split.file"),
    ],
)
def test_a_part_without_patches_is_refused_with_the_fix(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: list[str],
    test: list[str],
    options: SplitConfig,
    part: str,
    fix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text("validation: [D004_2021]\ntest: [D015_2020]\n")
    parts = splits.split(made(train, test), options).parts()
    with pytest.raises(DataError, match=f"leaves no {part} patches.*\n.*{fix}"):
        splits.require(parts, options, ("train", "validation", "test"))
    splits.require(parts, options, tuple(name for name in parts if len(parts[name])))
