"""One experiment: all groups together, and the rules that hold across them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from flair2_exp.config.data import DataGroups
from flair2_exp.config.fields import Group, option, require_usable
from flair2_exp.config.model import AUTO, FusionConfig, ModelConfig, UTAEConfig
from flair2_exp.config.relevance import if_seeded
from flair2_exp.config.sweep import SweepConfig, TuneConfig
from flair2_exp.config.tracking import PathsConfig, TrackingConfig
from flair2_exp.config.training import (
    VALIDATED,
    CallbacksConfig,
    LossConfig,
    MetricConfig,
    OptimizerConfig,
    SchedulerConfig,
    TestTimeConfig,
    TrainerConfig,
)
from flair2_exp.errors import ConfigError, nearest
from flair2_exp.nomenclature import AERIAL_BANDS, OTHER, Nomenclature, flair


@dataclass(frozen=True, kw_only=True)
class Config(DataGroups, Group):
    """One experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    utae: UTAEConfig = field(default_factory=UTAEConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    test_time: TestTimeConfig = field(default_factory=TestTimeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    compat: Literal["corrected", "reference"] = option("corrected", chosen=True, decides=False)
    """Whether the quirks of the published code are corrected, or all as published."""
    quirk: str | None = option(None, decides=False)
    """The quirk of the baseline that `quirk=...` corrects."""
    name: str = option("experiment", decides=False)
    """What the run is called: in its folder, in MLflow, in tables."""
    seed: int = option(1, 0, 2**32 - 1, decides=if_seeded)
    """Seeds the first weights, the order of the patches, augmentation and dropout."""
    train: bool = True
    """Whether to train, rather than to test a trained model."""
    test: bool = option(True, decides=False)
    """Whether to test the best checkpoint."""
    checkpoint: str | None = option(None, path=True)
    """A checkpoint of this package: training continues from it, or it is tested (`train=false`)."""
    objective: Any = option("val/miou", decides=False)
    """The metric (or list of metrics) that the run returns to a sweeper."""

    def __post_init__(self) -> None:
        """Replace `model.encoder_weights=auto`, name FLAIR #2's bands; then check all groups.

        A run so records which weights it starts from and which bands it reads.

        Raises:
            ConfigError: As `Group`.
        """
        if self.model.encoder_weights == AUTO:
            weights = None if self.is_synthetic else "imagenet"
            object.__setattr__(self, "model", replace(self.model, encoder_weights=weights))
        if self.dataset.is_flair and self.data.bands is None:
            object.__setattr__(self, "data", replace(self.data, bands=AERIAL_BANDS))
        super().__post_init__()

    def validate(self) -> None:
        """Refuse groups that do not go together."""
        for rule in _RULES:
            rule(self)

    @property
    def data_groups(self) -> DataGroups:
        """What the data room receives."""
        return DataGroups(**{each.name: getattr(self, each.name) for each in fields(DataGroups)})

    @property
    def reads(self) -> frozenset[str]:
        """The inputs that the experiment reads: `aerial`, `satellite`, `metadata`."""
        wanted = {*self.model.reads} - (set() if self.metadata.enabled else {"metadata"})
        return frozenset(wanted)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the split that the experiment reads, none of which may be empty."""
        return (
            *(("train",) if self.train else ()),
            "validation",
            *(("test",) if self.test else ()),
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metrics that the run returns."""
        names = self.objective if isinstance(self.objective, list) else [self.objective]
        return tuple(names)

    @property
    def validated(self) -> tuple[str, ...]:
        """The metrics that validation measures, every epoch."""
        return (*VALIDATED, *(f"val/{name}" for name in self.metric.further.parts))

    @property
    def is_synthetic(self) -> bool:
        """Whether scores are those of the synthetic sample, and are to be called that."""
        return self.dataset.sample is not None

    @property
    def metric_setting(self) -> str:
        """How the score is computed; scores of different settings are never compared."""
        classes = f"{self.data.classes} classes" if self.dataset.is_flair else "own classes"
        return f"{classes}, other pixels {self.metric.other_pixels}"


def _names_are_folders(config: Config) -> None:
    names = {"name": config.name, "tune.name": config.tune.name, "sweep.name": config.sweep.name}
    for key, name in names.items():
        path = Path(name)
        if not name.strip() or path.is_absolute() or ".." in path.parts or path == Path():
            raise ConfigError(f"{key}={name!r}: expected the name of a folder for its results.")
        if name != name.strip():
            raise ConfigError(f"{key}={name!r}: blanks at its ends; write {key}='{name.strip()}'.")
        require_usable(key, name, look=False)


def _model_has_its_modalities(config: Config) -> None:
    if "satellite" in config.model.reads and not config.data.satellite:
        raise ConfigError(
            f"model={config.model.name} needs the satellite series, which data={config.data.name} "
            "does not read: use data=aerial_s2, or model=unet."
        )


def _super_patch_fits_sample(config: Config) -> None:
    size, sample = config.s2_preproc.size, config.dataset.sample
    if sample is not None and "satellite" in config.reads and size > sample.super_patch:
        raise ConfigError(
            f"s2_preproc.size={size} is larger than dataset.sample.super_patch={sample.super_patch}"
            f", what fits around each patch of the sample: use dataset.sample.super_patch={size}."
        )


def _patches_fit_the_encoder(config: Config) -> None:
    sample = config.dataset.sample
    if sample is not None:
        require_patch_size(config, sample.patch_size)


def require_patch_size(config: Config, patch_size: int) -> None:
    """Refuse patches of a size that the network does not take.

    Args:
        config: The experiment's.
        patch_size: Pixels on a side; known from the sample's options, else from the files.

    Raises:
        ConfigError: The network reads the aerial patch, and the size is not a multiple of
            `model.patch_step`.
    """
    step = config.model.patch_step
    if "aerial" in config.reads and patch_size % step:
        lower = max(step, patch_size // step * step)
        sizes = f"dataset.sample.patch_size={lower} or {lower + step}"
        fix = f" For the sample: {sizes}." if config.dataset.is_flair else ""
        raise ConfigError(
            f"patches of {patch_size} px: model={config.model.name} takes multiples of {step}, "
            f"since its encoder halves them.{fix}"
        )


def _metadata_has_a_place(config: Config) -> None:
    if config.metadata.enabled and "metadata" not in config.model.reads:
        raise ConfigError(
            f"metadata=on: model={config.model.name} does not read them; use metadata=off, or "
            "model=unet or utt."
        )


def _nodes_are_groups(config: Config) -> None:
    for name in config.model.nodes:
        if not isinstance(getattr(config, name, None), Group):
            raise ConfigError(f"model.nodes: {name} is not a group of the config.")


def _something_is_done(config: Config) -> None:
    if not config.train and not config.test:
        raise ConfigError("train=false test=false leaves nothing to do: drop one of them.")
    if not config.train and not (config.checkpoint or config.model.weights):
        raise ConfigError(
            "train=false tests a trained model: name it with checkpoint=PATH (a checkpoint of this "
            "package) or model.weights=PATH (released weights)."
        )


def _objective_is_measured(config: Config) -> None:
    if not config.objectives:
        raise ConfigError("objective=[] names no metric: use objective=val/miou.")
    for name in config.objectives:
        if not isinstance(name, str):
            raise ConfigError(f"objective={name}: expected the name of a metric, as val/miou.")
        if name.startswith("test/"):
            raise ConfigError(
                f"objective={name}: choosing by the test set would leak it into the model; use a "
                "validation metric, as val/miou."
            )
        if name.startswith("val/") and name not in config.validated:
            raise ConfigError(
                f"objective={name} is never logged; {nearest(name, config.validated)}"
            )


def _monitor_is_measured(config: Config) -> None:
    monitor = config.callbacks.best.monitor
    if monitor not in config.validated:
        hint = nearest(monitor, config.validated)
        raise ConfigError(f"callbacks.best.monitor={monitor} is never logged; {hint}")


def _bands_are_flairs(config: Config) -> None:
    for name in config.data.bands or ():
        if config.dataset.is_flair and name not in AERIAL_BANDS:
            raise ConfigError(f"data.bands={name}: expected one of {', '.join(AERIAL_BANDS)}.")


def _dataset_has_a_root(config: Config) -> None:
    dataset = config.dataset
    parts = (dataset.aerial_train, dataset.labels_train, dataset.aerial_test)
    if dataset.is_flair and dataset.root is None and not any(parts):
        raise ConfigError(
            f"dataset={dataset.name} needs its place: dataset.root=/path/to/the/released/tree."
        )


def _class_weights_name_classes(config: Config) -> None:
    if config.dataset.is_flair:
        require_classes(config, flair(config.data.classes))


def require_classes(config: Config, nomenclature: Nomenclature) -> None:
    """Refuse weights of classes that the data set does not have.

    Raises:
        ConfigError: `loss.class_weights` names another, but for "other", which the losses' files
            weigh and which is idle where there is none.
    """
    names = nomenclature.names
    for name in config.loss.class_weights:
        if name not in (*names, OTHER):
            raise ConfigError(
                f"loss.class_weights: no class {name!r}; {nearest(name, list(names))}"
            )


_RULES: Final[tuple[Callable[[Config], None], ...]] = (
    _names_are_folders,
    _model_has_its_modalities,
    _super_patch_fits_sample,
    _patches_fit_the_encoder,
    _metadata_has_a_place,
    _nodes_are_groups,
    _something_is_done,
    _objective_is_measured,
    _monitor_is_measured,
    _dataset_has_a_root,
    _bands_are_flairs,
    _class_weights_name_classes,
)
