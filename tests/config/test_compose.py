"""The jobs of a sweep, composed with a memory, against Hydra's own composition."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from flair2_exp.compat import opened_hydra
from flair2_exp.config.compose import JobLoader, as_hydra_runs, typed
from flair2_exp.config.groups import config_folder

GROUPS = ["model=unet", "model=utae", "experiment=leaderboard/utt", "aug=d4", "preset=tiny"]
PLAIN = [
    "seed=3", "seed=7", "optimizer.lr=0.5", "name=x", "name='a b'", "data.batch_size=2",
    "s2_preproc.size=24", "tracking.run_name=null", "train=false", "checkpoint=c.ckpt",
]  # fmt: skip
OTHERS = [
    "+optimizer.options.momentum=0.9", "loss.class_weights={other: 1}",
    "data.bands=[red,nir,green]", "utae.head_widths=[16]", "hydra.job.chdir=false",
    "+tracking.tags.a=b",
]  # fmt: skip


@pytest.fixture(scope="module")
def master() -> Iterator[tuple[DictConfig, ConfigLoader]]:
    with opened_hydra("flair2_exp", config_folder(), None) as hydra:
        config = hydra.compose_config("config", ["sweep.name=s"], RunMode.MULTIRUN)
        _ = config.hydra.run.dir, config.hydra.sweep.dir  # from here on, `now` is one moment
        yield config, hydra.config_loader


def as_launched(config: DictConfig, number: int) -> object:
    """The config as a launcher hands it to a job, every interpolation resolved."""
    with open_dict(config):
        config.hydra.job.num = number
        config.hydra.job.id = str(number)
        config.hydra.runtime.output_dir = "somewhere"
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("seed", range(12))
def test_a_job_is_composed_as_hydra_composes_it(
    seed: int, master: tuple[DictConfig, ConfigLoader]
) -> None:
    draw = random.Random(seed)
    groups = {each.split("=")[0]: each for each in draw.sample(GROUPS, 2)}
    overrides = [*groups.values(), *draw.sample(PLAIN, 4), *draw.sample(OTHERS, seed % 3)]
    draw.shuffle(overrides)
    config, loader = master
    remembers = JobLoader(loader)
    remembers.load_sweep_config(config, [*groups.values(), "seed=12"])
    ours = as_launched(remembers.load_sweep_config(config, overrides), 4)
    assert ours == as_launched(loader.load_sweep_config(config, overrides), 4)


def test_jobs_of_one_kind_are_composed_once(master: tuple[DictConfig, ConfigLoader]) -> None:
    config, loader = master
    composed: list[list[str]] = []

    class Counting(JobLoader):
        def load_sweep_config(self, master_config: DictConfig, overrides: list[str]) -> DictConfig:
            composed.append(overrides)
            return loader.load_sweep_config(master_config, overrides)

    remembers = JobLoader(Counting(loader))
    for model in ("unet", "utt"):
        for seed in range(5):
            job = remembers.load_sweep_config(config, [f"model={model}", f"seed={seed}"])
            assert (job.seed, job.model.name) == (seed, model)
            assert job.hydra.overrides.task == [f"model={model}", f"seed={seed}"]
    assert composed == [["model=unet"], ["model=utt"]]


def test_hydras_own_values_resolve_before_a_run_as_within_it(
    master: tuple[DictConfig, ConfigLoader], tmp_path: Path
) -> None:
    config, loader = master
    tags = "+tracking.tags={folder: '${hydra:runtime.output_dir}', job: '${hydra:job.name}'}"
    job = loader.load_sweep_config(config, [tags])
    with as_hydra_runs(job, str(tmp_path)):
        experiment = typed(job)
    assert experiment.tracking.tags == {"folder": str(tmp_path), "job": "flair2_exp"}
