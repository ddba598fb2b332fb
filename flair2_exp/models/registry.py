"""The one door for networks: how one is described, what each one is, and how it is built.

A network is a `torch.nn.Module` and a file `conf/model/NAME.yaml` that names it (`_target_`), the
inputs that it reads (`reads`) and its options (`options`; for ours, also further nodes of the
config, `nodes`). Nothing else knows it by name. What it is given and what it returns stands in
docs/how-to/own_network.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn

from flair2_exp.config.data import MetadataConfig
from flair2_exp.config.fields import Group, build, options, plain
from flair2_exp.config.model import FusionConfig, ModelConfig, UTAEConfig
from flair2_exp.errors import ConfigError, ModelError
from flair2_exp.models.norms import tolerate_single_values
from flair2_exp.nomenclature import METADATA_VALUES, SATELLITE_BANDS
from flair2_exp.registry import arguments_of, locate, written
from flair2_exp.values import flatten

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "aerial": ("image",),
    "satellite": ("series", "days", "padding"),
    "metadata": ("metadata",),
}
"""What a network's `forward` is given for each input that it reads."""

HEADS: Final = ("aerial", "satellite")
"""The heads that a network may return logits of."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Group):
    """A network's description, from which a checkpoint rebuilds it; FLAIR #2's sizes by default."""

    model: ModelConfig
    utae: UTAEConfig = field(default_factory=UTAEConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    bands: int = 5
    """Aerial bands."""
    band_names: tuple[str, ...] = ()
    """Their names, in order; none where nobody knows them."""
    classes: int = 13
    patch_size: int = 512
    """Aerial pixels on a side of a patch."""
    series_size: int = 40
    """Satellite pixels on a side of a super-patch."""

    def validate(self) -> None:
        """Refuse nodes that a network cannot be given, and names of other bands."""
        if self.band_names and len(self.band_names) != self.bands:
            raise ConfigError(
                f"bands={self.bands}, band_names={list(self.band_names)}: expected as many names."
            )
        groups = [
            name
            for name, each in vars(self).items()
            if isinstance(each, Group) and name not in ("model", "metadata")  # every network's
        ]
        for node in self.model.nodes:
            if node not in groups:
                raise ConfigError(
                    f"model.nodes={list(self.model.nodes)}: {node} holds no options of networks; "
                    f"expected some of {', '.join(groups)}."
                )

    def plain(self) -> dict[str, Any]:
        """Return the description as numbers, strings, None, lists and dictionaries of them."""
        values: dict[str, Any] = plain(self)
        return values

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return the description that `plain` gave; what is absent has its default.

        Raises:
            ConfigError: A value is unknown, out of bounds or in conflict with another.
        """
        return build(cls, values)

    @property
    def reads(self) -> frozenset[str]:
        """The inputs that the network is given: `aerial`, `satellite`, `metadata`."""
        return frozenset(self.model.reads) - (set() if self.metadata.enabled else {"metadata"})

    def given(self, *, pretrained: bool) -> dict[str, Any]:
        """Return what a network's constructor is given, by the names of its arguments.

        Args:
            pretrained: Whether first weights from elsewhere are wanted: not where a checkpoint will
                replace them.
        """
        return {
            "spec": self,
            "pretrained": pretrained,
            "bands": self.bands,
            "band_names": self.band_names,
            "classes": self.classes,
            "patch_size": self.patch_size,
            "series_size": self.series_size,
            "series_bands": len(SATELLITE_BANDS),
            "metadata_values": METADATA_VALUES,
        }

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the tensors that `forward` is given."""
        return tuple(name for each in ARGUMENTS if each in self.reads for name in ARGUMENTS[each])

    def deciding(self) -> dict[str, Any]:
        """Return what the network's results depend on besides its weights, by dotted name.

        By what it reads and by its nodes: options of parts that it does not have are left out, like
        those that change its first weights or its speed alone.
        """
        model = self.model
        values: dict[str, Any] = {
            "model": {"_target_": model._target_, "options": model.options},
            "reads": sorted(self.reads),
            "classes": self.classes,
            "patch_size": self.patch_size,
        }
        if "aerial" in self.reads:
            values["model"] |= {
                name: getattr(model, name) for name in ("encoder", "decoder", "depth")
            }
            if model.has_widths:
                values["model"]["decoder_channels"] = model.decoder_channels
            values["bands"] = self.bands
        if "satellite" in self.reads:
            values["series_size"] = self.series_size
        if "metadata" in self.reads:
            values["metadata.fusion"] = self.metadata.fusion
        for node in model.nodes:
            group = getattr(self, node)
            deciding = {name for name, decides in options(type(group)) if decides}
            values[node] = {n: each for n, each in plain(group).items() if n in deciding}
        return flatten(plain(values))


class SegmentationModel(nn.Module):
    """What our networks have beyond the contract; a user's own may be any `torch.nn.Module`.

    In evaluation a patch's logits depend on that patch alone, not on the rest of the batch or on
    random numbers. Where an option makes an exception, `config.relevance` knows it.
    """

    main_head: ClassVar[str] = "aerial"
    """The head that is scored."""
    encoder_name: ClassVar[str] = "encoder"
    """The module whose first weights may come from elsewhere, by its dotted name."""

    def accelerate(self, options: ModelConfig, backend: str = "inductor") -> None:
        """Apply, in place, the options that change speed and not results.

        A network without such options ignores them, as this base does. Names stay the same. The
        network may be on any device: the order in memory moves with it to another, and what is
        compiled is compiled at its first use.
        """


def build_network(spec: NetworkSpec, pretrained: bool = True) -> nn.Module:
    """Build the network of a description with its first weights.

    Args:
        spec: The description.
        pretrained: False where other weights will replace the first ones: those of encoders are
            then neither read nor downloaded.

    Raises:
        ConfigError: `model._target_` is not a network, or does not take its options.
        ModelError: Its `forward` does not fit the config, its options do not go together, or its
            weights are missing.
    """
    kind = locate(spec.model._target_, nn.Module, "model._target_")
    _require_forward(kind, spec)
    arguments = arguments_of(
        kind,
        "model.options",
        given=spec.given(pretrained=pretrained),
        options=spec.model.options,
    )
    try:
        network = kind(**arguments)
    except ValueError as error:
        raise ModelError(
            f"model={spec.model.name} cannot be built: {error}.\nChange model.options or the other "
            "options that it names."
        ) from error
    tolerate_single_values(network)
    return network


def accelerate(network: nn.Module, options: ModelConfig) -> None:
    """Apply, in place, the options that change speed and not results, to any network."""
    if isinstance(network, SegmentationModel):
        network.accelerate(options)
        return
    if options.channels_last:
        network.to(memory_format=torch.channels_last)
    if options.compile:
        network.compile()


def main_head(network: nn.Module, reads: frozenset[str]) -> str:
    """Return the head of a network that is scored: `main_head`, else that of the patch it reads."""
    named = getattr(network, "main_head", None)
    return named or ("aerial" if "aerial" in reads else "satellite")


def by_head(
    network: nn.Module, output: Any, spec: NetworkSpec, size: Sequence[int]
) -> dict[str, Tensor]:
    """Return what a network's `forward` returned as logits (B, classes, H, W) by head.

    Args:
        network: The network.
        output: A tensor, which is the main head's, or a mapping of heads.
        spec: The network's description.
        size: B, H and W of the labels.

    Raises:
        ModelError: It is something else, or of another shape; the message names the class's file.
    """
    main = main_head(network, spec.reads)
    heads = dict(output) if isinstance(output, Mapping) else {main: output}
    wanted = (size[0], spec.classes, *size[1:])
    who = written(type(network))
    for head, logits in heads.items():
        if head not in HEADS or not isinstance(logits, Tensor):
            raise ModelError(
                f"the forward of {who} returned {head!r}: {type(logits).__name__}.\nExpected "
                f"logits {wanted} as a tensor, or a dictionary of them by head: aerial, satellite."
            )
        if tuple(logits.shape) != wanted:
            raise ModelError(
                f"the forward of {who} returned logits of shape {tuple(logits.shape)} for the "
                f"{head} head.\nExpected (batch, classes, height, width) = {wanted}."
            )
    if main not in heads:
        raise ModelError(
            f"the forward of {who} returned no logits of its main head, {main}.\n"
            f"It returned {', '.join(heads) or 'nothing'}: add them, or set its main_head."
        )
    return heads


def _require_forward(kind: type[nn.Module], spec: NetworkSpec) -> None:
    """Refuse a network whose `forward` does not go with what its file says that it reads.

    Raises:
        ModelError: It lacks an argument, or demands one that it would not be given.
    """
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]  # without self
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    wanted = [name for each in spec.model.reads for name in ARGUMENTS[each]]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    lacking = set() if takes_all else set(wanted) - {p.name for p in by_name}
    demanded = {p.name for p in by_name if p.default is p.empty} - set(spec.arguments)
    if not lacking and not demanded:
        return
    if demanded == {"metadata"} and "metadata" in spec.model.reads:
        raise ModelError(
            f"metadata=off: the forward of {kind.__name__} demands metadata.\n"
            "Use metadata=on, or give the argument a default."
        )
    what = f"does not take {_listed(lacking)}" if lacking else f"demands {_listed(demanded)}"
    raise ModelError(
        f"model.reads={list(spec.model.reads)}: the forward of {kind.__name__} {what}.\n"
        f"Expected the arguments {', '.join(wanted)}: correct model.reads in "
        f"conf/model/{spec.model.name}.yaml, or forward."
    )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def count_parameters(network: nn.Module) -> int:
    """Return how many numbers a network's parameters hold."""
    return sum(parameter.numel() for parameter in network.parameters())
