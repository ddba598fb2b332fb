"""The one door for networks: how one is described, what each one is, and how it is built.

A network is a class derived from `SegmentationModel` and a file `conf/model/NAME.yaml` that names
it (`_target_`), the inputs that it reads (`reads`) and the nodes of the config with further options
of it (`nodes`). Nothing else knows it by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from torch import nn

from flair2_exp.config.data import MetadataConfig
from flair2_exp.config.fields import Group, build, options, plain
from flair2_exp.config.model import FusionConfig, ModelConfig, UTAEConfig
from flair2_exp.errors import ConfigError, ModelError
from flair2_exp.models.norms import tolerate_single_values
from flair2_exp.registry import locate
from flair2_exp.values import flatten

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "aerial": ("image",),
    "satellite": ("series", "days", "padding"),
    "metadata": ("metadata",),
}
"""What a network's `forward` is given for each input that it reads."""
_GIVEN: Final = ("spec", "pretrained")
"""What a network's constructor is given besides `model.options`."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Group):
    """A network's description, from which a checkpoint rebuilds it; FLAIR #2's sizes by default."""

    model: ModelConfig
    utae: UTAEConfig = field(default_factory=UTAEConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    bands: int = 5
    """Aerial bands."""
    classes: int = 13
    patch_size: int = 512
    """Aerial pixels on a side of a patch."""
    series_size: int = 40
    """Satellite pixels on a side of a super-patch."""

    def validate(self) -> None:
        """Refuse nodes that a network cannot be given."""
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
                "encoder": model.encoder,
                "decoder_channels": model.decoder_channels,
            }
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
    """A network that segments a batch.

    A network's constructor takes (spec, *, pretrained) and by name what `model.options` may hold.
    It raises `ModelError` or `ValueError` at options that do not fit.

    Its `forward` takes by name the tensors of what it reads, and returns logits (B, classes, H, W)
    by head: "aerial", "satellite" or both.

    - aerial: `image` (B, bands, H, W), scaled;
    - satellite: `series` (B, T, 10, S, S), scaled, `days` (B, T), offsets, and `padding` (B, T),
      bool, True at padded dates;
    - metadata: `metadata` (B, 45), with a default, since it is not given with `metadata=off`.

    In evaluation a patch's logits depend on that patch alone, not on the rest of the batch or on
    random numbers. Where an option makes an exception, `config.relevance` knows it.
    """

    main_head: ClassVar[str]
    """The head that is scored."""

    @classmethod
    def of(cls, spec: NetworkSpec, *, pretrained: bool) -> Self:
        """Build the network of a description with its first weights.

        Args:
            spec: The description.
            pretrained: False where other weights will replace the first ones: those of encoders are
                then neither read nor downloaded.
        """
        return cls(spec, pretrained=pretrained, **spec.model.options)

    def accelerate(self, options: ModelConfig, backend: str = "inductor") -> None:
        """Apply, in place, the options that change speed and not results.

        A network without such options ignores them, as this base does. Names stay the same. The
        network may be on any device: the order in memory moves with it to another, and what is
        compiled is compiled at its first use.

        Args:
            options: `channels_last` and `compile`.
            backend: Of torch's compiler.
        """


def build_network(spec: NetworkSpec, pretrained: bool = True) -> SegmentationModel:
    """Build the network of a description with its first weights.

    Args:
        spec: The description.
        pretrained: As for `SegmentationModel.of`.

    Raises:
        ConfigError: `model._target_` is not a network.
        ModelError: Its `forward` or its options do not fit the config, or its weights are missing.
    """
    kind = locate(spec.model._target_, SegmentationModel, "model._target_")
    _require_forward(kind, spec)
    try:
        inspect.signature(kind).bind(spec, pretrained=pretrained, **spec.model.options)
    except TypeError as error:
        own = [name for name in inspect.signature(kind).parameters if name not in _GIVEN]
        raise ModelError(
            f"model.options: {error}.\n{kind.__name__} takes {', '.join(own) or 'no options'}."
        ) from error
    try:
        network = kind.of(spec, pretrained=pretrained)
    except ValueError as error:
        raise ModelError(
            f"model={spec.model.name} cannot be built: {error}.\nChange model.options or the other "
            "options that it names."
        ) from error
    tolerate_single_values(network)
    return network


def _require_forward(kind: type[SegmentationModel], spec: NetworkSpec) -> None:
    """Refuse a network whose `forward` does not go with what its file says that it reads.

    Raises:
        ModelError: It lacks an argument, or demands one that it would not be given.
    """
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]  # without self
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    wanted = [name for each in spec.model.reads for name in ARGUMENTS[each]]
    lacking = set(wanted) - {p.name for p in by_name}
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
