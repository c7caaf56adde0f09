"""Settings of the supervisor: YAML file, then environment, then command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from tiledbroker import default_journal_dir
from tiledbroker._address import normalize_address
from tiledbroker._supervisor import DEFAULT_ADDRESS, DEFAULT_MAX_WORKERS, DEFAULT_WINDOW

from ._catalog import QUIET_PERIOD
from ._connection import POISON_AFTER
from ._logging import LogOptions
from ._run_writer import MAX_ARRAY_SIZE
from ._worker import TiledAddress, WorkerOptions
from ._writing import WritingOptions


class Settings(BaseSettings):
    """What `tiledwriter-supervisor` can be told. Each also by `TILEDWRITER_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="TILEDWRITER_", extra="forbid")
    yaml_file: ClassVar[Path | None] = None

    listen: str = Field(DEFAULT_ADDRESS, description="Address to listen at for publishers.")
    tiled: str | None = Field(None, description="URI of the Tiled container that runs are written to.")
    profile: str | None = Field(None, description="Profile of Tiled's client, instead of a URI.")
    journal_dir: Path = Field(
        default_factory=default_journal_dir, description="Directory of the journals, on a local disk."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="What to log.")
    log_format: Literal["text", "json"] = Field("text", description="Form of log lines.")
    max_workers: PositiveInt = Field(DEFAULT_MAX_WORKERS, description="Worker processes at a time.")
    window: PositiveInt = Field(DEFAULT_WINDOW, description="Bytes a publisher may have under way unacknowledged.")
    max_array_size: int = Field(
        MAX_ARRAY_SIZE, ge=0, description="Arrays in events of up to this many numbers become list columns."
    )
    quiet_period: PositiveFloat = Field(
        QUIET_PERIOD, description="Seconds a table must not have moved before a lost append is sent again."
    )
    poison_after: PositiveFloat = Field(
        POISON_AFTER, description="Seconds of nothing but 500 from a server that is well, before a run is quarantined."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if cls.yaml_file is not None:
            sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=cls.yaml_file))
        return tuple(sources)

    @model_validator(mode="before")
    @classmethod
    def _level_in_capitals(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("log_level"), str):
            values["log_level"] = values["log_level"].upper()
        return values

    @model_validator(mode="after")
    def _one_server(self) -> Settings:
        if (self.tiled is None) == (self.profile is None):
            raise ValueError("give either --tiled URI or --profile NAME")
        self.listen = normalize_address(self.listen)
        return self

    def worker_options(self) -> WorkerOptions:
        """What every worker is told."""
        return WorkerOptions(
            TiledAddress(self.tiled, self.profile),
            WritingOptions(self.max_array_size, self.quiet_period, self.poison_after),
            LogOptions(self.log_level, self.log_format),
        )


def load_settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    """Settings from a YAML file, the environment and flags; later ones win.

    Raises
    ------
    pydantic.ValidationError
        Something is missing, unknown or has the wrong form.
    """

    class FromFile(Settings):
        yaml_file: ClassVar[Path | None] = config

    return FromFile(**{name: value for name, value in flags.items() if value is not None})
