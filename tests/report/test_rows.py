from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.report.rows import name_rows, require_comparable, tell_apart
from flair2_exp.report.runs import ScoredRun
from flair2_exp.tracking.tags import Tag
from tests.report.made_runs import changed, make_arrays, make_folder, make_runs, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ScoredRun:
    return make_runs(tmp_path_factory.mktemp("runs"), {"debug": 1.0}, seeds=1, areas=2)[0]


def with_options(run: ScoredRun, seed: int, **settings: str) -> ScoredRun:
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return changed(run, tags={Tag.SEED: str(seed)}, settings=dotted)


def test_what_tells_runs_apart_is_as_few_options_as_needed() -> None:
    models = [{"model": "unet"}, {"model": "utt"}]
    assert tell_apart(models, [1, 2]) == [{}, {}]
    assert tell_apart(models, [1, 1]) == models
    assert tell_apart([{"lr": "1"}, {}], [1, 1]) == [{"lr": "1"}, {"lr": "null"}]
    grid = [{"a": a, "b": b, "same": "x"} for a in "12" for b in "123"]
    assert tell_apart(grid, [0] * 6) == [{"b": each["b"], "a": each["a"]} for each in grid]
    assert tell_apart([{"a": "1"}] * 2, [1, 1]) == [{}, {}]


def test_rows_of_one_name_are_told_apart_by_what_differs(run: ScoredRun) -> None:
    runs = [
        with_options(run, seed, model__name=model, aug__geometry=aug, paths__output=model + aug)
        for seed in (1, 2)
        for model, aug in (("unet", "none"), ("utt", "none"), ("utt", "flips"))
    ]
    assert [one.row for one in name_rows(runs)][:3] == [
        "debug (model.name=unet)",
        "debug (model.name=utt, aug.geometry=none)",
        "debug (model.name=utt, aug.geometry=flips)",
    ]
    assert name_rows(runs[:1]) == runs[:1]


def test_what_decides_no_result_names_no_row(run: ScoredRun) -> None:
    runs = [
        with_options(run, 1, data__workers=workers, trainer__threads=workers, optimizer__lr=lr)
        for workers, lr in (("1", "0.1"), ("2", "0.2"))
    ]
    assert [one.row for one in name_rows(runs)] == [
        "debug (optimizer.lr=0.1)", "debug (optimizer.lr=0.2)",
    ]  # fmt: skip
    for idle in ("data__workers", "dataset__root"):
        same = [with_options(run, 1, **{idle: each}) for each in ("1", "2")]
        with pytest.raises(ConfigError, match="row debug has two runs of seed 1 and one config"):
            name_rows(same)


def test_naming_rows_imports_nothing_heavy() -> None:
    program = "import sys, flair2_exp.report.rows; print({'numpy', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("tag", [Tag.DATASET, Tag.FINGERPRINT, Tag.SPLIT, Tag.METRIC])
def test_runs_of_different_settings_are_not_compared(run: ScoredRun, tag: Tag) -> None:
    here = changed(run, tags={Tag.ROW: "a", tag: "here"})
    there = changed(run, tags={Tag.ROW: "b", tag: "there"})
    with pytest.raises(ConfigError, match=r"here: a.*there: b"):
        require_comparable([here, there])
    require_comparable([here, changed(there, tags={tag: ""})])  # not recorded


@pytest.mark.parametrize("model", ["unet", "utt", "my_net"])
def test_fingerprints_are_compared_among_runs_that_read_the_same(
    run: ScoredRun, model: str
) -> None:
    mine = {"model.name": model}
    other = changed(run, tags={Tag.FINGERPRINT: "1"}, settings={"model.name": "unet"})
    both = changed(run, tags={Tag.FINGERPRINT: "2", Tag.READS: "aerial,satellite"}, settings=mine)
    require_comparable([other, both])
    with pytest.raises(ConfigError, match="fingerprints"):
        require_comparable([other, changed(both, tags={Tag.READS: "aerial"})])
    with pytest.raises(ConfigError, match="fingerprints"):
        require_comparable([changed(both, tags={Tag.FINGERPRINT: "3"}), both])


def test_runs_of_other_test_patches_or_labels_are_not_compared(tmp_path: Path) -> None:
    arrays = make_arrays(areas=3)
    one = read_run(make_folder(tmp_path, "a", 1, arrays))
    fewer = {name: each[:-1] if name != "classes" else each for name, each in arrays.items()}
    labels = arrays["confusion"].copy()
    labels[0, 0, 0] += 1
    for at, others in enumerate((fewer, arrays | {"confusion": labels})):
        other = read_run(make_folder(tmp_path, f"b{at}", 1, others))
        with pytest.raises(ConfigError, match="test patches or labels"):
            require_comparable([one, other])


def test_order_of_patches_and_pixels_of_other_do_not_make_another_test_set(tmp_path: Path) -> None:
    arrays = make_arrays(areas=3)
    order = np.random.default_rng(0).permutation(12)
    turned = {name: each[order] if name != "classes" else each for name, each in arrays.items()}
    turned["confusion"][:, 12] = 0  # other_pixels=drop
    require_comparable(
        [
            read_run(make_folder(tmp_path, row, 1, each))
            for row, each in (("a", arrays), ("b", turned))
        ]
    )
