"""The one configuration of a server process, read once at start.

Knows the sections (those of models are in `settings_models`) and where values come from: command-line options before
environment variables (`TOKENPRIORITY_SERVER__PORT=9000`) before the TOML file. Unknown keys are errors. Knows nothing
of what the values do.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from tokenpriority_service.configuration.section import Section
from tokenpriority_service.configuration.settings_errors import InvalidSettings, explain
from tokenpriority_service.configuration.settings_models import (
    AnyModel,
    FakeModel,
    ModelSettings,
    RemoteModel,
    TorchModel,
    VllmModel,
)
from tokenpriority_service.configuration.url import check_url

__all__ = [
    "LOOPBACK",
    "DatabaseSettings",
    "FakeModel",
    "InvalidSettings",
    "ModelSettings",
    "RemoteModel",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TeamSettings",
    "TorchModel",
    "VllmModel",
    "read",
]

LOOPBACK = ("127.0.0.1", "::1", "localhost")

HOME = "sqlite:///~"


def _expanded(url: str) -> str:
    return f"sqlite:///{Path.home()}{url.removeprefix(HOME)}" if url.startswith(HOME) else url


def _check_collector(url: str) -> str:
    return check_url(url, "give the collector's headers in OTEL_EXPORTER_OTLP_HEADERS")


class ServerSettings(Section):
    """`[server]`: where it listens and how much it takes at once."""

    host: str = "127.0.0.1"
    """Address to listen on; other than loopback needs a team with a key (or `--insecure`)."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and prints it."""
    max_body_bytes: int = Field(33_554_432, ge=1)
    """Largest body of a request."""
    max_sequences: int = Field(1024, ge=1)
    """Most sequences of a request."""
    max_request_tokens: int = Field(262_144, ge=1)
    """Most tokens of a request, over all its sequences."""
    max_queued_tokens: int = Field(2_097_152, ge=1)
    """Most tokens queued or in the engines, over all requests; above it a request is refused with 503, and with 429 if
    its team would hold more than it leaves free for others."""
    traces: Annotated[str, AfterValidator(_check_collector)] | None = None
    """Address of an OpenTelemetry collector (OTLP over HTTP, such as `http://collector:4318`), without user or
    password; default no traces."""
    drain_seconds: float = Field(30.0, ge=0)
    """On SIGTERM, how long accepted requests may take to finish before they are cancelled."""

    @model_validator(mode="after")
    def _any_request_fits(self) -> Self:
        if self.max_queued_tokens < 2 * self.max_request_tokens:
            raise ValueError(
                f"max_queued_tokens must be at least twice max_request_tokens ({2 * self.max_request_tokens}), so that "
                f"a request under two models fits an idle server; got {self.max_queued_tokens}"
            )
        return self


class DatabaseSettings(Section):
    """`[database]`: where keys, limits, usage and evidence are kept."""

    url: Annotated[str, AfterValidator(_expanded)] = Field(
        f"{HOME}/.local/state/tokenpriority/tokenpriority.db", validate_default=True
    )
    """`sqlite:///FILE`, or `sqlite://` for one in memory that ends with the process; or
    `postgresql://USER:PASSWORD@HOST/NAME`, for several replicas of the server."""


class StoreSettings(Section):
    """`[store]`: the evidence that is kept."""

    memory_bytes: int = Field(268_435_456, ge=0)
    """Most bytes of evidence kept in this process (about 29 per scored token, 33 with `entropy_top20`)."""
    max_bytes: int = Field(10_737_418_240, ge=0)
    """Most bytes of evidence kept in the database. In both, the least recently used goes first; 0 keeps nothing."""
    scope: Literal["shared", "team"] = "shared"
    """Who finds what one team had scored: every team, or that team alone. A hit tells that somebody submitted the same
    tokens, and takes less time than a miss."""


TeamName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class TeamSettings(Section):
    """`[teams.NAME]`: a team declared here rather than by `tokenpriority teams set`; what is set here holds."""

    key_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of a key of scope `score`, lower-case hex, beside those made by `tokenpriority keys`; the key itself is
    nowhere in the server."""
    weight: float = Field(1.0, gt=0, le=1000)
    """Its share of the engines when several teams wait, relative to theirs."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Most tokens it may have computed in a minute; what the store knows is free. Default no limit."""
    concurrent_tokens: int | None = Field(None, ge=1)
    """Most tokens it may have queued or in the engines, over all replicas. Default no limit."""


class Settings(BaseSettings):
    """Everything a server process is told."""

    model_config = SettingsConfigDict(
        env_prefix="TOKENPRIORITY_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    store: StoreSettings = StoreSettings()
    models: dict[str, AnyModel] = {}
    teams: dict[TeamName, TeamSettings] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then environment, then file (`read` sets which)."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _keys_are_one_teams(self) -> Self:
        owner: dict[str, str] = {}
        for name, team in self.teams.items():
            if team.key_sha256 is None:
                continue
            if team.key_sha256 in owner:
                raise ValueError(f"teams.{name}.key_sha256 is also that of teams.{owner[team.key_sha256]}")
            owner[team.key_sha256] = name
        return self

    @model_validator(mode="after")
    def _names_are_one_models(self) -> Self:
        owner = {name: f"models.{name}" for name in self.models}
        for name, model in self.models.items():
            for adapter in model.names:
                key = f"models.{name}.adapters.{adapter}"
                if adapter in owner:
                    raise ValueError(f"{key}: {owner[adapter]} has this name already; every model needs its own")
                owner[adapter] = key
        return self

    @model_validator(mode="after")
    def _shares_fit_a_gpu(self) -> Self:
        shares = {
            f"models.{name}.memory_share": model.memory_share
            for name, model in self.models.items()
            if isinstance(model, VllmModel) and model.memory_share is not None
        }
        # Whatever their tensor_parallel, all begin at the first GPU.
        if (total := sum(shares.values())) > 1 + 1e-9:
            stated = ", ".join(f"{key} = {share:g}" for key, share in shares.items())
            raise ValueError(f"{stated}: shares of the same GPUs must sum to at most 1, got {total:g}")
        return self


def read(file: Path | None = None, options: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a TOML file, the environment and options. Raises InvalidSettings."""
    if file is not None and not file.is_file():
        raise InvalidSettings(f"--config: no such file: {file}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**(options or {}))
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettings(f"{file}: not valid TOML: {error}") from None
    except SettingsError as error:  # a variable that should hold JSON; it does not quote it
        raise InvalidSettings(f"environment: {error}") from None
    except ValidationError as error:
        raise InvalidSettings(f"{file or 'settings'}: {explain(error)}") from None
