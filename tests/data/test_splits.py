"""The splits: official, the baseline's with a seed, and from a file."""

from __future__ import annotations

import dataclasses
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


def test_held_out_domains_test_and_the_rest_is_divided_by_the_seed() -> None:
    index = made(TRAIN, TEST)
    held = ("D055_2018", "D004_2021")
    options = SplitConfig(name="leave_domains_out", domains=held, train_fraction=0.7, seed=7)
    divided = splits.split(index, options)
    rest = sorted(set(TRAIN) - set(held))
    random.Random(7).shuffle(rest)
    assert domains_of(index, divided.test) == sorted(held)
    assert domains_of(index, divided.train) == sorted(rest[:2])
    assert domains_of(index, divided.validation) == rest[2:]


@pytest.mark.parametrize(("name", "near"), [("D004_2020", "D004_2021"), ("D015_2020", "D0")])
def test_a_held_out_domain_that_the_train_tree_lacks_is_refused_with_the_nearest(
    name: str, near: str
) -> None:
    options = SplitConfig(name="leave_domains_out", domains=(name,))
    with pytest.raises(DataError, match=rf"no domain {name} \(nearest: .*{near}"):
        splits.split(made(TRAIN, TEST), options)


def test_domains_and_the_split_that_holds_them_out_go_together() -> None:
    with pytest.raises(ConfigError, match=r"needs the domains that test: split\.domains="):
        SplitConfig(name="leave_domains_out")
    with pytest.raises(ConfigError, match="add split=leave_domains_out"):
        SplitConfig(name="official", domains=("D004_2021",))


FRACTIONS = st.floats(1e-3, 1.0)


@given(FRACTIONS, FRACTIONS, st.integers(0, 99))
def test_a_smaller_share_of_labels_lies_within_a_larger_one(
    one: float, other: float, seed: int
) -> None:
    index = made([f"D{number:03}_2021" for number in range(1, 9)], TEST, patches=13)
    small, large = (
        splits.split(
            index,
            SplitConfig(name="reference", label_fraction=fraction, label_seed=seed),
        )
        for fraction in sorted((one, other))
    )
    whole = splits.split(index, SplitConfig(name="reference"))
    assert set(small.train.tolist()) <= set(large.train.tolist()) <= set(whole.train.tolist())
    assert len(small.train) == max(1, round(min(one, other) * len(whole.train)))
    assert (np.diff(small.train) > 0).all()
    assert np.array_equal(small.validation, whole.validation)
    assert np.array_equal(small.test, whole.test)


def uneven(sizes: dict[str, int]) -> Index:
    """An index of training domains of these sizes, and of one test domain."""
    whole = made([*sizes], TEST[:1], patches=max(sizes.values()))
    areas = np.repeat(np.arange(len(sizes) + 1), [*sizes.values(), 1]).astype(np.int32)
    rows = np.arange(len(areas))
    return dataclasses.replace(
        whole,
        ids=whole.ids[rows],
        area=areas,
        labelled=whole.labelled[rows],
        centroids=whole.centroids[rows],
        metadata=whole.metadata[rows],
    )


def test_few_labels_cover_all_domains_and_more_keep_their_proportions() -> None:
    index = uneven({"D006_2020": 200, "D007_2020": 30, "D008_2019": 10, "D004_2021": 5})
    domains = np.unique(index.domains)

    def counts(fraction: float, seed: int = 0) -> list[int]:
        options = SplitConfig(label_fraction=fraction, label_seed=seed)
        train = splits.split(index, options).train
        return [int((index.domains[train] == domain).sum()) for domain in domains[1:4]]

    assert counts(1 / 240) in ([1, 0, 0], [0, 1, 0], [0, 0, 1])
    for seed in range(20):
        assert counts(3 / 240, seed) == [1, 1, 1]
        large, middle, small = counts(0.5, seed)
        assert abs(large - 100) <= 1
        assert abs(middle - 15) <= 1
        assert abs(small - 5) <= 1


def test_the_drawn_patches_depend_on_seed_and_names_and_not_on_what_else_there_is() -> None:
    index = uneven({"D006_2020": 40, "D007_2020": 40})
    fewer = uneven({"D006_2020": 40})

    def drawn(of: Index, fraction: float, seed: int) -> set[str]:
        train = splits.split(of, SplitConfig(label_fraction=fraction, label_seed=seed)).train
        own = of.ids[train][of.domains[train] == "D006_2020"]
        return set(own.tolist())

    assert drawn(index, 0.5, 0) != drawn(index, 0.5, 1)
    half, also_half = drawn(index, 0.5, 0), drawn(fewer, 0.5, 0)
    assert len(half ^ also_half) <= 1


def test_a_share_of_the_labels_holds_for_a_split_by_file_too(tmp_path: Path) -> None:
    options = write(tmp_path / "s.yaml", "train: [D004_2021, D006_2020]\nvalidation: [D014_2020]\n")
    index = made(TRAIN, TEST)
    whole = splits.split(index, options).train
    half = splits.split(index, dataclasses.replace(options, label_fraction=0.5)).train
    assert len(half) == 2
    assert domains_of(index, half) == ["D004_2021", "D006_2020"]
    assert set(half.tolist()) < set(whole.tolist())


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
        (
            TRAIN,
            TEST,
            SplitConfig(name="leave_domains_out", domains=tuple(TRAIN)),
            "train",
            "Hold fewer domains out",
        ),
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
