from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flair2_exp.config.engines import SlurmConfig
from flair2_exp.config.fields import build
from flair2_exp.config.groups import config_folder
from flair2_exp.errors import ConfigError

SITES = sorted((config_folder() / "hydra" / "launcher" / "site").glob("*.yaml"))


def slurm(**options: Any) -> SlurmConfig:
    return build(SlurmConfig, options, "hydra.launcher.")


@pytest.mark.parametrize("text", ["20:00:00", "0:10:00", "100:00:00", "1-12:00:00"])
def test_time_limits_without_doubt_are_taken(text: str) -> None:
    assert slurm(time=text).time == text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time": 72000}, "time=72000: expected HOURS:MINUTES:SECONDS"),  # 20:00:00 in YAML
        ({"time": "20:00"}, "time=20:00: expected"),  # minutes, to sbatch
        ({"time": "2 h"}, "time=2 h: expected"),
        ({"time": "0:05:00", "grace": 200}, "time=0:05:00 leaves no time to train"),
        ({"gpus": "--gpus=4"}, r"gpus=--gpus=4: expected \{n\}"),
        ({"gpus_per_job": 0.5}, "gpus_per_job=0.5: SLURM gives a job whole GPUs"),
        ({"gpus_per_job": 1.5}, "gpus_per_job=1.5: expected a whole number"),
        ({"sbatch": ["--array=1-9"]}, "'--array=1-9' is set by hydra/launcher=slurm"),
        ({"sbatch": ["-o x"]}, "'-o x' is set by hydra/launcher=slurm"),
        ({"sbatch": ["exclusive"]}, "'exclusive' is not an option"),
        ({"at_once": 0}, "at_once=0: expected 1 to"),
        ({"partion": "gpu"}, "hydra.launcher.partion: no such option; did you mean partition"),
    ],
)
def test_what_sbatch_would_read_otherwise_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        slurm(**options)


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_a_sites_file_says_how_it_is_used_and_is_of_slurms_options(path: Path) -> None:
    head, use, *_ = path.read_text().splitlines()
    assert head == "# @package hydra.launcher"
    assert use.startswith("# flair2-exp ")
    assert f"hydra/launcher=slurm hydra/launcher/site={path.stem}" in use
    values: Any = OmegaConf.to_container(OmegaConf.load(path))
    assert slurm(**values)
