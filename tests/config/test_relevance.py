"""Every option against what it does: identities differ where results do, and nowhere else.

One value of each option is changed in a few experiments. Where the identity stays, the patches, the
network, the loss and the numbers of a tiny run stay equal; where it changes, one of them changes.
What each part of an experiment receives is all that it can depend on, so it is computed once for
that.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import hints, options, plain
from flair2_exp.config.identity import contents, identity
from flair2_exp.config.training import CallbacksConfig, FurtherMetrics
from flair2_exp.data.augment import Augmentation
from flair2_exp.data.datamodule import FlairDataModule
from flair2_exp.data.readers import Sample
from flair2_exp.data.sample.tree import ensure_sample
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.lifecycle import assembly
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.signals import Interruption
from flair2_exp.tracking.run import open_run
from flair2_exp.training.callbacks import Scores, metrics_under
from flair2_exp.training.task import SegmentationTask
from flair2_exp.values import digest
from tests.configs import SMALL_SAMPLE, compose_config

PATCH = 64
COMMON = (
    "preset=tiny", *SMALL_SAMPLE, "tracking=off", "trainer=cpu", "s2_preproc.size=16",
    "model.decoder_channels=[16,8,8,8,8]", "data.workers=0", "data.batch_size=3",
    "data.val_batch_size=3", "data.test_batch_size=3", "trainer.max_epochs=3", "optimizer.lr=0.05",
    "trainer.limit_train_batches=2", "+loss.class_weights.deciduous=0.2",
)  # fmt: skip
QUIRKS = (
    "model=utt", "compat=reference", "split.train_fraction=0.5", "metadata=on", "aug=flips",
    "fusion.dropout_rate=0.5", "s2_preproc=cloudfree",
    "s2_preproc.cover=union", "s2_preproc.threshold=0", "s2_preproc.max_cover=1.5",
    "s2_preproc.on_empty=error", "data.drop_last=false",
)  # fmt: skip
BASES = {
    "unet": ("model=unet", "aug=none", "loss=focal"),
    "fpn": ("model=fpn", "aug=none", "loss=focal"),
    "utt": (
        "model=utt",
        "aug=d4",
        "s2_preproc=raw",
        "fusion.terms=cropped",
        "scheduler=none",
        "split.label_fraction=0.5",
    ),
    "utae": (
        "model=utae",
        "aug=none",
        "s2_preproc.max_cover=0",
        "scheduler=plateau",
        "scheduler.patience=0",
        "split=leave_domains_out",
        "split.domains=[D063_2019]",
        "split.train_fraction=0.5",
    ),
    "averaged": (
        "model=unet",
        "aug=none",
        "callbacks=ema",
        "callbacks.average.decay=0.6",
        "optimizer.weight_decay=0.1",
    ),
    "quirks": QUIRKS,
    "tested": ("model=unet", "train=false", "model.weights=unet.pt", "loss=focal"),
    "tested quirks": (*QUIRKS, "train=false", "model.weights=quirks.pt"),
}
"""Experiments that between them use every option; NAME.pt are weights of the experiment NAME."""

ELSEWHERE = ("dataset.", "paths.", "tracking.", "tune.", "sweep.", "split.file", "checkpoint")
"""Places, which the data's fingerprint and the content of files stand for."""
UNSEEN = {
    "train": "two kinds of runs",
    "trainer.devices": "needs processes",
    "trainer.num_nodes": "needs machines",
    "trainer.strategy": "needs processes",
    "trainer.sync_batchnorm": "needs processes",
    "trainer.accelerator": "needs other devices",
    "trainer.deterministic": "differs on GPUs alone",
    "model.compile": "needs a compiler",
    "model.reads": "belongs to the class",
    "model.nodes": "belongs to the class",
    "data.satellite": "refused where it would matter",
    "callbacks.best.mode": "the other one is refused",
    "callbacks.early_stopping.patience": "needs longer runs; tests/training has it",
    "callbacks.best.monitor": "goes with its mode; tiny runs have one best epoch",
}
"""What cannot be shown here, and why."""
UNSEEN_THERE: dict[tuple[str, str], str] = {
    **{
        (name, option): "what our class does not take is refused, trained or not"
        for name in ("tested", "tested quirks")
        for option in ("loss.options", "aug.options")
    },
    ("utae", "loss.aerial"): "a user's network may have an aerial head of series alone",
    ("utae", "utae.head_widths"): "a user's network may use U-TAE's output block alone",
    ("utae", "s2_preproc.cover"): "all is left out either way",
    ("tested quirks", "seed"): "it is drawn from in runs alone",
    **{
        (name, f"s2_preproc.{option}"): "nothing is left out either way"
        for name in ("quirks", "tested quirks")
        for option in ("cloud_filter", "threshold", "on_empty")
    },
}
"""Where an option counts and a change of it shows nothing, and why."""
QUICK = "unet"

F1 = "torchmetrics.classification.MulticlassF1Score"
CHANGED: dict[str, Any] = {
    "data.bands": ("nir", "green", "red"),
    "split.domains": ("D004_2021",),
    "split.train_fraction": 0.8,
    "s2_preproc.size": 24, "s2_preproc.max_cover": 0.02, "s2_preproc.threshold": 5,
    "model._target_": "flair2_exp.models.utae.SatelliteSegmenter",
    "model.options": {"decoder_use_norm": "identity"}, "model.depth": 4,
    "model.encoder": "resnet18", "model.encoder_weights": "encoder.pt", "model.weights": "unet.pt",
    "model.decoder_channels": (8, 8, 8, 8, 8),
    "utae.encoder_widths": (16, 16, 16, 32), "utae.decoder_widths": (8, 16, 32, 32),
    "utae.heads": 2, "utae.d_model": 16, "utae.head_widths": (8,),
    "loss._target_": "flair2_exp.training.losses.DiceCrossEntropy",
    "loss.class_weights": {"water": 0.25},
    "optimizer._target_": "torch.optim.SGD",
    "optimizer.options": {"eps": 0.1},
    "scheduler._target_": "flair2_exp.training.schedules.Constant",
    "loss.options": {"width": 3.0},
    "scheduler.options": {"width": 3.0},
    "aug._target_": f"{__name__}.Darker",
    "aug.options": {"width": 3.0},
    "optimizer.layer_decay": 0.1,
    "metric.further": FurtherMetrics(parts={"f1": {"_target_": F1}}),
    "callbacks": CallbacksConfig(parts={"noise": {"_target_": f"{__name__}.Noise"}}),
    "trainer.precision": "bf16-mixed",
    "trainer.gradient_clip_val": 1e-3,
    "objective": "val/loss",
}  # fmt: skip
"""Values that are not found by rule."""


class Darker(Augmentation):
    """An augmentation of a user's."""

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        read = {name: getattr(sample, name) for name in ("image", "frames")}
        darker = {name: each // 2 for name, each in read.items() if each is not None}
        return dataclasses.replace(sample, **darker)


class Noise(Callback):
    """A callback of a user's, which changes what is trained."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        with torch.no_grad():
            for each in pl_module.parameters():
                each.mul_(0.9)


class Lab:
    """The experiments on one small sample, and what has been computed for them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[tuple[str, str], Any] = {}
        self._configs: dict[str, Config] = {}

    def base(self, name: str) -> Config:
        """The experiment of that name."""
        if name not in self._configs:
            words = [each.replace("weights=", f"weights={self.root}/") for each in BASES[name]]
            config = compose_config(f"paths.root={self.root}", *COMMON, *words)
            assert config.dataset.sample is not None
            ensure_sample(str(config.dataset.root), config.dataset.sample)
            if name in ("unet", "quirks"):
                network = task_of(dataclasses.replace(config, seed=99)).model
                torch.save(network.state_dict(), self.root / f"{name}.pt")
                if name == "unet":
                    torch.save(network.encoder.state_dict(), self.root / "encoder.pt")
            self._configs[name] = config
        return self._configs[name]

    def changed(self, name: str, option: str) -> Config | None:
        """The experiment with another value of an option; None where that is not allowed."""
        config = self.base(name)
        node, _, leaf = option.rpartition(".")
        groups: list[Any] = [config]
        for name_of_node in node.split(".") if node else ():
            groups.append(getattr(groups[-1], name_of_node))
        group = groups[-1]
        value = CHANGED.get(option, another(group, leaf))
        if isinstance(value, str) and value.endswith(".pt"):
            value = str(self.root / value)
        assert value is not None, f"give a value of {option} in CHANGED"
        try:
            other = value
            for each, field in zip(reversed(groups), reversed(option.split(".")), strict=True):
                other = dataclasses.replace(each, **{field: other})
            return other
        except ConfigError:
            return None

    def once(self, function: Callable[[Config], Any], config: Config, *received: Any) -> Any:
        """What a function returns or is refused with, computed once for what it receives."""
        key = function.__name__, digest({"received": plain([*received, contents(config)])})
        if key not in self._known:
            try:
                self._known[key] = function(config)
            except FlairError as error:
                self._known[key] = type(error).__name__
        return self._known[key]

    def parts(self, config: Config) -> list[Any]:
        """The patches, the network and its losses."""
        data, drawn = config.data_groups, (config.reads, config.seed, config.train)
        read = self.once(patches, config, vars(data), sorted(config.reads), *drawn[1:])
        spec = assembly.network_spec(config, PATCH)
        return [
            read,
            self.once(network, config, spec, config.loss, sorted(config.reads), *drawn[1:]),
        ]

    def run(self, name: str, config: Config) -> Any:
        """The numbers of a tiny run of an experiment, or of one with equal parts.

        Beside the parts a run receives these groups, and the batches of the evaluation.
        """
        groups = (config.optimizer, config.scheduler, config.metric, config.trainer,
                  config.callbacks, config.test_time)  # fmt: skip
        frozen = config.model.freeze_encoder
        return self.once(self._run, config, name, config.data, *groups, frozen)

    def _run(self, config: Config) -> dict[str, float]:
        folder = RunFolder(self.root / f"run{len(self._known)}")
        data, task = assembly.build_data(config), task_of(config)
        best = Scores(config.callbacks.best.monitor, config.callbacks.best.mode)
        nothing = open_run(None, "", "", folder.unsent, tags={})
        trainer = assembly.build_trainer(config, folder, nothing, [best], Interruption())
        found: dict[str, float] = {}
        if config.train:
            trainer.fit(task, datamodule=data)
            found = {**best.last, **best.best}
        else:
            trainer.validate(task, datamodule=data, verbose=False)
            found = metrics_under(trainer, "val/")
        path = folder.best if config.train else None
        trainer.test(task, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
        found |= metrics_under(trainer, "test/")
        return {n: each for n, each in found.items() if config.train or not n.endswith("/loss")}


def task_of(config: Config) -> SegmentationTask:
    """The task of an experiment, as a run makes it."""
    data = assembly.build_data(config) if assembly.needs_statistics(config) else None
    torch.manual_seed(config.seed)
    return assembly.build_task(config, assembly.network_spec(config, PATCH), data=data)


def another(group: Any, leaf: str) -> Any:
    """Another value of an option, by its type and its bounds."""
    value, hint = getattr(group, leaf), hints(type(group))[leaf]
    (metadata,) = (each.metadata for each in dataclasses.fields(group) if each.name == leaf)
    if typing.get_origin(hint) is Literal:
        return next(word for word in typing.get_args(hint) if word != value)
    if hint is bool:
        return not value
    if hint is str:
        return f"{value}_2"
    if hint is int:
        return 1 if value is None else value + 1
    if hint is float:
        return value / 2 if value else min(0.5, metadata["maximum"])
    return None


def patches(config: Config) -> list[Any]:
    """What training and evaluation see of the patches, batch by batch and one by one."""
    data = FlairDataModule(config.data_groups, reads=config.reads, seed=config.seed)
    data.setup()
    seen: list[Any] = []
    if config.train:
        loader = data.train_dataloader()
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            seen += [len(loader), *(data.on_after_batch_transfer(each, 0) for each in
                                    itertools.islice(loader, 2))]  # fmt: skip
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batches = (data.on_after_batch_transfer(each, 0) for each in loader)
        seen += (one for each in batches for one in singly(each))
    return seen


def singly(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The patches of a batch without the padding of their series."""
    for row in range(len(batch["patch_id"])):
        one = {name: each[row] for name, each in batch.items()}
        if "padding" in one:
            real = ~one.pop("padding")
            one |= {"series": one["series"][real], "days": one["days"][real]}
        yield one


def network(config: Config) -> list[Any]:
    """First weights; logits and losses of made-up patches, in evaluation and in training."""
    task = task_of(config)
    batch = made_up(config)
    seen: list[Any] = [dict(task.model.state_dict())]
    for training, seed in itertools.product((False, True) if config.train else (False,), (9, 15)):
        task.train(training)
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs = task(batch)
        seen += [outputs, task.loss(outputs, batch) if training else None]
    return seen


def made_up(config: Config) -> dict[str, Any]:
    """Four patches of noise, their series of different lengths."""
    size = config.s2_preproc.size
    padding = torch.arange(6) >= torch.tensor([[6], [3], [4], [1]])

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(5))

    labels = (config.data.classes * noise(2, 4, PATCH, PATCH)).long()
    batch = {
        "image": noise(4, len(config.data.bands), PATCH, PATCH),
        "metadata": noise(4, 45),
        "series": noise(4, 6, 10, size, size) * ~padding[:, :, None, None, None],
        "days": torch.arange(100, -20, -20).expand(4, 6) * ~padding,
        "padding": padding,
        "label": labels[0],
    }
    return batch | ({"satellite_label": labels[1]} if "satellite" in config.reads else {})


def equal(one: Any, other: Any) -> bool:
    """Whether two results agree but for rounding."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.allclose(one, other, rtol=1e-3, atol=5e-4)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[n], other[n]) for n in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = Lab(tmp_path_factory.mktemp("relevance"))
    for name in BASES:
        made.base(name)
    return made


SHOWN = [n for n, _ in options(Config) if n not in UNSEEN and not n.startswith(ELSEWHERE)]
BY_RUNS = [
    name
    for name in SHOWN
    if name in ("data.val_batch_size", "data.test_batch_size", "data.drop_last")
    or name.startswith(
        ("optimizer.", "scheduler.", "metric.", "trainer.", "callbacks", "test_time.")
    )
    or name == "model.freeze_encoder"
]
"""Options that neither the patches nor the network and its losses can show."""


def changes(lab: Lab, name: str, option: str, changed: Config) -> bool:
    """Whether anything of an experiment is another for the changed one."""
    config = lab.base(name)
    if option not in BY_RUNS or not equal(lab.parts(config), lab.parts(changed)):
        return not equal(lab.parts(config), lab.parts(changed))
    return not equal(lab.run(name, config), lab.run(name, changed))


def counts(lab: Lab, name: str, changed: Config) -> bool:
    """Whether an experiment and the changed one have two identities."""
    return identity(lab.base(name), "x") != identity(changed, "x")


def test_every_option_has_another_value_in_some_experiment(lab: Lab) -> None:
    for option in SHOWN:
        assert any(lab.changed(name, option) is not None for name in BASES), option


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == QUICK else [pytest.mark.thorough]) for name in BASES],
)
def test_in_an_experiment_what_counts_is_what_changes_something(name: str, lab: Lab) -> None:
    """But for what shows in runs alone, which are slow."""
    wrong = []
    for option in SHOWN:
        changed = lab.changed(name, option)
        if changed is not None and option not in BY_RUNS:
            counted = counts(lab, name, changed)
            if counted != changes(lab, name, option, changed):
                wrong.append((name, option, counted))
    assert not [each for each in wrong if each[:2] not in UNSEEN_THERE], wrong


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["unet", "tested", "tested quirks"])
def test_in_an_experiment_what_does_not_count_changes_no_run(name: str, lab: Lab) -> None:
    for option in BY_RUNS:
        changed = lab.changed(name, option)
        if changed is not None and not counts(lab, name, changed):
            assert not changes(lab, name, option, changed), option


@pytest.mark.thorough
@pytest.mark.parametrize("option", BY_RUNS)
def test_what_counts_in_a_run_changes_its_numbers_in_some_experiment(option: str, lab: Lab) -> None:
    other = {name: each for name in BASES if (each := lab.changed(name, option)) is not None}
    counting = [name for name in other if counts(lab, name, other[name])]
    counting.sort(key=lambda name: lab.base(name).train)  # tests are quicker than trainings
    assert not counting or any(changes(lab, name, option, other[name]) for name in counting)


def test_what_cannot_be_shown_exists() -> None:
    assert {*UNSEEN, *CHANGED} <= dict(options(Config)).keys()
