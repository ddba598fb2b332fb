"""The groups that say what is read and how: data, dataset, split, s2_preproc, aug, metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from flair2_exp.config.fields import Decides, Group, option
from flair2_exp.config.relevance import (
    if_aerial,
    if_domains_left_out,
    if_filtered,
    if_flair,
    if_flips,
    if_labels_drawn,
    if_metadata,
    if_series,
    if_series_move,
    if_shuffled_split,
    if_single_dates,
    if_tested_by_batches,
    if_trained,
    if_validated_by_batches,
)
from flair2_exp.errors import ConfigError

FLAIR: Final = "flair2_exp.data.flair.FlairSource"


@dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """Which modalities and classes an experiment reads, and in what batches."""

    node: ClassVar[str] = "data"

    name: str = option("", chosen=True, decides=False)
    satellite: bool = option(True, decides=False)
    """Whether the satellite series may be read; the aerial patch always may."""
    bands: tuple[str, ...] | None = option(None, decides=if_aerial)
    """Bands of the aerial patch, in the order in which the network sees them; null: all."""
    normalisation: Literal["none", "imagenet", "dataset"] = option("none", decides=if_aerial)
    """How the scaled image is centred and divided, band by band: `none` (the baseline), `imagenet`
    (its mean and standard deviation; 0.5 and 0.25 for bands that it lacks), or `dataset` (those of
    the training patches)."""
    classes: Literal[13, 19] = option(13, decides=if_flair)
    """Number of classes of FLAIR #2's nomenclature; other data sets bring their own classes."""
    batch_size: int = option(10, 1, 100_000, decides=if_trained)
    """Training patches in a batch, per device."""
    val_batch_size: int = option(10, 1, 100_000, decides=if_validated_by_batches)
    """Validation patches in a batch, per device."""
    test_batch_size: int = option(10, 1, 100_000, decides=if_tested_by_batches)
    """Test patches in a batch, per device."""
    drop_last: bool = False
    """Whether training and validation leave out a last batch that is not whole (the baseline)."""
    workers: int = option(2, 0, 1024, decides=False)
    """Processes that read, per device; 0 reads in the training process."""

    def validate(self) -> None:
        """Refuse bands that no network takes."""
        bands = self.bands
        if bands is not None and (not bands or len(set(bands)) != len(bands)):
            raise ConfigError(
                f"data.bands=[{','.join(bands)}]: expected different bands, one or more; null "
                "takes all."
            )

    def batch_size_of(self, part: str) -> int:
        """Return the patches in a batch of `train`, `validation` or `test`, per device."""
        sizes = {"train": self.batch_size, "validation": self.val_batch_size}
        return sizes.get(part, self.test_batch_size)

    def drops_last_of(self, part: str) -> bool:
        """Return whether a part leaves out a last batch that is not whole; the test never does."""
        return self.drop_last and part != "test"


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Group):
    """How the synthetic data set is made; used by `dataset=sample` alone."""

    node: ClassVar[str] = "dataset.sample"

    seed: int = option(0, 0, 2**32 - 1)
    """Seeds everything random in the sample."""
    patch_size: int = option(128, 32, 1024)
    """Pixels on a side of a patch. A patch always covers 102.4 m, so 128 is 0.8 m per pixel and 512
    is 0.2 m."""
    domains: int = option(8, 6, 40)
    """Number of domains: a quarter of them validates, a quarter tests, the others train."""
    areas_per_domain: int = option(4, 1, 20)
    """Areas in each domain."""
    patches_per_area: int = option(4, 1, 100)
    """Patches in each area."""
    super_patch: int = option(64, 16, 112)
    """Largest `s2_preproc.size` that fits around every patch; a larger one makes larger files."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Group):
    """Which data set, and where its files are: their fingerprint, not their place, decides."""

    node: ClassVar[str] = "dataset"

    name: str = option("", chosen=True, decides=False)
    _target_: str = FLAIR
    """The class that reads the data: a `flair2_exp.data.source.DataSource`."""
    options: Mapping[str, Any] = option({}, -1e9, 1e9)
    """Further options of the class, by the names of its constructor's arguments."""
    root: str | None = option(None, decides=False, path=True)
    """The data set's folder. Each part of FLAIR #2 may lie elsewhere: name it by the options
    below."""
    aerial_train: str | None = option(None, decides=False, path=True)
    """Training and validation images; replaces what is found under `root`, like those below."""
    aerial_test: str | None = option(None, decides=False, path=True)
    """Folder of the test images."""
    labels_train: str | None = option(None, decides=False, path=True)
    """Folder of the masks of the training and validation images."""
    labels_test: str | None = option(None, decides=False, path=True)
    """Folder of the masks of the test images."""
    satellite_train: str | None = option(None, decides=False, path=True)
    """Folder of the series of the training and validation areas."""
    satellite_test: str | None = option(None, decides=False, path=True)
    """Folder of the series of the test areas."""
    centroids: str | None = option(None, decides=False, path=True)
    """JSON file with each patch's place in its area's series."""
    aerial_metadata: str | None = option(None, decides=False, path=True)
    """JSON file with each patch's place, date and camera."""
    sample: SampleConfig | None = option(None, decides=False)
    store: str | None = option(None, decides=False, path=True)
    """A prepared store (`flair2-exp prepare`) to read from instead of the files."""
    on_damaged: Literal["stop", "skip"] = "stop"
    """Whether a damaged patch ends the run, or is left out and counted."""
    check: Literal["headers", "none"] = option("headers", decides=False)
    """Whether every file's header is read before a run; `flair2-exp check` reads all of it."""

    @property
    def is_flair(self) -> bool:
        """Whether this is FLAIR #2, of which bands and classes are known without the files."""
        return self._target_ == FLAIR


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Group):
    """Which patches train, validate and test."""

    node: ClassVar[str] = "split"

    name: Literal["official", "reference", "file", "leave_domains_out"] = option(
        "official", chosen=True
    )
    file: str | None = option(None, decides=False, path=True)  # by content: in the fingerprint
    """For `split=file`: a YAML file with the lists `train`, `validation` and `test` of domains or
    patch ids."""
    domains: tuple[str, ...] = option((), decides=if_domains_left_out)
    """For `split=leave_domains_out`: the domains of the train tree that test, as D004_2021."""
    train_fraction: float = option(0.8, 0.05, 0.95, decides=if_shuffled_split)
    """For `split=reference` and `leave_domains_out`: the share of the domains outside the test set
    that trains; the others validate."""
    seed: int = option(2022, 0, 2**32 - 1, decides=if_shuffled_split)
    """For `split=reference` and `leave_domains_out`: seeds the shuffling of the domains."""
    label_fraction: float = option(1.0, 1e-6, 1.0, decides=if_trained)
    """Share of the training patches that are used. Every patch of a smaller share is in a larger
    one, and all domains are covered as soon as there are as many patches as domains."""
    label_seed: int = option(0, 0, 2**32 - 1, decides=if_labels_drawn)
    """Seeds the choice of the patches for `label_fraction`; independent of `seed`."""

    def validate(self) -> None:
        """Refuse a split by file that names none, and held-out domains without their split."""
        if self.name == "leave_domains_out" and not self.domains:
            raise ConfigError(
                "split=leave_domains_out needs the domains that test: "
                "split.domains=[D004_2021,D014_2020]."
            )
        if self.domains and self.name != "leave_domains_out":
            raise ConfigError(
                f"split.domains=[{','.join(self.domains)}]: split={self.name} holds no domains "
                "out; add split=leave_domains_out."
            )
        if self.name == "file" and not self.file:
            raise ConfigError(
                "split=file needs split.file=PATH, a YAML file with lists train, validation and "
                "test of domains or patch ids."
            )


@dataclass(frozen=True, kw_only=True)
class S2PreprocConfig(Group):
    """Preprocessing of the satellite series (FLAIR #2 baseline, cloud filter and monthly means)."""

    node: ClassVar[str] = "s2_preproc"
    decides: ClassVar[Decides] = if_series

    name: str = option("", chosen=True, decides=False)
    cloud_filter: bool = option(False, chosen=True)
    """Whether acquisitions that snow and cloud cover too much are left out."""
    monthly: bool = option(False, chosen=True)
    """Whether one mean frame per calendar month takes the place of the acquisitions."""
    size: int = option(40, 16, 112)
    """Pixels (10 m) on a side of the super-patch; a multiple of 8."""
    threshold: int = option(60, 0, 100, decides=if_filtered)
    """Probability (per cent) from which a pixel counts as snow or cloud."""
    max_cover: float = option(0.5, 0.0, 2.0, decides=if_filtered)
    """Share of covered pixels from which an acquisition is left out."""
    cover: Literal["union", "sum"] = option("union", decides=if_filtered)
    """How covered pixels are counted: a pixel that is both snow and cloud counts once (`union`) or
    twice (`sum`, the baseline)."""
    on_empty: Literal["clearest", "error"] = option("clearest", decides=if_filtered)
    """What happens where the filter leaves no acquisition: keep the clearest ones, or stop with the
    patch's name."""
    scale: Literal["reflectance", "reference"] = "reflectance"
    """What the series are divided by: 10,000 (`reflectance`), or as in the baseline 65,535, and
    monthly means by nothing (`reference`)."""
    days: Literal["day_of_year", "reference"] = option("day_of_year", decides=if_single_dates)
    """How days to 15 May are counted: `day_of_year` by each date's own year, `reference` within
    2021 (the baseline), with 29 February read as the 28th."""
    normalisation: Literal["none", "dataset"] = "none"
    """How the scaled frames are centred and divided, band by band: `none` (the baseline), or
    `dataset` (by the mean and standard deviation of the training patches' series; padding stays
    zero)."""

    def validate(self) -> None:
        """Refuse a size that U-TAE cannot halve three times."""
        if self.size % 8:
            lower = max(16, self.size // 8 * 8)
            raise ConfigError(
                f"s2_preproc.size={self.size}: U-TAE halves the super-patch three times, so it "
                f"must be a multiple of 8 from 16 to 112; use {lower} or {min(112, lower + 8)}."
            )


_AUGMENTATION: Final = "flair2_exp.data.augment.Augmentation"


@dataclass(frozen=True, kw_only=True)
class AugConfig(Group):
    """Augmentation of the training patches."""

    node: ClassVar[str] = "aug"
    decides: ClassVar[Decides] = if_trained

    name: str = option("", chosen=True, decides=False)
    _target_: str = _AUGMENTATION
    """The augmentation's class: a `flair2_exp.data.augment.SampleTransform`."""
    options: Mapping[str, Any] = option({}, -1e9, 1e9)
    """Further options of the class, by the names of its constructor's arguments."""
    geometry: Literal["none", "flips", "d4"] = "none"
    """`flips`: vertical flip, horizontal flip, quarter turns, each with `probability` (the
    baseline's); `d4`: one of the square's eight symmetries, uniformly."""
    probability: float = option(0.5, 0.0, 1.0, decides=if_flips)
    """Probability of each flip and of the quarter turn, for `geometry: flips`."""
    satellite: bool = option(True, decides=if_series_move)
    """Whether series and satellite target follow the aerial patch."""
    brightness: float = option(0.0, 0.0, 1.0, decides=if_aerial)
    """Largest relative change of the pixel values: the factor is uniform in 1 ± this value, as for
    `contrast` and `gamma`."""
    contrast: float = option(0.0, 0.0, 1.0, decides=if_aerial)
    """Largest relative change of the pixels' differences from mid-grey."""
    gamma: float = option(0.0, 0.0, 1.0, decides=if_aerial)
    """Largest relative change of the exponent of the pixel values."""
    noise: float = option(0.0, 0.0, 0.5, decides=if_aerial)
    """Standard deviation of Gaussian noise, as a share of the full scale."""
    zoom: float = option(0.0, 0.0, 0.5)
    """Largest relative enlargement about the patch's centre."""
    drop_dates: float = option(0.0, 0.0, 0.9, decides=if_series)
    """Probability of each acquisition to be left out; one always stays."""

    @property
    def active(self) -> bool:
        """Whether anything is changed at all, as far as is known of a class of the user's."""
        known = not self.options and self._target_ == _AUGMENTATION
        return (
            not known
            or self.geometry != "none"
            or any(
                (self.brightness, self.contrast, self.gamma, self.noise, self.zoom, self.drop_dates)
            )
        )


@dataclass(frozen=True, kw_only=True)
class MetadataConfig(Group):
    """The aerial patch's metadata (place, date, camera) as a further input."""

    node: ClassVar[str] = "metadata"

    name: str = option("", chosen=True, decides=False)
    enabled: bool = option(False, chosen=True)
    """Whether the network gets place, date and camera of a patch."""
    month: Literal["cyclic", "reference"] = option("cyclic", decides=if_metadata)
    """How the month is encoded: by an angle of its own (`cyclic`), or by the baseline's angle,
    which is the same for every month (`reference`)."""
    fusion: Literal["channels", "rows"] = option("channels", decides=if_metadata)
    """What the encoded metadata are added to: each channel of the deepest map, or each of its rows
    (the baseline)."""


@dataclass(frozen=True, kw_only=True)
class DataGroups:
    """The groups of this file together: what the data room receives of a config."""

    data: DataConfig = field(default_factory=DataConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    s2_preproc: S2PreprocConfig = field(default_factory=S2PreprocConfig)
    aug: AugConfig = field(default_factory=AugConfig)
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
