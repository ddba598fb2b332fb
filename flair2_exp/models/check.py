"""Does a network keep the contract? Quick checks on random batches, on the processor.

    findings = check_network(MyNet, reads=("aerial",), options={"width": 8}, patch_size=64)
    require_sound(findings)                         # in a test of one's own

`flair2-exp check-model model=my_net` prints the same as a table. No data and no first weights from
elsewhere are read.
"""

from __future__ import annotations

import copy
import io
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flair2_exp.compat import counting_memory
from flair2_exp.config.data import MetadataConfig
from flair2_exp.config.model import ModelConfig
from flair2_exp.errors import FlairError, ModelError, some
from flair2_exp.models.registry import NetworkSpec, build_network, by_head, count_parameters
from flair2_exp.nomenclature import METADATA_VALUES, SATELLITE_BANDS

DATES: Final = 12
"""Acquisitions of a series: those of monthly means."""

SHORTER: Final = 7
"""Acquisitions of a batch's shorter series; the others are padding."""

FURTHER: Final = 5
"""Padded dates that must not change a result."""

TOLERANCE: Final = 1e-4
"""Largest difference of equal results, as a share of the largest logit. Rounding moves U-T&T's by
1e-5 where the batch or the number of threads is another."""

_SEEDS: Final = 8
"""Evaluations that must be equal: what is left out at random may not be in one of two."""

_ROUNDS: Final = 3
"""Times that a step is timed; the quickest counts."""

_LISTED: Final = 5
"""Parameters that are named; the rest are counted."""

_PRECISIONS: Final[Mapping[str, tuple[torch.dtype, bool]]] = {
    "bf16-mixed": (torch.bfloat16, True),
    "16-mixed": (torch.float16, True),
    "bf16-true": (torch.bfloat16, False),
    "64-true": (torch.float64, False),
}
"""By Lightning's name: the type, and whether only some operations have it."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: Its name.
        outcome: `note` is neither good nor bad.
        text: What was found, in a sentence or with figures.
        fix: What to do; empty where nothing is to be done.
    """

    check: str
    outcome: Literal["passed", "failed", "note"]
    text: str
    fix: str = ""


class _Failed(Exception):
    """A check that fails, with what was found and what to do."""

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.text, self.fix = text, fix


def spec_of(
    kind: type[nn.Module],
    *,
    reads: Sequence[str] = ("aerial",),
    options: Mapping[str, Any] | None = None,
    **sizes: Any,
) -> NetworkSpec:
    """Return the description of a network from its class, without a file of conf/model.

    Args:
        kind: A class that can be imported.
        reads: Of `aerial`, `satellite`, `metadata`.
        options: Of its constructor.
        sizes: Fields of `NetworkSpec`: `bands`, `classes`, `patch_size`, `series_size`.
    """
    model = ModelConfig(
        name=kind.__name__,
        _target_=f"{kind.__module__}.{kind.__qualname__}",
        reads=tuple(reads),  # type: ignore[arg-type]
        options=dict(options or {}),
        encoder_weights=None,
    )
    return NetworkSpec(model=model, metadata=MetadataConfig(enabled="metadata" in reads), **sizes)


def check_network(
    network: NetworkSpec | type[nn.Module],
    *,
    precision: str = "32-true",
    compare: bool = True,
    **description: Any,
) -> list[Finding]:
    """Check that a network builds, learns, and keeps the contract.

    Args:
        network: Its description, or its class.
        precision: Lightning's name of a precision that it is checked in as well.
        compare: Whether its time and memory are set beside those of U-T&T on the same inputs.
        description: For a class, the arguments of `spec_of`.

    Returns:
        A finding for each check; what depends on a check that failed is left out.
    """
    spec = network if isinstance(network, NetworkSpec) else spec_of(network, **description)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(_Inspection(spec, precision, compare).findings())


def require_sound(findings: Sequence[Finding]) -> None:
    """Refuse a network that failed a check.

    Raises:
        ModelError: One failed; the message lists them.
    """
    failed = [each for each in findings if each.outcome == "failed"]
    if failed:
        lines = [f"{each.check}: {each.text} {each.fix}".rstrip() for each in failed]
        raise ModelError("the network does not keep the contract.\n" + "\n".join(lines))


@dataclass
class _Inspection:
    """The checks of one network, each a method that returns what it found or raises."""

    spec: NetworkSpec
    precision: str
    compare: bool
    network: nn.Module = field(default_factory=nn.Identity)

    def findings(self) -> Iterator[Finding]:
        """Yield a finding per check."""
        yield self._finding("plain options", self._plain)
        for name, needed in (
            ("builds", self._builds),
            ("forward and shapes", self._forward),
            ("gradients", self._gradients),
        ):
            finding = self._finding(name, needed)
            yield finding
            if finding.outcome == "failed" and name != "gradients":
                return
        yield from self._idle()
        if self.precision in _PRECISIONS:
            yield self._finding(f"precision {self.precision}", self._other_precision)
        deterministic = self._finding("deterministic", self._deterministic)
        yield deterministic
        if deterministic.outcome == "passed":
            yield self._finding("independent samples", self._independent)
            if "satellite" in self.spec.reads:
                yield self._finding("independent of padding", self._padding)
            yield self._finding("checkpoint", self._checkpoint)
        yield from self._cost()

    def _finding(self, name: str, check: Callable[[], str]) -> Finding:
        try:
            return Finding(name, "passed", check())
        except _Failed as error:
            return Finding(name, "failed", error.text, error.fix)
        except FlairError as error:
            text, _, fix = str(error).partition("\n")
            return Finding(name, "failed", text, fix)
        except Exception as error:  # the network's own, of any kind
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return Finding(name, "failed", f"{text}{_place(error)}.", "Correct the network.")

    def _plain(self) -> str:
        name = _not_plain("network", self.spec.plain())
        if name:
            raise _Failed(
                f"{name}, which a checkpoint that is loaded safely cannot hold.",
                "Use numbers, strings, lists and dictionaries as options.",
            )
        return "options are numbers, strings, lists and dictionaries of them"

    def _builds(self) -> str:
        self.network = build_network(self.spec, pretrained=False)
        if not count_parameters(self.network):
            raise _Failed("it has no parameters.", "Keep layers as attributes or in a ModuleList.")
        return f"{count_parameters(self.network):,} parameters"

    def _forward(self) -> str:
        shapes: list[str] = []
        for size in (1, 2):
            for training in (True, False):
                self.network.train(training)
                with torch.no_grad():
                    logits = self._logits(self._inputs(size))
                for head, each in logits.items():
                    if not each.isfinite().all():
                        raise _Failed(
                            f"the {head} logits hold NaN or infinity on random inputs.",
                            "Look for a division by zero, a logarithm or a root of zero.",
                        )
            shapes = [f"{head} {tuple(each.shape)}" for head, each in logits.items()]
        return f"batches of 1 and 2; {', '.join(shapes)}"

    def _gradients(self) -> str:
        for size in (1, 2):
            self._step(self.network, self._inputs(size), keep=size > 1)
            bad = [
                name
                for name, each in self.network.named_parameters()
                if each.grad is not None and not each.grad.isfinite().all()
            ]
            if bad:
                raise _Failed(
                    f"NaN or infinite gradients in a batch of {size}: {some(bad, _LISTED)}.",
                    "Look for roots, norms or logarithms at zero, and for 0/0.",
                )
        names = [n for n, each in self.network.named_parameters() if each.grad is not None]
        if not names:
            raise _Failed(
                "no parameter gets a gradient.", "Look for detach(), no_grad() or argmax()."
            )
        return f"finite, of {len(names)} parameters, in batches of 1 and 2"

    def _idle(self) -> Iterator[Finding]:
        """Say which parameters are trained and got no gradient."""
        parameters = [*self.network.named_parameters()]
        idle = [n for n, each in parameters if each.requires_grad and each.grad is None]
        if idle and len(idle) < len(parameters):
            yield Finding(
                "without gradient",
                "note",
                f"{len(idle)} parameters are never used: {some(idle, _LISTED)}.",
                "Remove them or freeze them (requires_grad_(False)): training on several devices "
                "waits for their gradients.",
            )

    def _other_precision(self) -> str:
        kind, mixed = _PRECISIONS[self.precision]
        network = copy.deepcopy(self.network)
        inputs = self._inputs(2)
        if not mixed:
            network.to(kind)
            inputs = {n: x.to(kind) if x.is_floating_point() else x for n, x in inputs.items()}
        with torch.autocast("cpu", kind, enabled=mixed):
            loss = self._step(network, inputs)
        gradients = [x.grad for x in network.parameters() if x.grad is not None]
        # Half precision needs a scaled loss, which training has and this check has not.
        finite = kind == torch.float16 or all(bool(each.isfinite().all()) for each in gradients)
        if not loss.isfinite() or not finite:
            raise _Failed(
                "loss or gradients are NaN or infinite.",
                "Compute what overflows in float32, or use trainer.precision=32-true.",
            )
        return "forward and backward are finite"

    def _deterministic(self) -> str:
        inputs = self._inputs(1)
        first = self._evaluated(inputs, seed=0)
        seeds = range(1, _SEEDS)
        change = max(_change(first, self._evaluated(inputs, seed=seed)) for seed in seeds)
        if change > 0:
            raise _Failed(
                f"evaluations of one patch differ by {change:.1e} of the largest logit.",
                "Draw random numbers only where self.training is True.",
            )
        return f"{_SEEDS} evaluations of one patch are equal"

    def _independent(self) -> str:
        """Compare a sample's logits beside other neighbours, before and behind it, and alone."""
        one, other = self._inputs(1), self._inputs(1)
        bright = {n: torch.ones_like(x) if x.is_floating_point() else x for n, x in other.items()}
        worst = 0.0
        for place in (0, 1):
            pairs = [_batched((one, n) if place == 0 else (n, one)) for n in (other, bright)]
            first, second = (_at(self._evaluated(each), place) for each in pairs)
            worst = max(worst, _change(first, second))
        worst = max(worst, _change(first, self._evaluated(one)))
        if worst > TOLERANCE:
            raise _Failed(
                f"in evaluation a sample's logits change by {worst:.1e} of the largest with the "
                "others of its batch.",
                "Keep the first axis apart: no mean, norm or reshape over it.",
            )
        return f"neighbours move logits by at most {worst:.0e} of the largest"

    def _padding(self) -> str:
        inputs = self._inputs(2, lengths=(DATES, SHORTER))
        further = {
            "series": (0, 0, 0, 0, 0, 0, 0, FURTHER),
            "days": (0, FURTHER),
        }
        longer = inputs | {n: functional.pad(inputs[n], by) for n, by in further.items()}
        longer["padding"] = functional.pad(inputs["padding"], (0, FURTHER), value=True)
        change = _change(self._evaluated(inputs), self._evaluated(longer))
        if change > TOLERANCE:
            raise _Failed(
                f"{FURTHER} more padded dates change the logits by {change:.1e} of the largest.",
                "Leave out dates where padding is True in means, norms and attention.",
            )
        return f"{FURTHER} more padded dates move logits by at most {change:.0e} of the largest"

    def _checkpoint(self) -> str:
        """Write weights and options, read them safely, build the network anew, compare."""
        file = io.BytesIO()
        content = {"state_dict": self.network.state_dict(), "network": self.spec.plain()}
        torch.save(content, file)
        file.seek(0)
        try:
            read = torch.load(file, weights_only=True)
        except pickle.UnpicklingError:
            raise _Failed(
                "its state_dict or options hold more than tensors and plain values.",
                "Return only tensors from state_dict and get_extra_state.",
            ) from None
        torch.manual_seed(99)
        again = build_network(NetworkSpec.of_plain(read["network"]), pretrained=False)
        again.load_state_dict(read["state_dict"])
        inputs = self._inputs(2)
        change = _change(self._evaluated(inputs), self._evaluated(inputs, network=again))
        if change > TOLERANCE:
            raise _Failed(
                f"rebuilt from its checkpoint, its logits differ by {change:.1e} of the largest.",
                "Keep what is drawn or computed in __init__ as parameters or persistent buffers.",
            )
        return "rebuilt from a file read with weights_only=True; the same logits"

    def _cost(self) -> Iterator[Finding]:
        """Set parameters, time and memory beside those of U-T&T, of the published sizes."""
        inspected, reason = {"": self}, ""
        if self.compare:
            try:
                spec = _utt_like(self.spec)
                network = build_network(spec, pretrained=False)
                inspected["U-T&T"] = _Inspection(spec, self.precision, False, network)
                inspected["U-T&T"]._forward()
            except Exception:  # the sizes do not suit it
                inspected.pop("U-T&T", None)
                reason = "; U-T&T does not take these inputs"
        seconds: dict[str, list[float]] = {name: [] for name in inspected}
        for _ in range(_ROUNDS):  # taking turns: other work on the machine hits both
            for name, each in inspected.items():
                inputs = each._inputs(2)
                start = time.perf_counter()
                each._step(each.network, inputs)
                seconds[name].append((time.perf_counter() - start) / 2)
        costs = {
            name: {
                "parameters": count_parameters(each.network) / 1e6,
                "time": min(seconds[name]),
                "memory": each._peak() / 1e6,
            }
            for name, each in inspected.items()
        }
        own, utt = costs[""], costs.get("U-T&T")
        for name, what in _COSTS.items():
            beside = reason
            if utt is not None:
                beside = f"; U-T&T {utt[name]:.3g}, {own[name] / utt[name]:.2g} of it"
            yield Finding(name, "note", f"{own[name]:.3g} {what}{beside}")

    def _peak(self) -> int:
        """Return the most bytes that tensors take in a step on a batch of two, weights included."""
        self.network.zero_grad(set_to_none=True)
        held = sum(each.nbytes for each in self.network.parameters())
        held += sum(each.nbytes for each in self.network.buffers())
        inputs = self._inputs(2)
        held += sum(each.nbytes for each in inputs.values())
        with counting_memory() as peak:
            self._step(self.network, inputs)
        return held + peak()

    def _inputs(self, size: int, lengths: Sequence[int] = ()) -> dict[str, Tensor]:
        """Return a random batch of what the network reads, series of these lengths (all whole)."""
        spec, dates = self.spec, DATES
        padding = torch.arange(dates) >= torch.tensor(lengths or [dates] * size)[:, None]
        side = spec.series_size
        series = torch.rand(size, dates, len(SATELLITE_BANDS), side, side)
        days = torch.linspace(-170, 170, dates).round().long().expand(size, dates)
        inputs = {
            "image": torch.rand(size, spec.bands, spec.patch_size, spec.patch_size),
            "series": series.masked_fill(padding[:, :, None, None, None], 0),
            "days": days.masked_fill(padding, 0),
            "padding": padding,
            "metadata": torch.rand(size, METADATA_VALUES),
        }
        return {name: inputs[name] for name in spec.arguments}

    def _logits(
        self, inputs: Mapping[str, Tensor], network: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """Return the logits by head, their shapes checked."""
        network = self.network if network is None else network
        count = len(next(iter(inputs.values())))
        size = (count, self.spec.patch_size, self.spec.patch_size)
        return by_head(network, network(**inputs), self.spec, size)

    def _evaluated(
        self, inputs: Mapping[str, Tensor], *, seed: int = 1, network: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """Return logits in evaluation, with random numbers of a seed."""
        network = self.network if network is None else network
        network.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {n: each.clone() for n, each in self._logits(inputs, network).items()}

    def _step(
        self, network: nn.Module, inputs: Mapping[str, Tensor], *, keep: bool = False
    ) -> Tensor:
        """Do forward and backward in training mode; return the loss.

        Args:
            network: Gets the gradients.
            inputs: A batch.
            keep: Whether gradients are added to those of the step before.
        """
        network.train()
        if not keep:
            network.zero_grad(set_to_none=True)
        logits = self._logits(inputs, network)
        shape = next(iter(logits.values())).shape
        label = torch.randint(0, shape[1], (shape[0], *shape[2:]))
        costs = [functional.cross_entropy(each.float(), label) for each in logits.values()]
        loss = torch.stack(costs).sum()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


_COSTS: Final[Mapping[str, str]] = {
    "parameters": "M",
    "time": "s per patch, forward and backward on this processor",
    "memory": "MB of tensors at most, forward and backward of two patches",
}


def _utt_like(spec: NetworkSpec) -> NetworkSpec:
    """Return U-T&T's description, of the published sizes, for the same inputs."""
    model = ModelConfig(
        name="utt",
        _target_="flair2_exp.models.utt.UTT",
        reads=("aerial", "satellite", "metadata"),
        nodes=("utae", "fusion"),
        encoder_weights=None,
    )
    return NetworkSpec(
        model=model,
        bands=spec.bands,
        classes=spec.classes,
        patch_size=spec.patch_size,
        series_size=spec.series_size,
    )


def _not_plain(name: str, value: Any) -> str:
    """Return what of a value is not plain, as `network.model.options.x is a Path`; else nothing."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        plain = value is None or type(value) in (bool, int, float, str)
        return "" if plain else f"{name} is a {type(value).__name__}"
    return next(filter(None, (_not_plain(f"{name}.{key}", each) for key, each in items)), "")


def _batched(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([each[name] for each in samples]) for name in samples[0]}


def _at(logits: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    return {head: each[[place]] for head, each in logits.items()}


def _change(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest difference of logits, as a share of the largest logit of their head."""
    shares = [
        (each - other[head]).abs().max() / each.abs().max().clamp_min(1e-12)
        for head, each in one.items()
    ]
    return float(torch.stack(shares).nan_to_num(nan=float("inf")).max())


def _place(error: BaseException) -> str:
    """Return where the network raised an error: its last line outside of libraries and of us."""
    package = str(Path(__file__).parents[1])
    frames = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in each.filename and not each.filename.startswith((package, "<"))
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
