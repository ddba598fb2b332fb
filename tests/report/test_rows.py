from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flair2_exp.config.fields import plain
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.results import ReportOptions
from flair2_exp.report.rows import (
    incidental,
    name_rows,
    require_comparable,
    rows_of_other_code,
    same_rows,
    split_rows,
    tell_apart,
)
from flair2_exp.report.runs import RunSet, ScoredRun
from flair2_exp.report.sentences import notes
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import flatten, render
from tests.configs import compose_config
from tests.report.made_runs import changed, make_arrays, make_folder, make_runs, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ScoredRun:
    return make_runs(tmp_path_factory.mktemp("runs"), {"debug": 1.0}, seeds=1, areas=2)[0]


def of_experiment(
    run: ScoredRun, *overrides: str, row: str = "unet", version: str = ""
) -> ScoredRun:
    """The run as if it were of this experiment: with the record and the config that it leaves."""
    config = compose_config("preset=debug", *overrides)
    record = RunRecord.of(config, "data", RunFolder(Path("unet")))
    record.tags[str(Tag.ROW)] = row
    if version:
        record.deciding["version"] = version
    settings = {name: render(value) for name, value in flatten(plain(config)).items()}
    return dataclasses.replace(run, record=record, settings=settings, source=" ".join(overrides))


def rows_of(*runs: ScoredRun) -> list[str]:
    return [one.row for one in name_rows(runs)]


def test_what_tells_runs_apart_is_as_few_options_as_needed() -> None:
    models = [{"model": "unet"}, {"model": "utt"}]
    assert tell_apart(models) == models
    assert tell_apart([{"lr": "1"}, {}]) == [{"lr": "1"}, {"lr": "null"}]
    grid = [{"a": a, "b": b, "same": "x"} for a in "12" for b in "123"]
    assert tell_apart(grid) == [{"b": each["b"], "a": each["a"]} for each in grid]
    assert tell_apart([{"a": "1"}] * 2) == [{}, {}]


def test_runs_of_one_experiment_are_a_row_over_their_seeds(run: ScoredRun) -> None:
    runs = [of_experiment(run, "model=unet", f"seed={seed}") for seed in (1, 2, 3)]
    assert rows_of(*runs) == ["unet"] * 3
    assert [*split_rows(runs), *same_rows(runs), *incidental(runs)] == []


def test_different_experiments_are_no_seeds_of_one_row(run: ScoredRun) -> None:
    """The example of the issue: three options differ, and one is enough to tell the rows apart."""
    other = ("optimizer.lr=0.3", "aug=flips", "model.decoder_channels=[32,16,16,16,8]")
    one = of_experiment(run, "model=unet", "seed=1", "aug=none")
    two = of_experiment(run, "model=unet", "seed=2", *other)
    report = build_report(RunSet((one, two)), ReportOptions(resamples=100))
    assert [row.name for row in report.rows] == ["unet (aug.name=none)", "unet (aug.name=flips)"]
    assert [row.seeds for row in report.rows] == [(1,), (2,)]
    (note,) = (note for note in notes(report) if "experiments" in note)
    assert note.startswith("Runs named unet are 2 experiments, each a row of its own")
    assert "optimizer.lr (0.003; 0.3)" in note
    assert "model.decoder_channels ([" in note
    with pytest.raises(ConfigError) as refusal:
        build_report(RunSet((one, two)), ReportOptions(resamples=100, strict=True))
    assert len(str(refusal.value).splitlines()) == 1
    for words in ("row unet", "optimizer.lr (0.003; 0.3)", "aug.geometry (none; flips)"):
        assert words in str(refusal.value)


@pytest.mark.parametrize(
    "option",
    ["optimizer.lr=0.3", "trainer.max_epochs=3", "trainer.limit_train_batches=7",
     "dataset.on_damaged=skip", "s2_preproc.size=16", "trainer.precision=64-true"],
)  # fmt: skip
def test_an_option_that_decides_makes_a_row_named_by_it(run: ScoredRun, option: str) -> None:
    runs = [of_experiment(run, "model=utt", f"seed={seed}") for seed in (1, 2)]
    named = rows_of(*runs, of_experiment(run, "model=utt", "seed=3", option))
    assert named[2] == f"unet ({option})"
    assert named[0] == named[1] != "unet"


def test_another_version_of_the_package_makes_a_row(run: ScoredRun) -> None:
    old = of_experiment(run, "model=unet", "seed=1", version="0.0.9")
    new = of_experiment(run, "model=unet", "seed=2", version="0.1.0")
    assert rows_of(old, new) == ["unet (version=0.0.9)", "unet (version=0.1.0)"]


def test_rows_of_one_name_are_told_apart_by_what_differs(run: ScoredRun) -> None:
    runs = [
        of_experiment(run, f"model={model}", f"aug={aug}", f"seed={seed}", f"data.workers={seed}")
        for seed in (1, 2)
        for model, aug in (("unet", "none"), ("utt", "none"), ("utt", "flips"))
    ]
    assert rows_of(*runs)[:3] == [
        "unet (model.name=unet)",
        "unet (model.name=utt, aug.name=none)",
        "unet (model.name=utt, aug.name=flips)",
    ]
    assert rows_of(*runs)[3:] == rows_of(*runs)[:3]


def test_what_decides_no_result_splits_and_names_no_row(run: ScoredRun) -> None:
    idle = ("s2_preproc=monthly", "data.workers=1", "trainer.threads=1")
    runs = [of_experiment(run, "model=unet", "s2_preproc=raw", "seed=1"),
            of_experiment(run, "model=unet", "seed=2", *idle)]  # fmt: skip
    assert rows_of(*runs) == ["unet", "unet"]
    faster = of_experiment(run, "model=unet", "seed=3", "optimizer.lr=0.3", *idle)
    assert rows_of(*runs, faster)[2] == "unet (optimizer.lr=0.3)"
    with pytest.raises(ConfigError, match="row unet has two runs of seed 1 and one config"):
        name_rows([runs[0], of_experiment(run, "model=unet", "seed=1", *idle)])


def test_runs_without_what_decides_are_told_apart_by_their_configs(run: ScoredRun) -> None:
    def of_store(seed: int, version: str = "1", **settings: str) -> ScoredRun:
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        return changed(run, tags={Tag.SEED: str(seed), Tag.VERSION: version}, settings=dotted)

    runs = [of_store(1, optimizer__lr="0.1"), of_store(2, optimizer__lr="0.2", data__workers="9"),
            of_store(3, optimizer__lr="0.2", version="2")]  # fmt: skip
    assert rows_of(*runs) == [
        "debug (optimizer.lr=0.1)",
        "debug (optimizer.lr=0.2, version=1)",
        "debug (optimizer.lr=0.2, version=2)",
    ]


def test_rows_that_are_one_experiment_are_named(run: ScoredRun) -> None:
    names = [of_experiment(run, "model=unet", f"s2_preproc={each}", row=each) for each in
             ("raw", "monthly")]  # fmt: skip
    (note,) = same_rows(name_rows(names))
    assert note.startswith("One experiment under several names")
    assert note.endswith("raw, monthly.")


def test_rows_of_different_states_of_a_users_code_are_named(run: ScoredRun) -> None:
    rows = {"unet": None, "mine": "sha256:" + 40 * "a", "other": "sha256:" + 40 * "b"}
    runs = []
    for row, code in rows.items():
        one = of_experiment(run, f"seed={len(runs)}", row=row)
        one.record.deciding |= {"code.my_study": code} if code else {}
        runs.append(one)
    assert list(rows_of_other_code(runs[:2])) == []  # one state, whoever uses it
    (note,) = rows_of_other_code(runs)
    assert note == (
        "Rows were trained with different code of my_study: mine (sha256:aaaaaaaaaaaa); "
        "other (sha256:bbbbbbbbbbbb)."
    )


def test_differences_that_may_matter_are_listed_with_their_runs(run: ScoredRun) -> None:
    tags = [
        {Tag.PACKAGES: f"python==3.11.9; torch=={torch}", Tag.COMMIT: commit * 40, Tag.MACHINE: "a"}
        for torch, commit in (("2.4.1", "a"), ("2.4.1", "a"), ("2.5.0", "b"))
    ]
    runs = [changed(run, tags=each | {Tag.SEED: str(at)}) for at, each in enumerate(tags)]
    runs[0] = changed(runs[0], settings={"trainer.devices": "2"})
    runs[1] = changed(runs[1], settings={"trainer.devices": "1"})
    devices, note = incidental(runs)
    assert devices.startswith("Runs differ in their number of devices (1: 1 run; 2: 1 run). Batch")
    assert note == (
        "Runs differ in commit (aaaaaaaaaa: 2 runs; bbbbbbbbbb: 1 run), "
        "torch version (2.4.1: 2 runs; 2.5.0: 1 run): that need not matter, but may."
    )


def test_devices_are_counted_over_all_machines(run: ScoredRun) -> None:
    both = ({"trainer.devices": "4"}, {"trainer.devices": "2", "trainer.num_nodes": "2"})
    assert list(incidental([changed(run, settings=each) for each in both])) == []


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


def test_runs_of_other_training_patches_are_compared_by_their_test_part(run: ScoredRun) -> None:
    def share(fraction: str, **tags: str) -> ScoredRun:
        return changed(
            run, tags={Tag[n]: v for n, v in tags.items()},
            settings={"split.name": "official", "split.label_fraction": fraction},
        )  # fmt: skip

    tenth = share("0.1", FINGERPRINT="1", TEST_FINGERPRINT="t")
    whole = share("1.0", FINGERPRINT="2", TEST_FINGERPRINT="t")
    require_comparable([tenth, whole])
    with pytest.raises(ConfigError, match="contents of the data set"):
        require_comparable([whole, share("1.0", FINGERPRINT="3", TEST_FINGERPRINT="t")])
    with pytest.raises(ConfigError, match="contents of the test part"):
        require_comparable([tenth, share("1.0", FINGERPRINT="2", TEST_FINGERPRINT="u")])


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
