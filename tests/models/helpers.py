"""Small models and batches that the tests of this folder share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names
from torch import Tensor, nn

from flair2_exp.config.data import MetadataConfig
from flair2_exp.config.model import FusionConfig, ModelConfig, UTAEConfig
from flair2_exp.lifecycle import assembly
from flair2_exp.models.reference import utae_name
from flair2_exp.models.registry import NetworkSpec, SegmentationModel, build_network
from flair2_exp.models.utae import UTAE
from flair2_exp.training.task import SegmentationTask
from tests.configs import compose_config
from tests.golden_vectors import golden, golden_dir

SMALL = UTAEConfig(
    encoder_widths=(16, 16, 32, 32),
    decoder_widths=(16, 16, 32, 32),
    heads=4,
    d_model=32,
    d_k=4,
    head_widths=(8,),
)
"""A small U-TAE, with the corrected settings."""
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


def _outputs(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    """Output channels of the convolutions that match, by the number in their names."""
    matches = {
        name: re.fullmatch(pattern, name) for name, each in weights.items() if each.dim() == 4
    }
    sizes = {int(match[1]): len(weights[name]) for name, match in matches.items() if match}
    return [sizes[number] for number in sorted(sizes)]


def _published_utae(weights: Mapping[str, Tensor], aggregation: Any = "att_group") -> UTAEConfig:
    """The sizes of a U-TAE with these published tensors, in the reference settings."""
    encoder = _outputs(weights, r"in_conv\.conv\.conv\.(0)\.weight")
    encoder += _outputs(weights, r"down_blocks\.(\d+)\.conv1\.conv\.0\.weight")
    decoder = _outputs(weights, r"up_blocks\.(\d+)\.conv1\.conv\.0\.weight")
    heads, d_k = weights["temporal_encoder.attention_heads.Q"].shape
    return UTAEConfig(
        encoder_widths=tuple(encoder),
        decoder_widths=(*reversed(decoder), encoder[-1]),
        heads=heads,
        d_model=len(weights["temporal_encoder.inconv.weight"]),
        d_k=d_k,
        head_widths=tuple(_outputs(weights, r"out_conv\.conv\.conv\.(\d+)\.weight")[:-1]),
        aggregation=aggregation,
        normalise_padding=True,
    )


def encoder_of(weights: Mapping[str, Tensor], first: Sequence[str] = ()) -> str:
    """The first encoder, of these and then of smp's, whose tensors have these names and shapes."""
    sizes = {name: each.shape for name, each in weights.items()}
    bands = next(each.shape[1] for each in weights.values() if each.dim() == 4)
    for name in dict.fromkeys([*first, *get_encoder_names()]):
        with contextlib.suppress(KeyError, RuntimeError), torch.device("meta"):  # some need numbers
            tensors = get_encoder(name, in_channels=bands, weights=None).state_dict()
            if {each: tensor.shape for each, tensor in tensors.items()} == sizes:
                return name
    raise AssertionError("no encoder of segmentation_models_pytorch has the golden weights")


@functools.cache
def golden_spec() -> NetworkSpec:
    """The golden U-T&T, its sizes read from the vectors: reference settings throughout.

    The encoder is that of an entry `encoder`, else one of timm's that the README beside the vectors
    names, else one of smp's own, if its tensors have the names and shapes of the weights.
    """
    arrays, weights = golden("utt_small"), golden_tensors("utt_small")
    readme = golden_dir() / "README.md"
    named = re.findall(r"`((?:tu|timm)-[\w.-]+)`", readme.read_text()) if readme.exists() else []
    named = [str(arrays["encoder"])] if "encoder" in arrays else [*named, ENCODER]
    bands = arrays["in/patch_div4"].shape[1]
    return spec_of(
        "utt",
        metadata="rows",
        encoder=encoder_of(_below(weights, "arch_vhr.encoder."), named),
        decoder_channels=tuple(
            _outputs(weights, r"arch_vhr\.decoder\.blocks\.(\d+)\.conv1\.0\.weight")
        ),
        utae=_published_utae(_below(weights, "arch_hr.")),
        fusion=FusionConfig(collapsed="first_sample", dropout="always_batch"),
        bands=bands,
        classes=len(weights["arch_vhr.segmentation_head.0.weight"]),
        patch_size=4 * arrays["in/patch_div4"].shape[-1],
        series_size=arrays["in/s2"].shape[-1],
    )


def run(model: SegmentationModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of a batch, of which the network gets what it takes."""
    taken = inspect.signature(model.forward).parameters
    logits: dict[str, Tensor] = model(**{n: each for n, each in inputs.items() if n in taken})
    return logits


def golden_sizes() -> list[str]:
    """The golden U-T&T's sizes on the command line; `rows` is what its metadata weights fit."""
    spec = golden_spec()
    utae = ("encoder_widths", "decoder_widths", "heads", "d_model", "d_k", "head_widths")
    options: dict[str, Any] = {
        "model.encoder": spec.model.encoder,
        "model.decoder_channels": spec.model.decoder_channels,
        **{f"utae.{name}": getattr(spec.utae, name) for name in utae},
        "data.classes": spec.classes,
        "s2_preproc.size": spec.series_size,
    }
    lists = {
        name: list(each) if isinstance(each, tuple) else each for name, each in options.items()
    }
    return ["model=utt", "metadata=on", "metadata.fusion=rows",
            *(f"{name}={each}" for name, each in lists.items())]  # fmt: skip


def golden_tensors(name: str) -> dict[str, Tensor]:
    """The weights of a golden file by their published names."""
    arrays = golden(name)
    return _below({each: torch.from_numpy(arrays[each]) for each in arrays.files}, "sd/")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): each for n, each in tensors.items() if n.startswith(prefix)}


def golden_weights(folder: Path) -> Path:
    """The golden U-T&T's weights as a file like the released ones."""
    weights = {f"model.{name}": each for name, each in golden_tensors("utt_small").items()}
    torch.save({"state_dict": weights, "epoch": 3}, folder / "baseline.ckpt")
    return folder / "baseline.ckpt"


def golden_inputs() -> dict[str, Tensor]:
    """The golden U-T&T's batch, its series padded with zero frames to the longest."""
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
    config = compose_config(*golden_sizes(), f"model.weights={weights}", *overrides)
    task = assembly.build_task(config, assembly.network_spec(config, golden_spec().patch_size))
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


def golden_utae(name: str, aggregation: str) -> UTAE:
    """A U-TAE with the weights of a golden file."""
    published = golden_tensors(name)
    classes = _outputs(published, r"out_conv\.conv\.conv\.(\d+)\.weight")[-1]
    model = UTAE(_published_utae(published, aggregation), classes).eval()
    weights = {utae_name(each): value for each, value in published.items()}
    weights["temporal.project.weight"] = weights["temporal.project.weight"].squeeze(-1)
    model.load_state_dict(weights)
    return model
