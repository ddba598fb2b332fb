"""The groups that say where results go: tracking and paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from flair2_exp.config.fields import Group, OpenGroup, option, require_usable
from flair2_exp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoggersConfig(OpenGroup):
    """Further loggers of Lightning's beside MLflow, by name: `NAME: {_target_: ...}`."""

    node: ClassVar[str] = "tracking.loggers"
    decides: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Group):
    """Where MLflow keeps the runs; credentials come from the environment, never from here."""

    node: ClassVar[str] = "tracking"
    decides: ClassVar[bool] = False

    name: str = option("", chosen=True)
    enabled: bool = option(True, chosen=True)
    """Whether there is an MLflow run at all."""
    uri: str | None = None
    """`sqlite:////absolute/path/mlflow.db` or `http://HOST:PORT`; null: below `paths.mlflow`."""
    experiment: str = "flair2"
    """MLflow's experiment."""
    run_name: str | None = None
    """What the run is called on MLflow's pages; null: row, seed, data set and short identity."""
    tags: Mapping[str, str] = option({})
    """Further tags of the run."""
    timeout: float = option(8.0, 0.1, 600)
    """Seconds that a server may take to answer before the run is refused."""
    delivery_seconds: float = option(60.0, 0, 86400)
    """Seconds for which a run tries, at its end, to send what the store did not take; 0: none."""
    system_metrics: bool = False
    """Whether to store how busy processor, memory, disk and GPUs are, every ten seconds."""
    loggers: LoggersConfig = field(default_factory=LoggersConfig)
    """They get the metrics, and the config without credentials."""

    def validate(self) -> None:
        """Refuse credentials in the address, and what a server or an experiment lacks."""
        if "@" in (self.uri or "").partition("://")[2].partition("/")[0]:
            raise ConfigError(
                "tracking.uri holds credentials, which would be kept with every run: put them into "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
        scheme, slashes, path = (self.uri or "").rpartition(":///")
        if not slashes or scheme.startswith(("sqlite", "file")):
            require_usable("tracking.uri", path)
        for tag in self.tags:
            owner, dot, _ = tag.partition(".")
            if dot and owner in ("mlflow", "flair2"):
                raise ConfigError(
                    f"tracking.tags.{tag}: names that begin with {owner}. are taken; choose "
                    "another, or set the run's name with tracking.run_name=NAME."
                )
        if not self.enabled:
            return
        if not self.experiment.strip():
            raise ConfigError("tracking.experiment is empty: expected the name of an experiment.")
        require_usable("tracking.experiment", self.experiment, look=False)  # it names a folder
        if self.name == "server" and not self.uri:
            raise ConfigError(
                "tracking=server needs tracking.uri=http://HOST:PORT, or MLFLOW_TRACKING_URI."
            )


@dataclass(frozen=True, kw_only=True)
class PathsConfig(Group):
    """Where results go; absolute in a typed config."""

    node: ClassVar[str] = "paths"
    decides: ClassVar[bool] = False

    root: str = option(".", chosen=True, path=True)
    """Everything a run writes goes below it."""
    data: str = option("data", chosen=True, path=True)
    """Where the synthetic sample is made."""
    output: str = option("outputs", chosen=True, path=True)
    """Where single runs have their folders."""
    mlflow: str = option("mlruns", chosen=True, path=True)
    """Where the local MLflow store is."""
