"""Predicting patches as tests do: each by itself where that is exact, in several symmetries.

Test-time augmentation averages what a network says of a patch and of its turned and mirrored
copies, each turned back. Image and series cover the same square, so one symmetry moves both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

Batch = Mapping[str, Any]
Forward = Callable[[Batch], dict[str, Tensor]]
"""Gives logits (B, C, H, W) by head of a batch already scaled."""

_TURNED: Final = ("image", "series")
"""The inputs whose last two axes lie on the ground."""


@dataclass(frozen=True)
class Symmetry:
    """One of the square's eight symmetries: a mirror image, then quarter turns."""

    turns: int = 0
    """Quarter turns, counter-clockwise."""
    mirrored: bool = False
    """Whether columns are reversed first."""

    def applied(self, values: Tensor) -> Tensor:
        """Return (..., H, W) values moved; H = W where turns are odd."""
        moved = values.flip(-1) if self.mirrored else values
        return torch.rot90(moved, self.turns, (-2, -1)).contiguous()

    def undone(self, values: Tensor) -> Tensor:
        """Return what `applied` was given, bit by bit."""
        turned = torch.rot90(values, -self.turns, (-2, -1))
        return turned.flip(-1) if self.mirrored else turned


_EVERY: Final = tuple(Symmetry(turns, mirrored) for mirrored in (False, True) for turns in range(4))
SYMMETRIES: Final[Mapping[str, tuple[Symmetry, ...]]] = {
    "none": (Symmetry(),),
    "flips": tuple(each for each in _EVERY if each.turns in (0, 2)),
    "d4": _EVERY,
}
"""The words of `test_time.symmetries`. Flips alone are four: none, each, and both."""


def averaged(forward: Forward, batch: Batch, symmetries: str) -> dict[str, Tensor]:
    """Return the logits of each head, (B, C, H, W), averaged over symmetries as probabilities.

    Args:
        forward: The network.
        batch: Already scaled.
        symmetries: A word of `SYMMETRIES`.

    Returns:
        The network's own logits with `none`; else the logarithm of the mean probabilities, whose
        softmax they are and whose cross-entropy is theirs, float32.
    """
    chosen = SYMMETRIES[symmetries]
    if len(chosen) == 1:
        return forward(batch)
    sums: dict[str, Tensor] = {}
    for symmetry in chosen:
        moved = {name: symmetry.applied(batch[name]) for name in _TURNED if name in batch}
        for head, logits in forward({**batch, **moved}).items():
            probabilities = symmetry.undone(logits.float().softmax(dim=1))
            sums[head] = sums[head] + probabilities if head in sums else probabilities
    smallest = torch.finfo(torch.float32).tiny
    return {head: (each / len(chosen)).clamp_min(smallest).log() for head, each in sums.items()}


def one_by_one(batch: Batch) -> Iterator[dict[str, Any]]:
    """Yield the patches of a batch as batches of one, without the padding of their series.

    Rounding depends on how many patches are summed at once and on how much their series are padded;
    so taken apart, a patch's logits are the same bits in whatever batch it came.
    """
    for at in range(len(batch["label"])):
        patch = {n: each[at : at + 1] for n, each in batch.items() if n != "area"}
        if "padding" in batch:
            real = torch.nonzero(~batch["padding"][at]).flatten()
            length = int(real[-1]) + 1 if len(real) else 1
            for name in ("series", "days", "padding"):
                patch[name] = patch[name][:, :length]
        yield patch
