"""Small models and batches that the tests of this folder share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor, nn

from flair2_exp.config.data import MetadataConfig
from flair2_exp.config.model import FusionConfig, ModelConfig, UTAEConfig
from flair2_exp.models.reference import utae_name
from flair2_exp.models.registry import NetworkSpec, SegmentationModel, build_network
from flair2_exp.models.utae import UTAE
from flair2_exp.run import assembly
from flair2_exp.training.task import SegmentationTask
from tests.configs import compose_config
from tests.golden_vectors import golden

SMALL = UTAEConfig(
    encoder_widths=(16, 16, 32, 32),
    decoder_widths=(16, 16, 32, 32),
    heads=4,
    d_model=32,
    d_k=4,
    head_widths=(8,),
)
"""The golden files' U-TAE, with the corrected settings."""
ENCODER = "timm-mobilenetv3_small_minimal_100"
_OF_MODEL = {each.name for each in dataclasses.fields(ModelConfig)}


@functools.cache
def model_config(name: str) -> ModelConfig:
    """What `model=NAME` composes to."""
    return compose_config(f"model={name}").model


def spec_of(name: str, *, metadata: str | None = None, **changes: Any) -> NetworkSpec:
    """A network of FLAIR #2's sizes, but for these options.

    Args:
        name: A file of conf/model.
        metadata: How they join; None leaves them out.
        changes: Fields of `ModelConfig` or `NetworkSpec`.
    """
    model = {name: changes.pop(name) for name in _OF_MODEL & changes.keys()}
    join: Any = metadata or "channels"
    return NetworkSpec(
        model=dataclasses.replace(model_config(name), **model),
        metadata=MetadataConfig(enabled=metadata is not None, fusion=join),
        **changes,
    )


def small_spec(name: str = "utt", **changes: Any) -> NetworkSpec:
    """A network that runs in a fraction of a second: 64 px, small encoder, small U-TAE."""
    sizes = {"encoder": ENCODER, "decoder_channels": (64, 48, 32, 24, 16)}
    return spec_of(name, **{**sizes, "patch_size": 64, "utae": SMALL, **changes})


def golden_spec() -> NetworkSpec:
    """The golden U-T&T: reference settings throughout."""
    return small_spec(
        metadata="rows",
        patch_size=512,
        utae=dataclasses.replace(SMALL, normalise_padding=True),
        fusion=FusionConfig(collapsed="first_sample", dropout="always_batch"),
    )


def run(model: SegmentationModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of a batch, of which the network gets what it takes."""
    taken = inspect.signature(model.forward).parameters
    logits: dict[str, Tensor] = model(**{n: each for n, each in inputs.items() if n in taken})
    return logits


GOLDEN_SIZES = (
    "model=utt",
    "metadata=on",
    f"model.encoder={ENCODER}",
    "model.decoder_channels=[64,48,32,24,16]",
    "utae.encoder_widths=[16,16,32,32]",
    "utae.decoder_widths=[16,16,32,32]",
    "utae.heads=4",
    "utae.d_model=32",
    "utae.d_k=4",
    "utae.head_widths=[8]",
    "metadata.fusion=rows",
)
"""The golden U-T&T's sizes on the command line; `rows` is what its metadata weights fit."""


def golden_weights(folder: Path) -> Path:
    """The golden U-T&T's weights as a file like the released ones."""
    arrays = golden("utt_small")
    weights = {
        f"model.{name.removeprefix('sd/')}": torch.from_numpy(arrays[name])
        for name in arrays.files
        if name.startswith("sd/")
    }
    torch.save({"state_dict": weights, "epoch": 3}, folder / "baseline.ckpt")
    return folder / "baseline.ckpt"


def golden_inputs() -> dict[str, Tensor]:
    """The golden U-T&T's batch: three samples of 14, 9 and 12 dates."""
    arrays = golden("utt_small")
    image = torch.from_numpy(arrays["in/patch_div4"])
    label = torch.from_numpy(arrays["in/label_div16"]).long()
    label = label.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return {
        "image": image.repeat_interleave(4, 2).repeat_interleave(4, 3),
        "series": torch.from_numpy(arrays["in/s2"]),
        "days": torch.from_numpy(arrays["in/dates"]),
        "metadata": torch.from_numpy(arrays["in/metadata"]),
        "label": label,
        "satellite_label": label,
    }


def golden_task(weights: Path, *overrides: str) -> SegmentationTask:
    """The golden U-T&T built as a run builds it from a command line, all dropout rates 0."""
    config = compose_config(*GOLDEN_SIZES, f"model.weights={weights}", *overrides)
    task = assembly.build_task(config, assembly.network_spec(config, 512))
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    return task


def build(spec: NetworkSpec, seed: int = 0) -> SegmentationModel:
    """A model in evaluation mode whose BatchNorms have statistics unlike the initial ones."""
    torch.manual_seed(seed)
    model = build_network(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


def batch(
    lengths: list[int], *, patch: int = 64, size: int = 16, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs whose series have these lengths; the batch is padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    dates = max(lengths)
    padding = torch.arange(dates) >= torch.tensor(lengths)[:, None]
    series = torch.rand(len(lengths), dates, 10, size, size, generator=generator)
    series[padding] = 0
    days = torch.randint(-200, 200, (len(lengths), dates), generator=generator)
    days[padding] = 0
    return {
        "image": torch.rand(len(lengths), 5, patch, patch, generator=generator),
        "series": series,
        "days": days,
        "padding": padding,
        "metadata": torch.rand(len(lengths), 45, generator=generator),
    }


def sample(inputs: dict[str, Tensor], index: int, dates: int | None = None) -> dict[str, Tensor]:
    """One sample of a batch, its series cut to its own dates or to `dates`."""
    keep = int((~inputs["padding"][index]).sum()) if dates is None else dates
    one = {name: value[index : index + 1] for name, value in inputs.items()}
    return one | {name: one[name][:, :keep] for name in ("series", "days", "padding")}


def golden_utae(arrays: NpzFile, options: UTAEConfig) -> UTAE:
    """A U-TAE with the weights of a golden file."""
    model = UTAE(options, classes=13).eval()
    weights = {}
    for name in arrays.files:
        if name.startswith("sd/"):
            value = torch.from_numpy(arrays[name])
            ours = utae_name(name.removeprefix("sd/"))
            weights[ours] = value.squeeze(-1) if ours == "temporal.project.weight" else value
    model.load_state_dict(weights)
    return model
