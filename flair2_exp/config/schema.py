"""The typed config: every option of an experiment, its type and bounds, and rules across groups.

The dataclasses are registered in Hydra's ConfigStore, so that a misspelt key or a value of a wrong
type is refused when the config is composed. What a type cannot say (one of these words, not below
this number) stands in the field's metadata and is checked by `validate`, together with the rules
that hold across groups. Values and rules only: of the package nothing is imported but its errors
and the nomenclature, and nothing heavy.

A class is one node of the config; the group files of `conf/` set its values.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from omegaconf import MISSING

from flair2_exp.errors import ConfigError, nearest
from flair2_exp.nomenclature import AERIAL_BANDS, classes

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _choice(default: str, *words: str) -> Any:
    """A field that holds one of `words`."""
    return field(default=default, metadata={"choices": words})


def _number(default: Any, minimum: float = -math.inf, maximum: float = math.inf) -> Any:
    """A field that holds a number (or a list of numbers) within bounds, both included."""
    bounds = {"minimum": minimum, "maximum": maximum}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=bounds)
    return field(default=default, metadata=bounds)


def _list(*values: Any) -> Any:
    return field(default_factory=lambda: list(values))


VALIDATED: Final = ("val/loss", "val/miou", "val/accuracy")
"""What validation measures, every epoch."""


@dataclass
class DataConfig:
    """Which modalities and classes an experiment reads, and in what batches."""

    name: str = MISSING
    satellite: bool = True
    """Whether the satellite series may be read; the aerial patch always may."""
    bands: list[str] = field(
        default_factory=lambda: list(AERIAL_BANDS), metadata={"choices": AERIAL_BANDS}
    )
    """Aerial bands, in the order in which the network sees them."""
    classes: int = field(default=13, metadata={"choices": (13, 19)})
    batch_size: int = _number(10, 1)
    eval_batch_size: int = _number(10, 1)
    workers: int = _number(2, 0)
    """Processes that read, per device."""


@dataclass
class SampleConfig:
    """How the synthetic data set is made; used by `dataset=sample` alone."""

    seed: int = _number(0, 0)
    patch_size: int = _number(128, 32, 1024)
    """Pixels; a patch always covers 102.4 m, so 128 is 0.8 m a pixel and 512 is 0.2 m."""
    domains: int = _number(8, 6, 40)
    areas_per_domain: int = _number(4, 1, 20)
    patches_per_area: int = _number(4, 1, 100)
    super_patch: int = _number(64, 16, 112)
    """Largest `s2_preproc.size` that fits around every patch; a larger one makes larger files."""


@dataclass
class DatasetConfig:
    """Where a data set's files are."""

    name: str = MISSING
    root: str | None = None
    """The folder that holds the released tree; each part below may stand elsewhere."""
    aerial_train: str | None = None
    aerial_test: str | None = None
    labels_train: str | None = None
    labels_test: str | None = None
    satellite_train: str | None = None
    satellite_test: str | None = None
    centroids: str | None = None
    aerial_metadata: str | None = None
    sample: SampleConfig | None = None
    store: str | None = None
    """A prepared store (`scripts/prepare.py`) to read from instead of the files."""
    on_damaged: str = _choice("stop", "stop", "skip")
    check: str = _choice("headers", "headers", "none")
    """Whether every file's header is looked at before a run; `scripts/check.py` reads all of it."""


@dataclass
class SplitConfig:
    """Which patches train, validate and test."""

    name: str = _choice(MISSING, "official", "reference", "file")
    file: str | None = None
    """For `split=file`: YAML with lists `train`, `validation`, `test` of domains or patch ids."""
    train_fraction: float = _number(0.8, 0.05, 0.95)
    """For `split=reference`: the share of the train/val domains that trains."""
    seed: int = _number(2022, 0)


@dataclass
class S2PreprocConfig:
    """Preprocessing of the satellite series (FLAIR #2 baseline, cloud filter and monthly means)."""

    name: str = MISSING
    cloud_filter: bool = MISSING
    monthly: bool = MISSING
    size: int = _number(40, 16, 112)
    """Pixels (10 m) on a side of the super-patch; a multiple of 8."""
    threshold: int = _number(60, 0, 100)
    """Probability (per cent) from which a pixel counts as snow or cloud."""
    max_cover: float = _number(0.5, 0.0, 2.0)
    """Share of covered pixels from which an acquisition is dropped."""
    cover: str = _choice("union", "union", "sum")
    on_empty: str = _choice("clearest", "clearest", "error")
    scale: str = _choice("reflectance", "reflectance", "reference")
    days: str = _choice("day_of_year", "day_of_year", "reference")
    """How 29 February is read: by day of year, or as 28 February."""


@dataclass
class AugConfig:
    """Augmentation of the training patches."""

    name: str = MISSING
    geometry: str = _choice("none", "none", "flips", "d4")
    probability: float = _number(0.5, 0.0, 1.0)
    """Of each flip and of the quarter turn, for `geometry: flips`."""
    satellite: bool = True
    """Whether series and satellite target follow the aerial patch."""
    brightness: float = _number(0.0, 0.0, 1.0)
    contrast: float = _number(0.0, 0.0, 1.0)
    gamma: float = _number(0.0, 0.0, 1.0)
    noise: float = _number(0.0, 0.0, 0.5)
    zoom: float = _number(0.0, 0.0, 0.5)
    """Largest relative enlargement about the patch's centre."""
    drop_dates: float = _number(0.0, 0.0, 0.9)
    """Share of a series' acquisitions left out at random."""


@dataclass
class MetadataConfig:
    """The aerial patch's metadata (place, date, camera) as a further input."""

    name: str = MISSING
    enabled: bool = MISSING
    month: str = _choice("cyclic", "cyclic", "reference")
    fusion: str = _choice("channels", "channels", "rows")


@dataclass
class ModelConfig:
    """The network; `utae` and `fusion` hold the satellite branch and the way it joins."""

    name: str = _choice(MISSING, "unet", "utae", "utt")
    encoder: str = "resnet34"
    encoder_weights: str | None = "imagenet"
    """`imagenet`, null, or a local file of weights."""
    decoder_channels: list[int] = _number([256, 128, 64, 32, 16], 1)
    weights: str | None = None
    """A released baseline checkpoint, or weights saved by this package, to start from."""
    channels_last: bool = False
    compile: bool = False


@dataclass
class UTAEConfig:
    """U-TAE, the satellite branch (Garnot and Landrieu, 2021)."""

    encoder_widths: list[int] = _number([64, 64, 128, 128], 4)
    decoder_widths: list[int] = _number([64, 64, 128, 128], 4)
    heads: int = _number(16, 1)
    d_model: int = _number(256, 4)
    d_k: int = _number(4, 1)
    aggregation: str = _choice("att_group", "att_group", "att_mean", "mean")
    head_widths: list[int] = _number([32], 1)
    """Widths of the output block between the last map and the classes."""
    normalise_padding: bool = False
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


@dataclass
class FusionConfig:
    """How the satellite map joins the aerial encoder's features (U-T&T)."""

    terms: str = _choice("both", "both", "cropped", "collapsed")
    """What joins: the map under the patch (cropped), its mean over the super-patch (collapsed)."""
    collapsed: str = _choice("each_sample", "each_sample", "first_sample")
    dropout: str = _choice("each_sample", "each_sample", "always_batch")
    dropout_rate: float = _number(0.0, 0.0, 1.0)
    """Probability of leaving the satellite features out (modality dropout)."""
    mlp_dropout: float = _number(0.3, 0.0, 0.9)


@dataclass
class LossConfig:
    """The loss of both heads."""

    name: str = _choice(MISSING, "cross_entropy", "focal", "dice_cross_entropy")
    aerial: float = _number(1.0, 0.0)
    satellite: float = _number(1.0, 0.0)
    class_weights: dict[str, float] = field(default_factory=lambda: {"other": 0.0})
    """Weight by class name; a class not named weighs 1."""
    satellite_class_weights: str = _choice("as_aerial", "as_aerial", "reference")
    label_smoothing: float = _number(0.0, 0.0, 0.5)
    gamma: float = _number(2.0, 0.0, 10.0)
    """Focusing exponent of the focal loss."""


@dataclass
class MetricConfig:
    """The score."""

    other_pixels: str = _choice("drop", "drop", "keep")


@dataclass
class OptimizerConfig:
    """The optimizer: any class of `torch.optim`."""

    _target_: str = MISSING
    """Its dotted path, as `torch.optim.AdamW`."""
    lr: float = _number(MISSING, 0.0)
    weight_decay: float = _number(0.0, 0.0)
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments."""


@dataclass
class SchedulerConfig:
    """The learning rate's course over the epochs."""

    name: str = _choice(MISSING, "none", "cosine", "plateau")
    warmup_epochs: int = _number(0, 0)
    final_factor: float = _number(0.01, 0.0, 1.0)
    """Cosine: the last learning rate over the first."""
    factor: float = _number(0.5, 0.01, 0.99)
    """Plateau: what the learning rate is multiplied with."""
    patience: int = _number(10, 0)
    """Plateau: epochs without a better validation loss before that."""


@dataclass
class TrainerConfig:
    """Where and how long to train."""

    accelerator: str = _choice("auto", "auto", "cpu", "gpu", "cuda", "mps")
    devices: int = _number(1, -1)
    num_nodes: int = _number(1, 1)
    strategy: str = "auto"
    precision: str = _choice("32-true", "32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")
    max_epochs: int = _number(100, 1)
    accumulate_grad_batches: int = _number(1, 1)
    gradient_clip_val: float = _number(0.0, 0.0)
    """Largest norm of the gradients; 0 leaves them alone."""
    deterministic: bool = True
    limit_train_batches: int | None = _number(None, 1)
    limit_val_batches: int | None = _number(None, 1)
    limit_test_batches: int | None = _number(None, 1)
    log_every_n_steps: int = _number(50, 1)
    threads: int | None = _number(None, 1)
    """Processor threads of torch; null leaves torch's choice."""


@dataclass
class CallbacksConfig:
    """Checkpoints, early stopping, progress."""

    name: str = MISSING
    monitor: str = _choice("val/loss", *VALIDATED)
    mode: str = _choice("min", "min", "max")
    patience: int = _number(30, 0)
    """Epochs without a better `monitor` before training stops; 0: never."""
    save_minutes: float = _number(10.0, 0.0)
    """Minutes between two checkpoints within an epoch, beside that at its end; 0: none within."""
    progress: str = _choice("auto", "auto", "always", "never")
    """`auto`: bars on a terminal, one line an epoch elsewhere."""
    panel_patches: int = _number(6, 0, 64)
    """Test patches in the panel of images, truths and predictions."""


@dataclass
class TrackingConfig:
    """Where MLflow keeps the runs; credentials come from the environment, never from here."""

    name: str = MISSING
    enabled: bool = MISSING
    uri: str | None = None
    experiment: str = "flair2"
    run_name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    timeout: float = _number(8.0, 0.1, 600)
    """Seconds that a server may take to answer before the run is refused."""


@dataclass
class SweepConfig:
    """Many runs: what `sweep=...` and `--multirun` do besides running them."""

    name: str = MISSING
    """The sweep's folder below multirun/, and its parent run in MLflow."""
    dry_run: bool = False
    """Show the jobs and stop."""
    fail_fast: bool = False
    """Stop at the first failing job."""
    report: bool = True
    """Write a leaderboard with intervals at the end."""
    baseline: str | None = None
    """The row that others are compared with; null: the first."""
    factors: list[str] | None = None
    """Options of a full factorial whose effects are estimated."""


@dataclass
class TuneConfig:
    """A search for good options: what `tune=...` does; the space stands in `hydra.sweeper`."""

    name: str = "study"
    """The study's name, and what its best is called."""
    n_trials: int = _number(40, 1)
    """Complete and pruned trials of the study in all, whoever runs them and however often."""
    storage: str | None = None
    """A journal's path or a database's URL without a password; null: in the sweep's folder."""
    max_failures: int | None = _number(5, 1)
    """Failed trials that end the search; null: never."""
    on_change: str = _choice("refuse", "refuse", "new_study")
    """`refuse` a study of another search space or direction, or open a `new_study` beside it."""
    repeat_best: int = _number(0, 0)
    """Seeds with which the best and the default are trained and compared in the end; 0: none."""


@dataclass
class PathsConfig:
    """Where results go."""

    root: str = MISSING
    data: str = MISSING
    output: str = MISSING
    mlflow: str = MISSING


@dataclass
class Config:
    """One experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    s2_preproc: S2PreprocConfig = field(default_factory=S2PreprocConfig)
    aug: AugConfig = field(default_factory=AugConfig)
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    utae: UTAEConfig = field(default_factory=UTAEConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    compat: str = _choice(MISSING, "corrected", "reference")
    quirk: str | None = None
    """The quirk of the baseline that `quirk=...` sets right."""
    name: str = "experiment"
    """What the run is called: in its folder, in MLflow, in tables."""
    seed: int = _number(1, 0, 2**32 - 1)
    train: bool = True
    test: bool = True
    checkpoint: str | None = None
    """A checkpoint of this package: training goes on from it, or it is tested (`train=false`)."""
    objective: Any = "val/miou"
    """The metric (or list of metrics) that the run returns to a sweeper."""


# --- what types cannot say ----------------------------------------------------------------------

SATELLITE_MODELS: Final = ("utae", "utt")
"""Models that read the satellite series."""

AERIAL_MODELS: Final = ("unet", "utt")
"""Models that read the aerial patch."""


def reads_satellite(config: Config) -> bool:
    """Whether the experiment reads satellite series: what no model needs is not read."""
    return config.data.satellite and config.model.name in SATELLITE_MODELS


def reads_aerial(config: Config) -> bool:
    """Whether the experiment reads aerial images."""
    return config.model.name in AERIAL_MODELS


def option_names(node: type = Config, prefix: str = "") -> Iterator[str]:
    """Dotted names of every option of the schema, nodes left out."""
    for item in dataclasses.fields(node):
        kind = _node_types(node).get(item.name)
        if kind is not None:
            yield from option_names(kind, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def _node_types(node: type) -> dict[str, type]:
    """The fields of a node that are nodes themselves, with their classes."""
    found: dict[str, type] = {}
    for item in dataclasses.fields(node):
        name = str(item.type).removesuffix(" | None")
        kind = globals().get(name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found[item.name] = kind
    return found


def typed(config: DictConfig) -> Config:
    """The composed config as checked dataclasses, every interpolation resolved, paths absolute.

    Raises:
        ConfigError: A value is missing, out of bounds, or in conflict with another.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    config = copy.deepcopy(config)
    try:
        _require_plain_paths(config.paths)
        # Everything that a run writes interpolates this one; a relative one could not be traced.
        config.paths.root = os.path.abspath(config.paths.root)
        result = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        key = min(OmegaConf.missing_keys(config))
        raise ConfigError(
            f"{key} has no value: choose an option of its group, or set it."
        ) from error
    if not isinstance(result, Config):
        raise TypeError(f"expected a config composed on the schema, got {type(result).__name__}")
    validate(result)
    return result


def _require_plain_paths(paths: DictConfig) -> None:
    """Refuse what Hydra, which names the run's folder before anything is typed, reads otherwise."""
    for name in (item.name for item in dataclasses.fields(PathsConfig)):
        path = str(paths[name])
        if not path:
            said = " (FLAIR2_EXP_ROOT is set and empty)" if "FLAIR2_EXP_ROOT" in os.environ else ""
            raise ConfigError(f"paths.{name} is empty{said}: expected a folder, as `.`.")
        if path.startswith("~"):
            full = os.path.expanduser(path)
            raise ConfigError(f"paths.{name}={path}: ~ is not expanded here; write {full}.")


def validate(config: Config) -> None:
    """Check every value's bounds and the rules across groups.

    Raises:
        ConfigError: The first thing wrong: the value, what was expected, the fix.
    """
    _check_bounds(config, "")
    for rule in _RULES:
        rule(config)


def _check_bounds(node: Any, prefix: str) -> None:
    known = [item.name for item in dataclasses.fields(node)]
    for added in vars(node).keys() - set(known):  # with `+`, which the types let through
        raise ConfigError(f"{prefix}{added}: no such option; {nearest(added, known)}")
    for item in dataclasses.fields(node):
        name, value = f"{prefix}{item.name}", getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            _check_bounds(value, f"{name}.")
            continue
        if value is None:
            continue
        for each in value if isinstance(value, list) else [value]:
            _check_value(name, each, item.metadata)


def _check_value(name: str, value: Any, metadata: Any) -> None:
    choices = metadata.get("choices")
    if choices is not None and value not in choices:
        raise ConfigError(f"{name}={value}: expected one of {', '.join(map(str, choices))}.")
    if "minimum" in metadata:
        low, high = metadata["minimum"], metadata["maximum"]
        if not (low <= value <= high and math.isfinite(value)):  # NaN fails this as well
            bounds = f"{low:.10g} to {high:.10g}" if high < math.inf else f"at least {low:.10g}"
            finite = ", and finite" if value == math.inf == high else ""
            raise ConfigError(f"{name}={value}: expected {bounds}{finite}.")


def _names_are_folders(config: Config) -> None:
    names = {"name": config.name, "sweep.name": config.sweep.name, "tune.name": config.tune.name}
    for option, name in names.items():
        path = Path(name)
        if not name.strip() or path.is_absolute() or ".." in path.parts or path == Path():
            raise ConfigError(f"{option}={name!r}: expected the name of a folder for its results.")


def _model_has_its_modalities(config: Config) -> None:
    if config.model.name in SATELLITE_MODELS and not config.data.satellite:
        raise ConfigError(
            f"model={config.model.name} needs the satellite series, which data={config.data.name} "
            "does not read: use data=aerial_s2, or model=unet."
        )


def _super_patch_fits_utae(config: Config) -> None:
    if config.s2_preproc.size % 8:
        size = config.s2_preproc.size
        lower = max(16, size // 8 * 8)
        raise ConfigError(
            f"s2_preproc.size={size}: U-TAE halves the super-patch three times, so it must be a "
            f"multiple of 8 from 16 to 112; use {lower} or {min(112, lower + 8)}."
        )


def _super_patch_fits_sample(config: Config) -> None:
    size, sample = config.s2_preproc.size, config.dataset.sample
    if sample is not None and reads_satellite(config) and size > sample.super_patch:
        raise ConfigError(
            f"s2_preproc.size={size} is larger than dataset.sample.super_patch={sample.super_patch}"
            f", what fits around each patch of the sample: use dataset.sample.super_patch={size}."
        )


def _heads_divide_widths(config: Config) -> None:
    if config.model.name not in SATELLITE_MODELS:
        return
    utae = config.utae
    widths = {
        "utae.d_model": utae.d_model,
        "the last of utae.encoder_widths": utae.encoder_widths[-1] if utae.encoder_widths else 0,
        "the last of utae.decoder_widths": utae.decoder_widths[-1] if utae.decoder_widths else 0,
    }
    for name, width in widths.items():
        if width == 0 or width % utae.heads:
            raise ConfigError(
                f"utae.heads={utae.heads} does not divide {name} ({width}): every head takes an "
                "equal share of the channels."
            )
    if len(utae.encoder_widths) != 4 or len(utae.decoder_widths) != 4:
        raise ConfigError(
            "utae.encoder_widths and utae.decoder_widths hold four widths each, full resolution "
            f"first; these hold {len(utae.encoder_widths)} and {len(utae.decoder_widths)}."
        )
    if utae.encoder_widths[-1] != utae.decoder_widths[-1]:
        raise ConfigError(
            f"utae.encoder_widths ends in {utae.encoder_widths[-1]} and utae.decoder_widths in "
            f"{utae.decoder_widths[-1]}: the deepest map is the same, so they must agree."
        )


def _decoder_has_five_stages(config: Config) -> None:
    if config.model.name in AERIAL_MODELS and len(config.model.decoder_channels) != 5:
        raise ConfigError(
            f"model.decoder_channels={config.model.decoder_channels}: expected five widths, "
            "deepest first, one for each halving of the encoder."
        )


def _bands_are_distinct(config: Config) -> None:
    bands = config.data.bands
    if not 3 <= len(bands) <= 5 or len(set(bands)) != len(bands):
        raise ConfigError(
            f"data.bands={bands}: expected 3 to 5 different bands of {', '.join(AERIAL_BANDS)}."
        )


def _metadata_has_a_place(config: Config) -> None:
    if config.metadata.enabled and config.model.name not in AERIAL_MODELS:
        raise ConfigError(
            f"metadata=on joins the aerial encoder, which model={config.model.name} does not "
            "have: use metadata=off, or model=unet or utt."
        )


def _split_file_is_named(config: Config) -> None:
    if config.split.name == "file" and not config.split.file:
        raise ConfigError(
            "split=file needs split.file=PATH, a YAML file with lists train, validation and test "
            "of domains or patch ids."
        )


def _something_is_done(config: Config) -> None:
    if not config.train and not config.test:
        raise ConfigError("train=false test=false leaves nothing to do: drop one of them.")
    if not config.train and not (config.checkpoint or config.model.weights):
        raise ConfigError(
            "train=false tests a trained model: name it with checkpoint=PATH (a checkpoint of this "
            "package) or model.weights=PATH (released weights)."
        )


def _objective_is_measured(config: Config) -> None:
    names = config.objective if isinstance(config.objective, list) else [config.objective]
    if not names:
        raise ConfigError("objective=[] names no metric: use objective=val/miou.")
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"objective={name}: expected the name of a metric, as val/miou.")
        if name.startswith("test/"):
            raise ConfigError(
                f"objective={name}: choosing by the test set would leak it into the model; use a "
                "validation metric, as val/miou."
            )
        if name.startswith("val/") and name not in VALIDATED:
            raise ConfigError(f"objective={name} is never logged; {nearest(name, [*VALIDATED])}")


def _checkpoints_are_the_best(config: Config) -> None:
    monitor = config.callbacks.monitor
    best, words = ("max", "higher") if best_direction(monitor) == "maximize" else ("min", "lower")
    if config.callbacks.mode != best:
        raise ConfigError(
            f"callbacks.mode={config.callbacks.mode} would keep the worst checkpoint: {monitor} is "
            f"the better the {words}; use callbacks.mode={best}."
        )


def _uri_holds_no_credentials(config: Config) -> None:
    if "@" in (config.tracking.uri or "").partition("://")[2].partition("/")[0]:
        raise ConfigError(
            "tracking.uri holds credentials, which would be kept with every run: put them into "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )


def _tracking_has_its_names(config: Config) -> None:
    tracking = config.tracking
    if tracking.enabled and not tracking.experiment.strip():
        raise ConfigError("tracking.experiment is empty: expected the name of an experiment.")
    if tracking.enabled and tracking.name == "server" and not tracking.uri:
        raise ConfigError(
            "tracking=server needs tracking.uri=http://HOST:PORT, or MLFLOW_TRACKING_URI."
        )


def _dataset_has_a_root(config: Config) -> None:
    dataset = config.dataset
    parts = (dataset.aerial_train, dataset.labels_train, dataset.aerial_test)
    if dataset.root is None and not any(parts):
        raise ConfigError(
            f"dataset={dataset.name} needs its place: dataset.root=/path/to/the/released/tree."
        )


def _class_weights_name_classes(config: Config) -> None:
    names = [each.name for each in classes(config.data.classes)]
    for name, weight in config.loss.class_weights.items():
        if name not in names:
            raise ConfigError(f"loss.class_weights: no class {name!r}; {nearest(name, names)}")
        if not weight >= 0 or weight == math.inf:
            raise ConfigError(f"loss.class_weights.{name}={weight}: expected a number from 0 up.")


_RULES: Final[tuple[Callable[[Config], None], ...]] = (
    _names_are_folders,
    _model_has_its_modalities,
    _super_patch_fits_utae,
    _super_patch_fits_sample,
    _heads_divide_widths,
    _decoder_has_five_stages,
    _bands_are_distinct,
    _metadata_has_a_place,
    _split_file_is_named,
    _something_is_done,
    _objective_is_measured,
    _checkpoints_are_the_best,
    _dataset_has_a_root,
    _tracking_has_its_names,
    _uri_holds_no_credentials,
    _class_weights_name_classes,
)


def best_direction(objective: Any) -> str | list[str]:
    """Whether more or less of a metric is better: scores are maximised, all else minimised.

    Args:
        objective: A metric's name, or a list of names.
    """
    if not isinstance(objective, str):
        return [str(best_direction(str(each))) for each in objective]
    scores = ("miou", "iou", "accuracy")
    return "maximize" if set(objective.split("/")) & set(scores) else "minimize"


def widths_around(widths: Any) -> str:
    """A search over U-TAE's widths: the first two halved, as they are, and doubled.

    Args:
        widths: Full resolution first. None is halved below 16, so that up to 16 heads divide it.

    Returns:
        A `choice(...)` of Hydra's grammar.
    """
    fine, deep = [int(each) for each in widths[:2]], [int(each) for each in widths[2:]]
    halved = [max(min(16, each), each // 2) for each in fine]
    options = [[*first, *deep] for first in (halved, fine, [each * 2 for each in fine])]
    texts = dict.fromkeys(str(each).replace(" ", "") for each in options)
    return f"choice({','.join(texts)})"


def config_folder() -> Path:
    """The folder of the config groups: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "conf"
    return beside if (beside / "config.yaml").is_file() else package / "conf"


def register() -> None:
    """Make the schema known to Hydra: conf/config.yaml begins with `schema`, and is checked."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("best_direction", best_direction, replace=True)
    OmegaConf.register_new_resolver("widths_around", widths_around, replace=True)
