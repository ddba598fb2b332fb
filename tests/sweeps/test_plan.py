"""What a sweep's plan says before anything is run: jobs, names, folders, states, refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from flair2_exp.compat import opened_hydra
from flair2_exp.config import identity
from flair2_exp.config.groups import config_folder
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle import record
from flair2_exp.sweeps.ablation import job_table
from flair2_exp.sweeps.plan import (
    DONE,
    FAILED,
    NEW,
    RESUME,
    Job,
    Planner,
    choose_baseline,
    choose_factors,
    distributes,
    estimates,
    is_typed,
    require_files,
    same_experiments,
    split,
)
from tests.sweeps.plans import (
    SUBDIR,
    finish,
    of_sweep,
    plan,
    planned,
    sweep_config,
    sweep_folder,
)


def test_the_command_line_wins_over_the_sweeps_own_parameters() -> None:
    assert split(["seed=7,8"], {"model": "unet,utt", "seed": "1,2,3"}) == [
        ("model=unet", "seed=7"), ("model=unet", "seed=8"),
        ("model=utt", "seed=7"), ("model=utt", "seed=8"),
    ]  # fmt: skip
    assert split(["seed=7", "hydra.launcher=x"], {"seed": "1,2"}) == [("seed=7",)]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("sweep=leaderboard,factors", "sweep"),
        ("sweep.name=a,b", "sweep.name"),
        ("++paths.root=a,b", "paths.root"),
        ("tune.n_trials=1,2", "tune.n_trials"),
    ],
)
def test_an_option_of_the_whole_sweep_is_not_swept_over(line: str, key: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        split([line, "seed=1"], {})
    assert str(refusal.value).startswith(f"{line}: {key} holds for a whole sweep")
    assert len(str(refusal.value).splitlines()) <= 2


def test_an_option_swept_over_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"seed=range\(3,1\): this gives no value"):
        split(["model=unet,utt", "seed=range(3,1)"], {})


def test_globs_are_the_options_of_a_group(tmp_path: Path) -> None:
    _, loader = sweep_config(tmp_path)
    assert split(["model=glob(une*,exclude=unetp*)", "seed=1,2"], {}, loader) == [
        ("model=unet", "seed=1"), ("model=unet", "seed=2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("dataset=flair2 dataset.root=/nowhere", "dataset.root=/nowhere is not a folder"),
        ("dataset.store=/nowhere", "/nowhere"),
        ("split=file split.file=/nowhere.yaml", "split.file=/nowhere.yaml: there is no such"),
        ("model.weights=/nowhere.pth", "model.weights=/nowhere.pth: there is no such file"),
        ("model.encoder_weights=/nowhere.pth", "encoder_weights=/nowhere.pth: there is no such"),
        ("train=false checkpoint=/nowhere.ckpt", "checkpoint=/nowhere.ckpt: there is no such"),
    ],
)
def test_what_is_not_there_is_named_before_the_first_job(
    tmp_path: Path, options: str, message: str
) -> None:
    jobs = planned(tmp_path, "seed=1,2", *options.split())
    with pytest.raises(ConfigError, match=f"^job 0 .*{re.escape(message)}"):
        require_files(jobs)
    for job in jobs:
        finish(job)
    require_files(jobs)  # nothing is read any more


@pytest.mark.parametrize(
    "options", ["model=utae model.encoder_weights=/nowhere", "split=official split.file=/nowhere"]
)
def test_files_that_are_not_read_are_not_missed(tmp_path: Path, options: str) -> None:
    require_files(planned(tmp_path, "seed=1", *options.split()))


def test_only_a_launcher_to_other_machines_distributes() -> None:
    targets = {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher": False,
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": False,
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": True,
    }
    for target, expected in targets.items():
        assert distributes(OmegaConf.create({"_target_": target})) == expected


def test_folders_have_names_a_person_can_read(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "experiment=leaderboard/unet,leaderboard/utt_cloudfree_monthly_aug",
                   "dataset.root=/data", "seed=2")  # fmt: skip
    assert [str(job.folder.path.relative_to(sweep_folder(tmp_path))) for job in jobs] == [
        "unet/seed=2", "utt_cloudfree_monthly_aug/seed=2",
    ]  # fmt: skip


def test_rows_that_would_share_a_name_are_named_by_what_they_sweep(tmp_path: Path) -> None:
    made = plan(tmp_path, "s2_preproc=raw,monthly", "optimizer.lr=0.1,0.2", "seed=1,2")
    assert [job.row for job in made.jobs[::2]] == [
        "raw_lr=0.1", "raw_lr=0.2", "monthly_lr=0.1", "monthly_lr=0.2",
    ]  # fmt: skip
    assert len({job.folder for job in made.jobs}) == 8
    assert made.notes == ["The rows are named by what sets them apart: s2_preproc, optimizer.lr."]
    assert plan(tmp_path, "model=unet,utt", "seed=1,2").notes == []  # named as they are


def test_experiments_under_one_name_are_rows_also_where_each_has_a_seed_of_its_own(
    tmp_path: Path,
) -> None:
    lines = [("seed=1", "optimizer.lr=0.1"), ("seed=2", "optimizer.lr=0.2")]
    master, loader = sweep_config(tmp_path)
    jobs = Planner(master, loader).plan([(*each, *of_sweep(tmp_path)) for each in lines]).jobs
    assert [(job.row, job.seed) for job in jobs] == [("lr=0.1", 1), ("lr=0.2", 2)]


NUMBERED = "${hydra.job.num}_${name}_seed=${seed}"


@pytest.mark.parametrize("subdir", [SUBDIR, NUMBERED])
@pytest.mark.parametrize("lines", [["seed=1,1,2"], ["optimizer.lr=0.001,1e-3", "seed=1,2"]])
def test_a_job_that_is_named_twice_runs_once_and_a_line_says_so(
    tmp_path: Path, lines: list[str], subdir: str
) -> None:
    made = plan(tmp_path, *lines, subdir=subdir)
    assert [(job.row, job.seed) for job in made.jobs] == [("utt", 1), ("utt", 2)]
    assert len({job.folder for job in made.jobs}) == 2
    (note,) = made.notes
    assert "seed=1" in note
    assert "once" in note


@pytest.mark.parametrize("subdir", [".", ""])
def test_a_job_in_the_sweeps_own_folder_is_refused(tmp_path: Path, subdir: str) -> None:
    with pytest.raises(ConfigError, match=r"job 0 \(seed=1.*\) the folder of the whole sweep"):
        planned(tmp_path, "seed=1", subdir=subdir)


def test_different_jobs_in_one_folder_are_refused_also_when_one_has_run(tmp_path: Path) -> None:
    match = r"job 0 .* and job 1 .* would share the folder"
    with pytest.raises(ConfigError, match=match):
        planned(tmp_path, "model=unet,utt", subdir="same")
    finish(planned(tmp_path, "model=unet", subdir="same")[0])
    with pytest.raises(ConfigError, match=match):
        planned(tmp_path, "model=unet,utt", subdir="same")


def test_jobs_of_different_samples_are_different_jobs(tmp_path: Path) -> None:
    """Neither sample is made yet, so that no fingerprint tells them apart."""
    lines = ("dataset.sample.seed=0,1", "model=unet")
    with pytest.raises(ConfigError, match="would share the folder") as refusal:
        plan(tmp_path, *lines, subdir="x/${seed}")
    assert "hydra.sweep.subdir" in str(refusal.value)
    made = plan(tmp_path, *lines)
    assert [job.row for job in made.jobs] == ["seed=0", "seed=1"]
    assert len({job.experiment for job in made.jobs}) == 2
    assert not [note for note in made.notes if "decides" in note]


def test_an_error_in_a_late_job_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job 3 \(model=utae metadata=on .*\): metadata=on"):
        planned(tmp_path, "model=unet,utae", "metadata=off,on")


def test_states_are_what_the_folders_say(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "seed=1,2,3,4,5")
    endings = (record.FINISHED, record.FAILED, record.KILLED, record.RUNNING)
    for job, status in zip(jobs, endings, strict=False):
        finish(job, status)
    again = planned(tmp_path, "seed=1,2,3,4,5")
    assert [job.state for job in again] == [DONE, FAILED, RESUME, RESUME, NEW]
    assert again[0].identity == identity.identity(again[0].config, "data")


def test_a_run_trained_without_a_test_is_not_done_where_one_is_wanted(tmp_path: Path) -> None:
    (job,) = planned(tmp_path, "seed=1", "test=false")
    finish(job)
    job.folder.metrics.write_text('{"val/miou": 0.5}')
    assert planned(tmp_path, "seed=1", "test=false")[0].state == DONE
    assert planned(tmp_path, "seed=1")[0].state == RESUME


def test_a_changed_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    (job,) = planned(tmp_path, "seed=1")
    finish(job, record.KILLED)
    with pytest.raises(ConfigError, match=r"another experiment: optimizer\.lr: 0\.001 -> 0\.5"):
        planned(tmp_path, "seed=1", "optimizer.lr=0.5")
    assert len(planned(tmp_path, "seed=1", "data.workers=7")) == 1


def test_a_torn_record_counts_as_none(tmp_path: Path) -> None:
    (job,) = planned(tmp_path, "seed=1")
    finish(job)
    whole = job.folder.record.read_text()
    job.folder.record.write_text(whole[: len(whole) // 2])
    assert planned(tmp_path, "seed=1")[0].state == NEW


def test_times_are_estimated_from_the_row_then_from_all(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "model=unet,utt", "seed=1,2")
    assert estimates(jobs) == [None] * 4
    finish(jobs[0], seconds=100.0)
    assert estimates(jobs) == [0.0, 100.0, 100.0, 100.0]
    finish(jobs[2], seconds=300.0)
    assert estimates(jobs) == [0.0, 100.0, 0.0, 300.0]
    assert "4 jobs, 2 done; to go: 6:40 min" in job_table(jobs)


def test_a_folder_is_read_when_asked_and_not_at_each_look(tmp_path: Path) -> None:
    (job,) = planned(tmp_path, "seed=1")
    (again,) = planned(tmp_path, "seed=1")
    finish(again)
    assert (job.state, job.identity, job.stamp) == (NEW, "", 0)
    job.refresh()
    assert (job.state, job.identity) == (DONE, identity.identity(job.config, "data"))
    assert job.stamp > 0


def test_before_the_runs_the_table_shows_experiments_and_after_them_identities(
    tmp_path: Path,
) -> None:
    jobs = planned(tmp_path, "seed=1,2")
    early = job_table(jobs)
    head = ["job", "row", "seed", "experiment", "state", "estimate"]
    assert early.splitlines()[0].split() == head
    finish(jobs[0])
    assert job_table(jobs).split()[9] == early.split()[9] == jobs[0].experiment
    late = job_table(jobs, identities=True)
    assert late.splitlines()[0].split()[3] == "identity"
    assert identity.identity(jobs[0].config, "data") in late
    assert jobs[1].experiment not in late


def test_a_typed_baseline_that_is_not_a_row_is_refused_with_the_rows(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "model=unet,utt", "seed=1,2")
    assert choose_baseline(jobs, "utt", typed=True) == ("utt", "")
    with pytest.raises(ConfigError) as refusal:
        choose_baseline(jobs, "uttt", typed=True)
    assert str(refusal.value).splitlines() == [
        "sweep.baseline=uttt is not a row of this sweep.", "Its rows: unet, utt.",
    ]  # fmt: skip


def test_a_part_of_a_sweep_without_its_baseline_is_compared_with_its_first_row(
    tmp_path: Path,
) -> None:
    lines = ["sweep=s2_preproc", "s2_preproc=monthly,monthly_cloudfree", "seed=1"]
    jobs = planned(tmp_path, *lines)
    baseline, note = choose_baseline(
        jobs, jobs[0].config.sweep.baseline, typed=is_typed("sweep.baseline", lines)
    )
    assert baseline == "utt_monthly"
    assert note.startswith("utt_raw, the sweep's baseline, is not among its rows")
    assert is_typed("sweep.baseline", [*lines, "++sweep.baseline=x"])


def chosen(jobs: list[Job], lines: list[str]) -> tuple[list[str] | None, str]:
    factors = jobs[0].config.sweep.factors
    return choose_factors(jobs, factors, typed=is_typed("sweep.factors", lines))


def test_a_part_of_a_factorial_has_the_factors_that_still_vary(tmp_path: Path) -> None:
    lines = ["sweep=factors", "s2_preproc=raw,monthly", "aug=none,flips", "seed=1"]
    factors, note = chosen(planned(tmp_path, *lines), lines)
    assert factors == ["s2_preproc.monthly", "aug.geometry"]
    assert note.endswith("two values here: s2_preproc.cloud_filter, metadata.enabled.")
    assert chosen(planned(tmp_path, "sweep=factors", "seed=1"), lines)[0] is None
    assert chosen(planned(tmp_path, "seed=1,2"), ["seed=1,2"]) == (None, "")


def test_a_typed_factor_without_two_values_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    jobs = planned(tmp_path, "aug=none,flips,d4")
    assert is_typed("sweep.factors", ["aug=none", "sweep.factors=[aug.geometry]"])
    for factor, values in {
        "aug.geometry": "not none, flips, d4",
        "metadata.enabled": "not false",
        "aug.geometri": "not none: there is no such option",
    }.items():
        match = rf"{factor} must take two values over the jobs, {values}"
        with pytest.raises(ConfigError, match=match):
            choose_factors(jobs, [factor], typed=True)


def test_rows_that_are_one_experiment_are_named(tmp_path: Path) -> None:
    lines = ["sweep=s2_preproc", "s2_preproc=raw,monthly", "seed=1,2"]
    assert same_experiments(planned(tmp_path, *lines)) == []
    made = plan(tmp_path, *lines, "model=unet")
    (note,) = made.notes
    assert note.endswith("decides the result: unet_raw, unet_monthly.")
    assert len(made.jobs) == 4


def test_seeds_of_an_experiment_that_draws_nothing_are_named(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.touch()
    made = plan(tmp_path, "model=unet", "train=false", f"model.weights={weights}", "seed=1,2")
    assert made.notes[-1].endswith("decides the result: unet seed=1, unet seed=2.")


def test_rows_of_experiments_of_a_folder_are_named_by_the_experiment(tmp_path: Path) -> None:
    jobs = planned(
        tmp_path, "sweep=leaderboard", "experiment=leaderboard/unet,leaderboard/utt", "seed=1",
        "dataset=sample", "optimizer.lr=0.1,0.2",
    )  # fmt: skip
    assert [job.row for job in jobs] == ["unet_lr=0.1", "unet_lr=0.2", "utt_lr=0.1", "utt_lr=0.2"]
    assert jobs[0].folder.path == sweep_folder(tmp_path) / "unet_lr=0.1" / "seed=1"


@pytest.mark.parametrize(("sweep", "rows"), [
    ("leaderboard", 5), ("s2_preproc", 4), ("factors", 16), ("quirks", 11), ("decoders", 10),
    ("encoders", 5), ("bands", 5), ("label_fraction", 5),
])  # fmt: skip
def test_each_sweep_of_the_tree_plans_its_rows(sweep: str, rows: int, tmp_path: Path) -> None:
    with opened_hydra("flair2_exp", config_folder(), None) as hydra:
        whole = hydra.compose_config("config", [f"sweep={sweep}"], RunMode.MULTIRUN)
    jobs = planned(tmp_path, f"sweep={sweep}", "seed=1", **dict(whole.hydra.sweeper.params))
    assert len({job.row for job in jobs}) == len(jobs) == rows
    baseline = jobs[0].config.sweep.baseline
    assert baseline in {job.row for job in jobs}
    assert len({job.experiment for job in jobs}) == rows
