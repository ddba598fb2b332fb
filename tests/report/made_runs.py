"""Runs with counts as of a test set, as arrays, run folders and objects, made in milliseconds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.nomenclature import CLASSES_13
from flair2_exp.report.folders import read_folder
from flair2_exp.report.runs import ScoredRun
from flair2_exp.tracking.tags import Tag

NAMES = np.array([one.name for one in CLASSES_13])
SHARES = np.array([5, 6, 9, 3, 4, 8, 20, 6, 4, 18, 13, 3, 1]) / 100
PIXELS = 128 * 128
HOSTILE = "<b>a|b</b> $x_1$ [red](http://evil) *"
"""A row's name that Markdown, HTML and matplotlib would each take for more than text."""

Arrays = dict[str, np.ndarray]


def make_arrays(
    skill: float = 1.0,
    *,
    world: int = 0,
    row: int = 0,
    seed: int = 1,
    areas: int = 12,
    patches: int = 4,
    luck: float = 0.05,
) -> Arrays:
    """The arrays of `confusion_per_patch.npz`: the same truth for the same world."""
    truth_of = np.random.default_rng([world, 1])
    mixture = truth_of.dirichlet(6 * SHARES, size=areas).repeat(patches, axis=0)
    mixture = np.stack([truth_of.dirichlet(20 * one + 1e-3) for one in mixture])
    truth = np.stack([truth_of.multinomial(PIXELS, one) for one in mixture])
    difficulty = 0.5 * truth_of.standard_normal(areas).repeat(patches)
    own = np.random.default_rng([world, 2, row]).normal(0, 0.15, areas).repeat(patches)
    run = np.random.default_rng([world, 3, row, seed])
    chance = luck * run.standard_normal(13) + luck * run.standard_normal()
    tilt = np.linspace(0.8, -0.8, 13)
    recall = 1 / (1 + np.exp(-(skill + tilt + (difficulty + own)[:, None] + chance)))
    elsewhere = SHARES / SHARES.sum()
    confusion = np.zeros((len(truth), 13, 13), dtype=np.int32)
    for patch in range(len(truth)):
        for one in range(13):
            chances = (1 - recall[patch, one]) * (0.5 * elsewhere + 0.5 * mixture[patch])
            chances[one] += recall[patch, one]
            confusion[patch, one] = run.multinomial(truth[patch, one], chances / chances.sum())
    folders = [f"D0{15 + at % 4}_2020/Z{at // 4 + 1}_NN" for at in range(areas)]
    return {
        "patch_ids": np.array([f"IMG_{at:06d}" for at in range(len(truth))]),
        "areas": np.array(folders).repeat(patches),
        "confusion": confusion,
        "classes": NAMES,
    }


def make_folder(
    root: Path,
    row: str,
    seed: int,
    arrays: Arrays | None = None,
    *,
    epochs: int = 8,
    status: str = "FINISHED",
    error: str = "",
    tags: Mapping[str, str] | None = None,
    **settings: object,
) -> RunFolder:
    """A run's folder as an experiment leaves it; `settings` have `__` for a dot."""
    folder = RunFolder(root / row / f"seed={seed}")
    folder.path.mkdir(parents=True)
    config: dict[str, Any] = {
        "name": row,
        "seed": seed,
        "metric": {"other_pixels": "keep"},
        "model": {"name": "unet", "encoder": "resnet34"},
        "s2_preproc": {"cloud_filter": False, "monthly": False},
        "aug": {"geometry": "none"},
        "metadata": {"enabled": False},
    }
    for key, value in settings.items():
        group, name = key.split("__")
        config[group][name] = value
    folder.config.write_text(yaml.safe_dump(config))
    own = {
        Tag.ROW: row,
        Tag.SEED: str(seed),
        Tag.DATASET: "sample",
        Tag.SPLIT: "official",
        Tag.METRIC: "13 classes, other pixels keep",
        Tag.READS: "aerial",
    }
    named = {str(name): value for name, value in {**own, **(tags or {})}.items()}
    RunRecord(tags=named, status=status, error=error).write(folder)
    scores = {
        "train/seconds": 60.0 + seed,
        "inference/seconds": 2.5,
        "model/parameters": 24_444_381,
    }
    folder.metrics.write_text(json.dumps(scores))
    generator = np.random.default_rng(seed)
    lines = ["epoch,train/loss,val/loss,val/miou"]
    for epoch in range(1, epochs + seed + 1):
        miou = 0.5 * (1 - np.exp((1 - epoch) / 3)) + 0.02 * generator.standard_normal()
        lines.append(f"{epoch},{1 / epoch:.4f},,{miou:.4f}")
    folder.history.write_text("\n".join(lines) + "\n")
    np.savez_compressed(folder.confusion, **(arrays or make_arrays(row=len(row), seed=seed)))  # type: ignore[arg-type]
    return folder


def read_run(folder: RunFolder) -> ScoredRun:
    """The run in a folder, which must have a score."""
    run = read_folder(folder)
    assert isinstance(run, ScoredRun), run
    return run


def make_runs(
    root: Path, skills: dict[str, float], seeds: int = 3, **options: Any
) -> list[ScoredRun]:
    """Rows of the same world with the given skills, read back from folders."""
    return [
        read_run(make_folder(root, name, seed, make_arrays(skill, row=at, seed=seed, **options)))
        for at, (name, skill) in enumerate(skills.items())
        for seed in range(1, seeds + 1)
    ]


def as_cell(run: ScoredRun) -> ScoredRun:
    """A run of the row `c` and a digit (0, 1) for each of three factors, with their levels."""
    levels = {"s2_preproc.cloud_filter": ("false", "true"), "s2_preproc.monthly": ("false", "true"),
              "aug.geometry": ("none", "flips")}  # fmt: skip
    cell = zip(levels.items(), run.row[1:], strict=False)
    return changed(run, settings={key: pair[int(digit)] for (key, pair), digit in cell})


def changed(
    run: ScoredRun,
    *,
    tags: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    **fields: Any,
) -> ScoredRun:
    """A run with other tags and settings, and other fields of its own."""
    named = {str(name): value for name, value in (tags or {}).items()}
    record = dataclasses.replace(run.record, tags={**run.record.tags, **named})
    flat = {**run.settings, **(settings or {})}
    return dataclasses.replace(run, record=record, settings=flat, **fields)
