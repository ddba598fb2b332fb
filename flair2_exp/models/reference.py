"""Checkpoints of the published FLAIR #2 baseline: recognising them and mapping their names.

A released U-T&T holds its weights under `model.arch_vhr` (the aerial U-Net), `model.arch_hr`
(U-TAE), `model.fm_utae_featmap_cropped`, `model.fm_utae_featmap_collapsed`, `model.mtd_mlp` and
`model.reshape_utae_output` (the satellite head).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from torch import Tensor

_PARTS: Final[tuple[str, ...]] = (
    "arch_vhr.",
    "arch_hr.",
    "fm_utae_featmap_cropped.",
    "fm_utae_featmap_collapsed.",
    "mtd_mlp.",
    "reshape_utae_output.",
)
_LAYERS: Final = ("conv", "norm")
"""What the baseline numbers 0 and 1 in each sequence of convolution, normalisation, ReLU."""

_Rename = str | Callable[[re.Match[str]], str]


def _layer(prefix: str) -> Callable[[re.Match[str]], str]:
    """Return a rule: `prefix` with the first number, and the layer that the last one means."""
    return lambda match: f"{prefix.format(match[1])}.{_LAYERS[int(match[2])]}."


def _nth_block(prefix: str) -> Callable[[re.Match[str]], str]:
    """Return the same for blocks that the baseline strings together, three layers each."""
    return lambda match: f"{prefix}.{int(match[1]) // 3}.{_LAYERS[int(match[1]) % 3]}."


_UTAE_RULES: Final[tuple[tuple[str, _Rename], ...]] = (
    (r"^in_conv\.conv\.conv\.(\d+)\.", _nth_block("encoder.stem")),
    (r"^down_blocks\.(\d+)\.down\.conv\.(\d)\.", _layer("encoder.stages.{}.0")),
    (r"^down_blocks\.(\d+)\.conv1\.conv\.(\d)\.", _layer("encoder.stages.{}.1")),
    (r"^down_blocks\.(\d+)\.conv2\.conv\.(\d)\.", _layer("encoder.stages.{}.2.block")),
    (r"^temporal_encoder\.in_norm\.", "temporal.norm_in."),
    (r"^temporal_encoder\.inconv\.", "temporal.project."),
    (r"^temporal_encoder\.attention_heads\.Q$", "temporal.query"),
    (r"^temporal_encoder\.attention_heads\.fc1_k\.", "temporal.key."),
    (r"^temporal_encoder\.mlp\.0\.", "temporal.out.linear."),
    (r"^temporal_encoder\.mlp\.1\.", "temporal.out.norm."),
    (r"^temporal_encoder\.out_norm\.", "temporal.norm_out."),
    (r"^up_blocks\.(\d+)\.up\.(\d)\.", _layer("decoder.{}.up")),
    (r"^up_blocks\.(\d+)\.skip_conv\.(\d)\.", _layer("decoder.{}.skip")),
    (r"^up_blocks\.(\d+)\.conv1\.conv\.(\d)\.", _layer("decoder.{}.merge")),
    (r"^up_blocks\.(\d+)\.conv2\.conv\.(\d)\.", _layer("decoder.{}.residual.block")),
    (r"^out_conv\.conv\.conv\.(\d+)\.", _nth_block("output")),
)


def is_reference(names: Mapping[str, Tensor]) -> bool:
    """Return whether these are the baseline's names (wrappings taken off)."""
    return any(name.startswith(_PARTS) for name in names)


def utae_name(name: str) -> str:
    """Return our U-TAE's name of a tensor of the baseline's; an unknown one comes back as it is."""
    for pattern, replacement in _UTAE_RULES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def translate(tensors: Mapping[str, Tensor], *, fused: bool) -> dict[str, Tensor]:
    """Return the baseline's tensors under our names and in our shapes.

    Args:
        tensors: By the baseline's names, wrappings taken off.
        fused: Whether they go into a U-T&T (whose U-Net is `unet.`) or into a U-Net alone.

    Returns:
        By our names; what has no counterpart keeps its own, so that it shows up as left over.
    """
    unet = "unet." if fused else ""
    translated: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "arch_vhr":
            translated[unet + rest] = tensor
        elif part == "arch_hr":
            ours = utae_name(rest)
            # A 1×1 convolution over time there, a linear layer here: the same numbers.
            flat = ours == "temporal.project.weight" and tensor.dim() == 3
            translated[f"utae.{ours}"] = tensor.squeeze(-1) if flat else tensor
        elif part == "fm_utae_featmap_cropped":
            translated[f"fusion.cropped.{rest.removeprefix('conv_list.')}"] = tensor
        elif part == "fm_utae_featmap_collapsed":
            translated[f"fusion.collapsed.{rest.removeprefix('mlps.')}"] = tensor
        elif part == "mtd_mlp":
            translated[f"{unet}metadata.mlp.{rest.removeprefix('enc_mlp.')}"] = tensor
        elif name.startswith("reshape_utae_output.1."):
            translated[f"head.conv.{name.removeprefix('reshape_utae_output.1.')}"] = tensor
        else:
            translated[name] = tensor
    return translated
